"""The text of each token, as it reads in the document: joined, the texts give the document back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BROKEN = "\ufffd"
"""What a tokenizer decodes bytes to that are no whole character."""
LONGEST = 4
"""Bytes of a character at most: tokens that are still no character after as many never become one."""
CONTEXT = 8
"""Tokens before one that are enough for a tokenizer to decode it as it stands."""


@dataclass
class Tokens:
    """The tokens of a document.

    Args:
        ids: of the vocabulary. texts: what each stands for in the document; joined, they give it back. special: which
            the tokenizer calls special. names: of tokens without a text, that of the vocabulary. parts: of tokens that
            end within a character, the token that has the character's text: the last of those that make it.
        turns: of a conversation, ``(role, first token, last token + 1)`` of each message's own words.
    """

    ids: list[int]
    texts: list[str]
    special: list[bool]
    names: dict[int, str] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)
    turns: list[tuple[str, int, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Tokens) -> Tokens:
        shift = len(self)
        names = self.names | {i + shift: name for i, name in other.names.items()}
        parts = self.parts | {i + shift: end + shift for i, end in other.parts.items()}
        turns = self.turns + [(role, start + shift, stop + shift) for role, start, stop in other.turns]
        return Tokens(self.ids + other.ids, self.texts + other.texts, self.special + other.special, names, parts, turns)

    @property
    def document(self) -> dict[str, Any]:
        """As tokens.json has them."""
        return {
            **{"ids": self.ids, "texts": self.texts, "special": self.special},
            **{name: {str(i): value for i, value in getattr(self, name).items()} for name in ("names", "parts")},
            **({"turns": [list(turn) for turn in self.turns]} if self.turns else {}),
        }


def label(tokens: dict[str, Any], token: int) -> str:
    """What to call a token of a tokens.json: its text, ``字 1/3`` for a piece of a character, or its name."""
    texts, parts = tokens["texts"], tokens.get("parts", {})
    end, first = parts.get(str(token)), token
    if texts[token] or end is None:
        return texts[token] or tokens.get("names", {}).get(str(token), "")
    while parts.get(str(first - 1)) == end:
        first -= 1
    return f"{texts[end][0]} {token - first + 1}/{end - first + 1}"


def encode(tokenizer: Any, text: str, special: bool = True) -> Tokens:
    """The tokens of a document; ``special``: with those that the tokenizer puts around a text."""
    bare: dict[str, Any] = {} if special else {"add_special_tokens": False}
    if not getattr(tokenizer, "is_fast", False):
        ids = list(tokenizer(text, **bare)["input_ids"])
        return tokens_of(tokenizer, ids, *aligned(text, *decoded(tokenizer, ids)))
    coded = tokenizer(text, return_offsets_mapping=True, **bare)
    return tokens_of(tokenizer, list(coded["input_ids"]), *cut(text, list(coded["offset_mapping"])))


def decode(tokenizer: Any, ids: Sequence[int], first: int = 0) -> Tokens:
    """The tokens from ``first`` on, each decoded after those before it; special ones have no text."""
    start = max(0, first - CONTEXT)
    while start and text_of(tokenizer, ids[start:first]).startswith(BROKEN):
        start -= 1  # bytes of a character whose first is missing may spoil those after them
    texts, parts = decoded(tokenizer, ids[start:], first - start)
    return tokens_of(tokenizer, list(ids[first:]), texts, parts)


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """What these tokens alone are decoded to."""
    plain = [int(i) for i in ids]
    return tokenizer.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def unnamed(ids: Sequence[int]) -> Tokens:
    """Tokens without a tokenizer."""
    return Tokens(list(ids), [f"⟨{i}⟩" for i in ids], [False] * len(ids))


def tokens_of(tokenizer: Any, ids: list[int], texts: list[str], parts: dict[int, int]) -> Tokens:
    """With names for those that have no text."""
    names = {i: str(tokenizer.convert_ids_to_tokens(ids[i])) for i, text in enumerate(texts) if not text}
    return Tokens(ids, texts, specials(tokenizer, ids), names, parts)


def specials(tokenizer: Any, ids: Sequence[int]) -> list[bool]:
    """Which of the tokens the tokenizer calls special, by role or as an added token."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    known = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    return [token in known for token in ids]


def cut(text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[str], dict[int, int]]:
    """``(texts, parts)``: the document cut where tokens end.

    A character that several tokens share goes to the last of them; what none covers, such as a space, to the token
    after it, and what comes after all of them to the last. A token at (0, 0) was added and stands for nothing.
    """
    if not spans:
        return [], {}
    placed = [i for i, span in enumerate(spans) if tuple(span) != (0, 0)] or [len(spans) - 1]
    texts, parts, cursor, open_ = [""] * len(spans), dict[int, int](), 0, list[tuple[int, int]]()
    for place, i in enumerate(placed):
        last = place + 1 == len(placed)
        end = len(text) if last else max(cursor, min(spans[i][1], spans[placed[place + 1]][0]))
        texts[i] = text[cursor:end]
        parts |= {token: i for token, at in open_ if at < end}
        open_ = [(token, at) for token, at in open_ if at >= end]
        if not last and spans[i][1] > end:
            open_.append((i, end))
        cursor = end
    return texts, parts


def decoded(tokenizer: Any, ids: Sequence[int], first: int = 0) -> tuple[list[str], dict[int, int]]:
    """``(texts, parts)`` of the tokens from ``first`` on: what each adds to the text of those before it.

    Tokens that end within a character wait for the one that ends it, which then has the text. Special ones have none.
    """
    special = specials(tokenizer, ids)
    plain = [i for i in range(len(ids)) if not special[i]]
    texts, parts, waiting = [""] * len(ids), dict[int, int](), list[int]()
    done = begin = sum(i < first for i in plain)
    shown = 0  # characters that tokens from `done` on already have
    whole_at = [0]  # places where no character is open

    def read(start: int, stop: int) -> str:
        return text_of(tokenizer, [ids[i] for i in plain[start:stop]])

    for place in range(begin, len(plain)):
        i, start = plain[place], max(at for at in whole_at if at <= max(0, done - CONTEXT))
        before, whole = read(start, done), read(start, place + 1)
        fresh = (whole if whole.startswith(before) else before + read(done, place + 1))[len(before) + shown :]
        ready = fresh.rstrip(BROKEN)
        if not ready and fresh and len(waiting) + 1 < LONGEST and place + 1 < len(plain):
            waiting.append(i)
            continue
        whole_so_far = ready == fresh or not ready or place + 1 == len(plain)
        texts[i] = fresh if whole_so_far else ready
        parts |= dict.fromkeys(waiting, i)
        waiting = [] if whole_so_far else [i]
        done, shown = (place + 1, 0) if whole_so_far else (done, shown + len(ready))
        whole_at = [start, *(at for at in whole_at if at > start), *([done] if whole_so_far else [])]
    return texts[first:], {i - first: end - first for i, end in parts.items()}


def aligned(text: str, texts: list[str], parts: dict[int, int]) -> tuple[list[str], dict[int, int]]:
    """The document cut where these texts end in it; one that it does not have gets nothing, or what is left over."""
    spans, cursor = [(0, 0)] * len(texts), 0
    for i, piece in enumerate(texts):
        bare = piece.strip() or piece
        at = text.find(bare, cursor, cursor + 2 * len(piece) + CONTEXT) if bare else -1
        if at >= 0:
            cursor = at + len(bare)
            spans[i] = (at, cursor)
    return cut(text, spans)[0], parts
