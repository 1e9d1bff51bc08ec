"""One sentence for every bad input: which argument, what came, what is wanted."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches

REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EEXIST: "something else stands there",
    errno.EISDIR: "a folder, not a file",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}
"""What the system's error numbers mean to the person who typed a path."""


def wrong(argument: str, came: str, wanted: str, kind: type[Exception] = ValueError) -> Exception:
    """The error to raise when ``argument`` is ``came`` where ``wanted`` was expected."""
    return kind(f"{argument}: got {came}, want {wanted}")


def taught(error: Exception) -> bool:
    """Whether an error is one of `wrong`, which says what is wanted, and no fault of the program."""
    return bool(re.match(r"[^\n]+?: got .*, want ", str(error), re.DOTALL))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``" (did you mean 'softmax'?)"`` where a known name is spelled nearly like the ``given`` one, else nothing."""
    near = get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def reason(error: Exception) -> str:
    """Why reading or writing failed, in plain words, without the names of files that nobody gave."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and "No space left" in str(error):  # safetensors reports its own kind of error
        number = errno.ENOSPC
    return REASONS.get(number or 0, (getattr(error, "strerror", None) or str(error)).lower())
