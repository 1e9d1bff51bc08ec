"""Progress of a long command: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any

QUIET = 5.0
"""Seconds between plain lines at least; what is done sooner prints none."""


class Steps(AbstractContextManager["Steps"]):
    """What is being done, how many steps of it are over, and the time that the rest will take, on standard error.

    In a terminal a bar that disappears at the end; anywhere else, in a log, a line every `QUIET` seconds.
    """

    def __init__(self) -> None:
        self.bar: Any = None
        self.done = self.total = 0
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> Steps:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
            self.bar.start()
            self.shown = self.bar.add_task("", total=None)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """``done`` of ``total`` steps are over, and ``what`` is going on; a total of 0 is one that nobody knows."""
        self.done, self.total = done, total
        if self.bar is not None:
            self.bar.update(self.shown, description=what, completed=done, total=total or None)
            return
        now = time.monotonic()
        if done == 0:
            self.started = now  # another count begins: its time left is its own
        if now - self.printed >= QUIET:
            self.printed = now
            self.say(plain_line(what, done, total, now - self.started))

    def show(self, what: str) -> None:
        """``what`` goes on now; the count stays."""
        self(what, self.done, self.total)

    def say(self, line: str) -> None:
        """Prints a line that stays, above the bar where there is one."""
        if self.bar is not None:
            self.bar.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)


def plain_line(what: str, done: int, total: int, seconds: float) -> str:
    """``what``, with the count of steps and, once some are over, how long the others will take at their rate."""
    if not total:
        return what
    left = f", about {duration(seconds / done * (total - done))} left" if done else ""
    return f"{what} ({done} of {total}{left})"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min`` or ``1 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
