"""Where passages stand in a text, in tokens: what edits of keys want to know."""

from __future__ import annotations

from typing import Any

from regard.core.errors import wrong


def spans_of(tokenizer: Any, text: str, *passages: str) -> list[tuple[int, int]]:
    """``(start, stop)`` in tokens of the text, as the tokenizer makes them of it, of every place of the passages.

    Args:
        tokenizer: a fast one, which knows where its tokens come from. text: the whole prompt. passages: parts of it.

    Raises:
        ValueError: a passage that is not in the text; a tokenizer that knows no places.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise wrong(
            "tokenizer", f"a {type(tokenizer).__name__}", "a fast tokenizer, which knows where tokens come from"
        )
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    found = []
    for passage in passages:
        first = text.find(passage) if passage else -1
        if first < 0:
            raise wrong("passages", repr(passage), "a part of the text, letter by letter")
        while first >= 0:
            last = first + len(passage)
            inside = [
                index for index, (start, stop) in enumerate(offsets) if start < last and stop > first and stop > start
            ]
            found.append((inside[0], inside[-1] + 1))
            first = text.find(passage, last)
    return sorted(set(found))
