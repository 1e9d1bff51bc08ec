"""`regard serve`: the live page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    folder: Annotated[Path, typer.Argument(help="a record, as `regard look` leaves it")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port on the loopback interface; 0 picks a free one")
    ] = 8080,
    browse: Annotated[bool, typer.Option("--open", help="open the page in the browser")] = False,
) -> None:
    """Serve a record's page on this machine, with every region of every map recomputed exactly."""
    from regard.web.server import serve as run

    run(folder, port=port, open_browser=browse)
