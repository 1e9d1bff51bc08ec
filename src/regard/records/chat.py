"""Conversations as the model reads them: its own chat template, and which tokens are whose words."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from regard.core.errors import wrong
from regard.records.token_texts import Tokens, encode

Messages = Sequence[Mapping[str, str]]
MARK = "\ue000{}\ue001"
"""What stands for a message while its place in the template is found: characters of a private area."""


def is_chat(text: Any) -> bool:
    """Whether this is a list of messages, and no text or token ids."""
    return not isinstance(text, str) and hasattr(text, "__len__") and len(text) > 0 and isinstance(text[0], Mapping)


def read_messages(content: str) -> list[dict[str, str]]:
    """The messages of a JSON list ``[{"role": "user", "content": "…"}, …]``; any other text is one of the user.

    Raises:
        ValueError: a JSON list of something else.
    """
    try:
        given = json.loads(content)
    except ValueError:
        given = None
    if not isinstance(given, list):
        return [{"role": "user", "content": content}]
    check(given)
    return given


def check(messages: Sequence[Any]) -> None:
    """Raises a ValueError unless every message has a role and a text."""
    for i, message in enumerate(messages):
        fields = [message.get(name) if isinstance(message, Mapping) else None for name in ("role", "content")]
        if not all(isinstance(field, str) and field for field in fields):
            raise wrong(f"messages[{i}]", f"{message!r}", "{'role': …, 'content': …}, both texts")
    if not messages:
        raise wrong("messages", "none", "at least one")


def encode_chat(tokenizer: Any, messages: Messages) -> Tokens:
    """The tokens of a conversation in the tokenizer's own chat template, with the turns of its messages.

    The template's header of an answer is added where the last message is not the assistant's.

    Raises:
        ValueError: no tokenizer or no template, messages that the template refuses, or that it rewrites.
    """
    check(messages)
    if getattr(tokenizer, "chat_template", None) is None:
        raise wrong("--chat", "a model whose tokenizer has no chat template", "one that has, or a text without --chat")
    document, spans = rendered(tokenizer, messages)
    tokens = encode(tokenizer, document, special=False)
    ends = list(accumulate(len(text) for text in tokens.texts))
    starts = [0, *ends[:-1]]
    for message, (start, stop) in zip(messages, spans, strict=True):
        tokens.turns.append((message["role"], bisect_right(ends, start), bisect_left(starts, stop)))
    return tokens


def rendered(tokenizer: Any, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
    """``(the conversation as text, where each message's own words stand in it)``.

    The places are those of marks that the template is given instead of the words.
    """
    ask = messages[-1]["role"] != "assistant"

    def apply(contents: Sequence[str]) -> str:
        told = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        try:
            return tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # templates raise what they like
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise wrong("--chat", f"messages that the chat template refuses ({why})", "roles in its order") from error

    marks = [MARK.format(i) for i in range(len(messages))]
    pattern, document = apply(marks), apply([message["content"] for message in messages])
    for said in ([m["content"] for m in messages], [m["content"].strip() for m in messages]):
        text, spans = pattern, []
        for mark, words in zip(marks, said, strict=True):
            at = text.find(mark)
            spans.append((at, at + len(words)))
            text = text.replace(mark, words, 1)
        if text == document and all(mark in pattern for mark in marks):
            return document, spans
    raise wrong("--chat", "a chat template that rewrites messages", "the conversation as it renders, as --text")
