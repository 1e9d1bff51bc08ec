"""Edits of attention: each one small file, for `regard.steer` and `regard.attach`.

| edit | what it changes |
|---|---|
| `Highlight` | more attention to some tokens (PASTA) |
| `KnockOut` | none to some tokens |
| `ZeroTuning` | more or less to the first token |
| `ACT` | less to sinks in the text |
| `FoundInTheMiddle` | attention to passages without the bias of their places |
| `HeadAblation`, `HeadScale` | heads off, louder, softer, reversed |
| `Temperature` | heads sharper or flatter |
| `Trace`, `SpanMasses` | nothing: they read |
"""

from regard.edits.ablation import HeadAblation
from regard.edits.act import ACT
from regard.edits.found_in_the_middle import FoundInTheMiddle, SpanMasses
from regard.edits.scaling import HeadScale, Temperature
from regard.edits.tilt import Highlight, KnockOut, Tilt
from regard.edits.trace import Trace
from regard.edits.zero_tuning import ZeroTuning

__all__ = [
    "ACT",
    "FoundInTheMiddle",
    "HeadAblation",
    "HeadScale",
    "Highlight",
    "KnockOut",
    "SpanMasses",
    "Temperature",
    "Tilt",
    "Trace",
    "ZeroTuning",
]
