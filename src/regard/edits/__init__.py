"""Edits of attention: each one small file, for `regard.steer` and `regard.attach`."""

from regard.edits.ablation import HeadAblation
from regard.edits.trace import Trace

__all__ = ["HeadAblation", "Trace"]
