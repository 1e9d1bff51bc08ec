"""Streaming, mergeable statistics of A.

| probe | what it gives | shape a layer |
|---|---|---|
| `Entropy`, `Distance` | mean over the rows | (heads,) |
| `Sink` | mean weight on the first tokens | (heads, first) |
| `Spans` | mean weight on named spans: the lookback ratio | (heads, spans) |
| `PreviousToken`, `Induction`, `DuplicateToken`, `Retrieval` | what a head is for | (heads,) |
| `Offsets`, `Lags` | mean weight at offsets, and around an earlier occurrence | (heads, offsets) |
| `OnTokens` | mean weight on kinds of tokens | (heads, groups) |
| `ColumnMeans` | share of sequences in which a key is a sink | (heads, tokens) |
| `NeedleHits` | retrieval score of a run | (batch, heads) |
| `SpanMeans` | each row's mean weight a token of named spans | (batch, heads, n, spans) |
| `Received` | what each key receives | (batch, heads, m) |
| `EntropyRows` | each row's entropy | (batch, heads, n) |
| `Pooled` | the map in cells | (batch, heads, cells, cells) |
| `Edges` | the heavy entries | `Links` |

The first seven lines pool all sequences they see, and merge over corpora; the others are of one sequence.
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
from regard.probes.places import ColumnMeans, Lags, NeedleHits, Offsets, OnTokens, SpanMeans
from regard.probes.token_statistics import Edges, EntropyRows, Links, Pooled, Received

LATE = ("observe", "observe_model")


def __getattr__(name: str) -> Any:
    """`observe` and `observe_model` of `regard.records`, which stands above this room and feeds probes."""
    if name in LATE:
        return getattr(import_module("regard.records.observe"), name)
    raise AttributeError(f"module 'regard.probes' has no attribute {name!r}")


__all__ = [
    "ColumnMeans",
    "Distance",
    "DuplicateToken",
    "Edges",
    "Entropy",
    "EntropyRows",
    "Estimate",
    "Induction",
    "Lags",
    "Links",
    "NeedleHits",
    "Offsets",
    "OnTokens",
    "Pooled",
    "PreviousToken",
    "Received",
    "Retrieval",
    "RowMean",
    "Sink",
    "SpanMeans",
    "Spans",
]
