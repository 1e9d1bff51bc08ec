"""The page of results."""

from __future__ import annotations

from collections import Counter

import torch
import transformers

from families.checks import Row

INTRODUCTION = """\
# Model families

A tiny random model of each of the {count} model families of {versions}, under `regard.watch` and `regard.swap`:
`make families` writes this page and [families.jsonl](families.jsonl).

Of {built} that can be built: {outcomes}.

*Watch*: the output is the model's own, and every softmax over keys, its entropy and its distance are those of the
model's eager attention. *Padding*: the same for batches padded on the left and on the right, beside single texts.
*Generate*: statistics of generated tokens are those of one pass. *Swap*: `regard.swap(model, "softmax")` gives the
model's own output. *State*: implementation, hooks and attributes are as before. – does not apply.
"""
ORDER = ("wrong", "partial", "crash", "refused", "right", "cannot be built")


def page(rows: list[Row]) -> str:
    """docs/families.md from the results."""
    counted = Counter(row.status for row in rows)
    built = len(rows) - counted["cannot be built"]
    outcomes = ", ".join(f"{counted[status]} {status}" for status in ORDER[:5])
    versions = f"Transformers {transformers.__version__} (PyTorch {torch.__version__.split('+')[0]})"
    lines = [
        *INTRODUCTION.format(count=len(rows), versions=versions, built=built, outcomes=outcomes).splitlines(),
        "",
        "| family | model | layers | watch | padding | generate | swap | state | why |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (ORDER.index(row.status), row.family)):
        if row.status != "cannot be built":
            parts = (row.family, row.model, row.layers or "", row.watch, row.padding, row.generate, row.swap, row.state)
            lines.append(f"| {' | '.join(str(part) for part in parts)} | {plain(row.reason)} |")
    left = [f"{row.family} ({plain(row.reason)})" for row in rows if row.status == "cannot be built"]
    lines += ["", "Not built from a generic configuration: " + "; ".join(left) + "." if left else ""]
    return "\n".join(lines).rstrip() + "\n"


def plain(text: str) -> str:
    """Text that does not break a table."""
    return " ".join(text.replace("|", "/").replace("<", "‹").split())[:260]
