"""The text of each token, as it reads in the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PART = "\ufffd"
"""Shown for a token that is a part of a character."""
CONTEXT = 8
"""Tokens before one that are enough for a tokenizer to decode it as it stands."""


def encode(tokenizer: Any, text: str) -> tuple[list[int], list[str], list[bool]]:
    """``(ids, texts, special)`` of a document: the texts that are not special, joined, give the document."""
    if not getattr(tokenizer, "is_fast", False):
        ids = list(tokenizer(text)["input_ids"])
        return (ids, *decode(tokenizer, ids))
    coded = tokenizer(text, return_offsets_mapping=True)
    ids = list(coded["input_ids"])
    special = specials(tokenizer, ids)
    return (
        ids,
        cut(text, list(coded["offset_mapping"]), [tokenizer.convert_ids_to_tokens(i) for i in ids], special),
        special,
    )


def specials(tokenizer: Any, ids: Sequence[int]) -> list[bool]:
    """Which of the tokens stand for no text."""
    known = set(tokenizer.all_special_ids)
    return [token in known for token in ids]


def cut(text: str, offsets: Sequence[tuple[int, int]], names: Sequence[str], special: Sequence[bool]) -> list[str]:
    """The document cut at the tokens; what no token covers, such as a space, goes to the token after it."""
    texts, cursor, plain = list(names), 0, [i for i, it_is in enumerate(special) if not it_is]
    for place, i in enumerate(plain):
        start, stop = offsets[i]
        following = offsets[plain[place + 1]][0] if place + 1 < len(plain) else len(text)
        whole = min(stop, max(following, cursor))
        broken = start < cursor or following < stop
        texts[i] = text[cursor:whole] + (PART if broken else "")
        cursor = max(cursor, stop)
    if plain:
        texts[plain[-1]] += text[cursor:]
    return texts


def decode(tokenizer: Any, ids: Sequence[int], first: int = 0) -> tuple[list[str], list[bool]]:
    """``(texts, special)`` of the tokens from ``first`` on, each decoded after those before it."""
    special = specials(tokenizer, ids)
    texts = [
        tokenizer.convert_ids_to_tokens(int(ids[i])) if special[i] else piece(tokenizer, ids, special, i)
        for i in range(first, len(ids))
    ]
    return texts, special[first:]


def piece(tokenizer: Any, ids: Sequence[int], special: Sequence[bool], i: int) -> str:
    """What token ``i`` adds to the text before it; `PART` where it ends a character that others began."""
    before = [ids[j] for j in range(max(0, i - CONTEXT), i) if not special[j]]
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    old, new = tokenizer.decode(before, **plain), tokenizer.decode([*before, ids[i]], **plain)
    return new[len(old) :] if new.startswith(old) else PART
