"""The command line: one verb a file."""

from __future__ import annotations

import sys

import typer

from regard.cli import (
    atlas,
    claims,
    compare,
    compress,
    draw,
    flow,
    gates,
    heads,
    laws,
    look,
    patch,
    plan,
    results,
    route,
    serve,
    steer,
    study,
    swap,
    train,
    vision,
)
from regard.core.errors import reason, taught

app = typer.Typer(
    name="regard",
    help="Attention: build any published mechanism, run it fast, look at what it attends to.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("look")(look.look)
app.command("heads")(heads.heads)
app.command("patch")(patch.patch)
app.command("flow")(flow.flow)
app.command("serve")(serve.serve)
app.command("atlas")(atlas.atlas)
app.command("claims")(claims.claims)
app.command("study")(study.study)
app.command("draw")(draw.draw)
app.command("laws")(laws.laws)
app.command("gates")(gates.gates)
app.command("vision")(vision.vision)
app.command("compare")(compare.compare)
app.command("compress")(compress.compress)
app.command("plan")(plan.plan)
app.command("results")(results.results)
app.command("steer")(steer.steer)
app.command("swap-report")(swap.swap_report)
app.command("route-report")(route.route_report)
app.add_typer(train.app, name="train")


def main() -> None:
    """The entry point: bad input is one line on standard error, and its faulty part underlined, with exit status 2."""
    try:
        app()
    except (ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not taught(error):
            raise  # a fault of the program
        about, *rest = said(error).split("\n  ")
        if len(rest) != 2 or rest[1].strip("^ "):  # not a text with marks under it
            about, rest = " ".join([about, *rest]), []
        print("\n  ".join([f"regard: {' '.join(about.split())}", *rest]), file=sys.stderr)
        sys.exit(2)


def said(error: Exception) -> str:
    """The error's own message; the system's errors by the file that was typed and what is the matter with it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {reason(error)}"
    if isinstance(error, OSError) and error.errno is not None:
        return reason(error)
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # a KeyError's text is the repr of its message
    return str(error)
