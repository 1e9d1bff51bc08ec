"""What a watch has seen as a table, for the prompt and for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from torch import Tensor


def cells(session: Any) -> list[list[str]]:
    """A heading, then a line for each layer: what it is, and the mean over heads of what each probe says of it."""
    found = {probe.name: probe.result() for probe in session.probes if session.layers}
    means = {
        name: said for name, said in found.items() if isinstance(said, Mapping) and any(map(number, said.values()))
    }
    lines = [["layer", "module", "mechanism", "heads", *(f"mean {name}" for name in means)]]
    for layer in session.layers:
        about = [str(layer.index), layer.name, layer.mechanism, str(layer.heads)]
        lines.append([*about, *(number(said.get(layer.index)) for said in means.values())])
    return lines


def number(said: Any) -> str:
    """The mean of a probe's values in one layer, empty where it has none."""
    values = getattr(said, "value", said)
    if not isinstance(values, Tensor) or not values.numel():
        return ""
    return f"{float(values.double().nanmean()):.4g}"


def as_text(session: Any) -> str:
    """The table in plain text."""
    if not session.layers:
        return f"<{type(session).__name__}: nothing seen yet>"
    lines = cells(session)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_html(session: Any) -> str:
    """The table for notebooks."""
    head, *lines = ([escape(word) for word in line] for line in cells(session))
    rows = "".join(f"<tr><td>{'</td><td>'.join(line)}</td></tr>" for line in lines)
    return f"<table><thead><tr><th>{'</th><th>'.join(head)}</th></tr></thead><tbody>{rows}</tbody></table>"
