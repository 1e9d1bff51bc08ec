"""Taking attention layers out of a model: by their weights, or by what each costs on texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from regard.analysis.gate_norm import gate_norms
from regard.core.errors import did_you_mean, wrong
from regard.hosts.attention_interface import host
from regard.hosts.prune import Pruned, attention_layers

WAYS = ("gate_norm", "loss")


def prune(
    model: PreTrainedModel,
    by: str | Sequence[int] = "gate_norm",
    share: float = 0.2,
    *,
    texts: Sequence[Tensor] = (),
) -> Pruned:
    """Takes the attention of some layers out of a Transformers model, and their keys and values out of its cache.

    For the length of a block, or for good:

        with regard.prune(model, "loss", share=0.2, texts=texts) as pruned:
            out = model.generate(**batch)

        regard.prune(model, [21, 24, 27]).install()

    A layer's feed-forward network stays. Masks, positions, padding, beams and `generate` are as before; a layer that is
    out takes a byte a token in the cache, and no time.

    Args:
        model: a decoder. by: ``"gate_norm"``, the layers of smallest norm (`regard.analysis.gate_norm`), at once and
            without data; ``"loss"``, those whose absence alone raises the loss on ``texts`` least, one pass for each
            layer; or the layers themselves. share: of the layers, rounded down. texts: token ids ``(n,)`` each.

    Raises:
        TypeError: not a Transformers model. LookupError: another way. ValueError: no layer to take out or all of them,
            no texts to measure on, or a model without one attention in each layer.
    """
    model = host(model)
    if not isinstance(by, str):
        return Pruned(model, sorted(by))
    if by not in WAYS:
        raise wrong("by", repr(by), f"one of {', '.join(WAYS)}, or layers{did_you_mean(by, WAYS)}", LookupError)
    if by == "loss" and not texts:
        raise wrong("texts", "none", "some, of your kind, to measure the loss on")
    worth = gate_norms(model) if by == "gate_norm" else losses_without(model, texts)
    order = sorted(range(len(worth)), key=lambda layer: worth[layer])
    return Pruned(model, sorted(order[: int(share * len(order))]), worth)


def losses_without(model: PreTrainedModel, texts: Sequence[Tensor]) -> list[float]:
    """The loss on texts without each layer's attention, one at a time."""
    found = []
    for layer in range(len(attention_layers(model))):
        with Pruned(model, [layer]):
            found.append(loss_of(model, texts))
    return found


@torch.no_grad()
def loss_of(model: PreTrainedModel, texts: Sequence[Tensor]) -> float:
    """Nats a token."""
    total, count = 0.0, 0
    for ids in texts:
        logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0, :-1].float()
        total += cross_entropy(logits, ids[1:].to(logits.device), reduction="sum").item()
        count += len(ids) - 1
    return total / count
