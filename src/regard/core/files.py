"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from regard.core.errors import reason, wrong

FULL = ("No space left", "failed writing file")
"""What libraries that raise errors of their own say of a disk that is full."""


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary path in the same folder, then puts that file at ``path``.

    Folders above it are made. A process that is killed at any moment leaves the old file or the new one. What is a
    device or a pipe is written to as it is; of a link, what it leads to is replaced.

    Raises:
        OSError: it cannot be written: where, and why.
    """
    path = Path(path)
    target = path.resolve() if path.is_file() else path
    draft = target.with_name(f".{os.getpid()}.{target.name}")  # the ending says what kind of picture it is
    try:
        if stream(target):
            write(target)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        os.replace(draft, target)
    except Exception as error:
        if isinstance(error, OSError) or any(words in str(error) for words in FULL):
            raise wrong("file", f"{path}: {reason(error)}", "one that can be written", OSError) from error
        raise
    finally:
        with suppress(OSError):
            draft.unlink()


def stream(path: Path) -> bool:
    """Whether the path is a device or a pipe, which must not be replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_file(path: str | Path, name: str = "file", *, made: bool = False) -> None:
    """Raises unless a file can be written at ``path``, before the work whose result it is to hold.

    Args:
        name: of what was asked for. made: whether folders above it will be made.

    Raises:
        OSError: a folder stands there, a file stands where a folder is meant, or nothing may be written.
    """
    path = Path(path)
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not there.is_dir() or (there != path.absolute().parent and not made):
        raise wrong(name, str(path), "a file in a folder that is there", OSError)
    if not os.access(path if path.exists() else there, os.W_OK):
        raise wrong(name, f"{path}: no permission to write", "one that can be written", OSError)


def write_text(path: str | Path, text: str) -> None:
    """`write_whole` of a text, in UTF-8.

    Raises:
        OSError: it cannot be written: where, and why.
    """
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
