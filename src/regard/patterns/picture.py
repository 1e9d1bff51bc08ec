"""Patterns to look at: in a terminal, and as PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.files import write_whole
from regard.patterns.base import Pattern

SHADES = " ░▒▓█"
FINEST = 512
"""Cells of a picture's side; what is longer is shown in blocks."""


def shares(pattern: Pattern, n: int, side: int) -> Tensor:
    """``(heads, cells, cells)``: which share of each cell of a picture is visible; at most ``side`` cells a side.

    Above `FINEST` tokens a cell is empty, partly (one half) or wholly visible.
    """
    if n < 1:
        raise wrong("length", str(n), "at least 1")
    block = -(-n // side)
    if n <= FINEST:
        pad = (0, -n % block, 0, -n % block)
        seen = torch.nn.functional.pad(pattern.dense(n).float(), pad)
        real = torch.nn.functional.pad(torch.ones(1, n, n), pad)
        seen, real = (torch.nn.functional.avg_pool2d(x, block) for x in (seen, real))
        return seen / real
    cover = pattern.cover(n, rows=block, cols=block)
    found = torch.zeros(cover.heads * cover.query_blocks, -(-n // block))
    found[cover.owners, cover.columns] = torch.where(cover.full, 1.0, 0.5)
    return found.view(cover.heads, cover.query_blocks, -1)


def text(pattern: Pattern, n: int, width: int = 64) -> str:
    """The pattern in characters, a query a line from the top, a key a column from the left."""
    lines, last = [], len(SHADES) - 1
    for head, part in enumerate(shares(pattern, n, width)):
        lines += [f"head {head}"] if pattern.heads > 1 else []
        for row in part:
            levels = [0 if x <= 0 else min(1 + int(x * last), last) for x in row.tolist()]
            wide = 2 if len(row) <= width // 2 else 1
            lines.append("".join(SHADES[level] * wide for level in levels).rstrip())
    return "\n".join(lines)


def save(patterns: Mapping[str, tuple[Pattern, int]], path: str | Path) -> None:
    """Pictures of ``{title: (pattern, length)}`` side by side, as the ending of ``path`` says (.png, .svg, .pdf)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise wrong("path", str(path), "a name that ends in .png, .svg or .pdf")
    panels = []
    for title, (pattern, n) in patterns.items():
        found = shares(pattern, n, FINEST)
        titles = [title] if len(found) == 1 else [f"{title}\nhead {head}" for head in range(len(found))]
        panels += [(name, part, n) for name, part in zip(titles, found, strict=True)]
    across = min(len(panels), 5)
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(2.6 * across, 2.9 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, part, n) in zip(axes.flat, panels, strict=False):
        axis.imshow(part.numpy(), cmap="Blues", vmin=0, vmax=1.15, extent=(0, n, n, 0), interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=6)
        axis.set_xlabel("key", fontsize=7)
        axis.set_ylabel("query", fontsize=7)
    write_whole(path, lambda draft: figure.savefig(draft, dpi=140))
    plt.close(figure)
