"""Attention over tokens that many devices hold, each of them a part: exact, forward and backward.

`Plan` says who holds what, `attend` computes, `Parallel` puts it into models.
"""

from __future__ import annotations

from regard.parallel.attend import HOW, attend
from regard.parallel.base import Call, Sharded
from regard.parallel.group import Distributed, Group, Threads, simulate, sum_gradients
from regard.parallel.mechanism import Parallel
from regard.parallel.plan import Plan
from regard.parallel.state import States

__all__ = [
    "HOW",
    "Call",
    "Distributed",
    "Group",
    "Parallel",
    "Plan",
    "Sharded",
    "States",
    "Threads",
    "attend",
    "simulate",
    "sum_gradients",
]
