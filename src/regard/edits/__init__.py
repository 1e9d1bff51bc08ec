"""Edits of attention: each one small file, for `regard.steer` and `regard.attach`.

| edit | what it changes |
|---|---|
| `Highlight` | more attention to some tokens (PASTA) |
| `KnockOut` | none to some tokens |
| `AttendTo` | heads look at some tokens alone, at each alike |
| `ZeroTuning` | more or less to the first token |
| `ACT` | less to sinks in the text |
| `FoundInTheMiddle` | attention to passages without the bias of their places |
| `SoftInjection` | heads say what they said of a task's examples |
| `FocusDirections` | learned directions in queries and keys that look at what is relevant |
| `PositionalHidden` | the newest token looks without a channel that counts places |
| `HeadAblation`, `HeadScale` | heads off, louder, softer, reversed |
| `SinkSteering` | what networks write into sinks, weaker |
| `Temperature` | heads sharper or flatter |
| `Trace`, `SpanMasses` | nothing: they read |
"""

from regard.edits.ablation import HeadAblation
from regard.edits.act import ACT
from regard.edits.attend_to import AttendTo
from regard.edits.focus_directions import FocusDirections
from regard.edits.found_in_the_middle import FoundInTheMiddle, SpanMasses
from regard.edits.positional_hidden import PositionalHidden
from regard.edits.scaling import HeadScale, Temperature
from regard.edits.sink_steering import SinkSteering
from regard.edits.soft_injection import SoftInjection
from regard.edits.tilt import Highlight, KnockOut, Tilt
from regard.edits.trace import Trace
from regard.edits.zero_tuning import ZeroTuning

__all__ = [
    "ACT",
    "AttendTo",
    "FocusDirections",
    "FoundInTheMiddle",
    "HeadAblation",
    "HeadScale",
    "Highlight",
    "KnockOut",
    "PositionalHidden",
    "SinkSteering",
    "SoftInjection",
    "SpanMasses",
    "Temperature",
    "Tilt",
    "Trace",
    "ZeroTuning",
]
