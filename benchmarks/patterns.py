"""Patterns beside dense attention: how sparse, how fast, and what a trained model still recalls; and a gallery.

    python benchmarks/patterns.py table      # writes the table of docs/patterns.md
    python benchmarks/patterns.py gallery    # draws docs/images/patterns.png

Times are ratios to PyTorch's fused attention, causal or not as the pattern is, in one interleaved run on one thread.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from regard import patterns as p
from regard.experiments.timing import interleaved
from regard.kernels.block_sparse import plan as block_sparse

DOCS = Path(__file__).parents[1] / "docs"
MARKS = "<!-- table -->", "<!-- end of table -->"
LINES = (
    *("Causal & Window(256)", "Causal & (Window(256) | Sinks(64))", "Causal & (Window(64) | Sinks(64) | Power(64))"),
    *("Causal & Blocks(256)", "Causal & (Blocks(256) | Sinks(64))", "Causal & (Window(64) | Strided(64))"),
)
GRIDS = ("Neighborhood({grid}, 7)", "Neighborhood({grid}, 13)", "Neighborhood({grid}, 16, stride=8)")
SIDES = {4096: (64, 64), 16384: (128, 128), 32768: (128, 256)}
SHOWN = (
    *("Causal", "Causal & Window(12)", "Causal & (Window(8) | Sinks(4))", "Dilated(5, 3)", "Causal & Power"),
    *(
        "Causal & (Window(8) | Strided(8))",
        "Causal & (Blocks(16) | Sinks(3))",
        "Blocks(16, 8)",
        "Global(0, 20) | Window(4)",
    ),
    *("Segments(10, 30, 24)", "Random(0.2, block=4)", "Neighborhood(64, 9, causal=True)", "Neighborhood((8, 8), 3)"),
    *("Neighborhood((8, 8), 3, dilation=2)", "Neighborhood((8, 8), 4, 2)", "Tiles((8, 8), 4)", "GridTokens((8, 8), 4)"),
    *("Radial((8, 8), 2)", "fused_view_time(4, 4, 4)", "attention_tiles(8, 8, 0)", "all_to_first(8, 8)"),
    *("inward_window(4, 4, 4, 1, 1)", "PerHead(Window(4), Blocks(8, 4))"),
)

app = typer.Typer(add_completion=False, help=__doc__)


def work(call, tensors, train: bool):
    """A forward pass, or one with its backward."""

    def step():
        leaves = [x.detach().requires_grad_() for x in tensors]
        torch.autograd.grad(call(*leaves).sum(), leaves)

    return step if train else torch.no_grad()(lambda: call(*tensors))


def ratios(pattern: p.Pattern, causal: bool, n: int) -> str:
    """``forward / training`` at one length, of as many heads as keep the memory in bounds."""
    heads = max(1, 8 * 4096 // n)
    tensors = [torch.randn(1, heads, n, 64) for _ in range(3)]
    found = []
    for train in (False, True):
        mine = work(lambda q, k, v: block_sparse.attend(q, k, v, pattern), tensors, train)
        dense = work(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), tensors, train)
        found.append(interleaved(mine, dense, torch.device("cpu"), seconds=3).median)
    return " / ".join(f"{x:.2f}" for x in found)


def recalled(text: str, lengths: tuple[int, ...]) -> list[str]:
    """What the shipped model recalls with the pattern in all of its layers."""
    from regard.compare.swap_report import swap_report
    from regard.hosts import small

    model, tokenizer = small.load("tiny")
    rows = swap_report(model, tokenizer, text, small.SAMPLE.read_text(), list(lengths), 4, lambda what: None)
    whole = next(row for row in rows if row.layers == "all")
    return [f"{whole.recall[n]:.0%}" for n in lengths]


@app.command()
def table(threads: Annotated[int, typer.Option(min=1)] = 1) -> None:
    """Density, limit and reached ratios at 4k, 16k and 32k, and recall of the shipped model at 512 to 2,048 tokens."""
    torch.set_num_threads(threads)
    lengths = (512, 1024, 2048)
    head = ["pattern", "density 4k", "limit 4k", "computed 4k", *(f"{n // 1024}k, fwd / train" for n in SIDES)]
    lines = [[*head, *(f"recall {n}" for n in lengths)], ["---"] * (len(head) + len(lengths))]
    for template in (*LINES, *GRIDS):
        causal, cells = template.startswith("Causal"), []
        for n, grid in SIDES.items():
            pattern = p.parse_pattern(template.format(grid=grid))
            if n == 4096:
                pairs = n * (n + 1) / 2 if causal else n * n
                computed = block_sparse.cells(pattern, n, n) / pairs
                cells += [
                    f"{pattern.density(n):.3f}",
                    f"{block_sparse.limit(pattern, n, causal):.3f}",
                    f"{computed:.3f}",
                ]
            cells.append(ratios(pattern, causal, n))
        cells += recalled(template, lengths) if causal else ["–"] * len(lengths)
        shown = template.replace("{grid}", "grid").replace("|", "\\|")
        lines.append([f"`{shown}`", *cells])
        print(lines[-1], flush=True)
    page = DOCS / "patterns.md"
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    block = f"{MARKS[0]}\n{body}\n{MARKS[1]}"
    page.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: block, page.read_text(), flags=re.DOTALL))


@app.command()
def gallery() -> None:
    """Every kind of pattern on 64 tokens."""
    from regard.patterns import picture

    shown = {text: (p.parse_pattern(text), 64) for text in SHOWN}
    picture.save(shown, DOCS / "images" / "patterns.png")


if __name__ == "__main__":
    app()
