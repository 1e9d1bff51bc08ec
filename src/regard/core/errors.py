"""One sentence for every bad input: which argument, what came, what is wanted."""

from __future__ import annotations


def wrong(argument: str, came: str, wanted: str, kind: type[Exception] = ValueError) -> Exception:
    """The error to raise when ``argument`` is ``came`` where ``wanted`` was expected."""
    return kind(f"{argument}: got {came}, want {wanted}")
