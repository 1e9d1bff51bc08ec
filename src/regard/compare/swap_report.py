"""What a model loses when its attention is swapped: loss and recall, before and after, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong
from regard.hosts.swap import swap
from regard.tasks import Recall, accuracy, plain_encoder, word_ids


@dataclass(frozen=True)
class Swapped:
    """One way of swapping, measured.

    Args:
        layers: the index of the one swapped layer, "none" or "all".
        loss: nats per token on the text. recall: share of right answers by length.
    """

    layers: int | str
    loss: float
    recall: dict[int, float]


def swap_report(
    model: Any,
    tokenizer: Any,
    mechanism: str,
    text: str,
    lengths: Sequence[int] = (512, 1024),
    samples: int = 8,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Iterator[Swapped]:
    """Measures the model as it is, with ``mechanism`` in all attention layers, and in each of them alone.

    Loss is that of next-token prediction on ``text``, in windows of the largest length; recall asks for 8 values of
    ``key = value`` lines among random words, all of them in the context, ``samples`` contexts for each length.

    Args:
        progress: called with what is being measured, how many of the settings are, and of how many.

    Raises:
        ValueError: no lengths, the text is shorter than two tokens, or what `regard.swap` and the task refuse.
    """
    if not lengths:
        raise wrong("lengths", "none", "at least one")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) < 2:
        raise wrong("text", f"{len(ids)} tokens", "at least two: loss is that of the next token")
    encode, bos = plain_encoder(tokenizer), tokenizer.bos_token_id
    task = Recall(word_ids(tokenizer), 8, 0.5, tuple(encode(" =")), tuple(encode("\n")), bos)
    swap(model, mechanism)  # refused now, before anything long
    settings = ("none", "all", *range(model.config.num_hidden_layers))
    for done, layers in enumerate(settings):
        progress(f"{mechanism} in layers: {layers}", done, len(settings))
        chosen = [layers] if isinstance(layers, int) else None
        with nullcontext() if layers == "none" else swap(model, mechanism, layers=chosen):
            yield Swapped(
                layers,
                text_loss(model, ids, max(lengths), bos),
                accuracy(model, task, lengths, samples=samples, batch_size=4),
            )


@torch.no_grad()
def text_loss(model: Any, ids: Tensor, window: int, bos: int | None) -> float:
    """Nats per token of ``ids (n,)``, in windows that each begin with the beginning token, where there is one."""
    head, nats, count = torch.tensor([] if bos is None else [bos], dtype=torch.int64), 0.0, 0
    for piece in ids.split(window - len(head)):
        tokens = torch.cat([head, piece])[None].to(next(model.parameters()).device)
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        nats += F.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
        count += tokens.shape[1] - 1
    return nats / count
