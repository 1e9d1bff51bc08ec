"""What people type: lists of lengths, mechanisms with their arguments."""

from __future__ import annotations

from regard.core.build import parse, split_outside
from regard.core.errors import wrong

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def parse_length(text: str, option: str = "--lengths") -> int:
    """Tokens: ``512``, ``4k`` for 4,096, ``1m`` for 1,048,576. ``option``: what errors call it."""
    digits = text.strip().lower().rstrip("km")
    unit = text.strip().lower()[len(digits) :]
    if not digits.isdigit() or unit not in UNITS or int(digits) < 1:
        raise wrong(option, repr(text), "numbers of tokens from 1, such as 512, 4k or 1m")
    return int(digits) * UNITS[unit]


def parse_lengths(text: str, option: str = "--lengths") -> list[int]:
    """``1k,4k`` is these two, ``1k..32k`` each power of two times the first up to the last, ascending.

    Raises:
        ValueError: no such list, in the name of the ``option``.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        length, stop = parse_length(first, option), parse_length(last if dots else first, option)
        if stop < length:
            raise wrong(option, repr(part), "a range that rises, such as 1k..32k")
        while length <= stop:
            found.add(length)
            length *= 2
    return sorted(found)


def parse_mechanism(text: str) -> str:
    """``window,size=64`` or ``window(size=64)``, as the latter; ``softmax with nexus(order=2)`` as it is.

    Raises:
        ValueError: neither of them.
    """
    text, projection = parted(text)
    if projection != "grouped":
        parse(projection)
        return f"{parse_mechanism(text)} with {projection}"
    name, *arguments = split_outside(text, ",")
    written = f"{name}({', '.join(argument.strip() for argument in arguments)})" if arguments else text.strip()
    parse(written)
    return written


def parted(text: str) -> tuple[str, str]:
    """``(mechanism, projection)`` of ``softmax with nexus(order=2)``; without any the projection is ``grouped``."""
    mechanism, _, projection = text.partition(" with ")
    return mechanism.strip(), projection.strip() or "grouped"
