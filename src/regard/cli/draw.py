"""`regard draw`: what does a pattern look like?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def draw(
    pattern: Annotated[str, typer.Argument(help="such as 'Causal & (Window(64) | Sinks(4))'")],
    length: Annotated[int, typer.Option(min=1, help="tokens")] = 64,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="a .png, .svg or .pdf to write")] = None,
) -> None:
    """Draw a pattern of attention, and say how dense it is and how much of that its blocks keep."""
    from rich.console import Console

    from regard.kernels.block_sparse import plan as block_sparse
    from regard.patterns import parse_pattern, picture

    found, console = parse_pattern(pattern), Console(highlight=False)
    found.check(length)
    if output is None:
        console.print(picture.text(found, length, min(console.width, 96)), soft_wrap=True)
    else:
        picture.save({str(found): (found, length)}, output)
        console.print(f"wrote {output}")
    pairs, computed = found.pairs(length) / found.heads, block_sparse.cells(found, length, length)
    console.print(
        f"{found}: {pairs / length:,.1f} of {length:,} keys a query, {pairs / length**2:.2%} of all pairs; "
        f"the kernel computes {computed / length**2:.2%}"
    )
