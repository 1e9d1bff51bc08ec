"""Streaming, mergeable statistics of A.

| probe | what it gives | shape a layer |
|---|---|---|
| `Entropy`, `Distance` | mean over the rows | (heads,) |
| `Sink` | mean weight on the first tokens | (heads, first) |
| `Spans` | mean weight on named spans: the lookback ratio | (heads, spans) |
| `PreviousToken`, `Induction`, `DuplicateToken`, `Retrieval` | what a head is for | (heads,) |
| `Received` | what each key receives | (batch, heads, m) |
| `EntropyRows` | each row's entropy | (batch, heads, n) |
| `Pooled` | the map in cells | (batch, heads, cells, cells) |
| `Edges` | the heavy entries | `Links` |

The first four lines pool all sequences they see, and merge over corpora; the others are of one sequence.
`hosts.watch.watch` feeds them from a Transformers model, `observe` from a mechanism of ours.
"""

from importlib import import_module
from typing import Any

from regard.probes.head_statistics import (
    Distance,
    DuplicateToken,
    Entropy,
    Estimate,
    Induction,
    PreviousToken,
    Retrieval,
    RowMean,
    Sink,
    Spans,
)
from regard.probes.token_statistics import Edges, EntropyRows, Links, Pooled, Received

LATE = ("observe", "observe_model")


def __getattr__(name: str) -> Any:
    """`observe` and `observe_model` of `regard.records`, which stands above this room and feeds probes."""
    if name in LATE:
        return getattr(import_module("regard.records.observe"), name)
    raise AttributeError(f"module 'regard.probes' has no attribute {name!r}")


__all__ = [
    "Distance",
    "DuplicateToken",
    "Edges",
    "Entropy",
    "EntropyRows",
    "Estimate",
    "Induction",
    "Links",
    "Pooled",
    "PreviousToken",
    "Received",
    "Retrieval",
    "RowMean",
    "Sink",
    "Spans",
]
