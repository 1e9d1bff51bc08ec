"""`regard.look`: a record of what a model attends to in a text, which a notebook shows as its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from regard.core.errors import wrong
from regard.hosts.load import load, load_tokenizer
from regard.hosts.small import NAMES, TITLES
from regard.records.chat import Messages, is_chat
from regard.records.format import Record
from regard.records.record import record


def look(model: Any, text: str | Sequence[int] | Tensor | Messages, tokenizer: Any = None, **options: Any) -> Record:
    """What a model attends to in a text; the last line of a notebook's cell shows it as the page, inline.

    Args:
        model: any model that `records.record.record` takes, or the name of one: tiny, smollm2, minilm, a folder, an id
            of a hub. text: the document, token ids, or messages of a conversation. tokenizer: the model's own; None for
            that of the place that the model was loaded from. options: those of `records.record.record`, such as
            ``layers``, ``generate``, ``keep``, or ``target`` of an encoder-decoder.

    Raises:
        ValueError: as `records.record.record`; a text for a model whose tokenizer is not known.
    """
    if isinstance(model, str):
        options = {"name": TITLES.get(model), **options}
        model, own = load(model)
        tokenizer = own if tokenizer is None else tokenizer
    elif tokenizer is None and (isinstance(text, str) or is_chat(text)):
        tokenizer = tokenizer_of(model)
    return record(model, tokenizer, text, **options)


def tokenizer_of(model: Any) -> Any:
    """The tokenizer beside a model's weights."""
    origin = getattr(getattr(model, "config", None), "name_or_path", "")
    if not origin:
        wanted = f"a tokenizer, or token ids for a text; models of known places ({', '.join(NAMES)} …) need none"
        raise wrong("tokenizer", f"None, for a {type(model).__name__} of no known place", wanted)
    return load_tokenizer(origin)
