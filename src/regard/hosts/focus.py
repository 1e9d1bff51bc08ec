"""What focus directions need of a model: the heads that look at what is relevant, and directions that are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from regard.core.edit import Edit, Heads, Place, Where
from regard.core.errors import wrong
from regard.core.frozen import frozen
from regard.edits.focus_directions import FocusDirections
from regard.hosts import caches
from regard.hosts.injection import together
from regard.hosts.steer import steer
from regard.hosts.swap import head_dim_of

LEAST = 1e-6
"""The least mass of which a logarithm is taken."""


@dataclass(frozen=True)
class Marked:
    """A prompt, and where in it stands what is relevant to what follows.

    Args:
        ids: ``(n,)``. relevant: ``(start, stop)``, positions.
    """

    ids: Tensor
    relevant: tuple[int, int]


class Mass(Edit):
    """Reads the attention of each prompt's last token to what is relevant, with gradients, and changes nothing.

    Args:
        examples: the prompts of the batch. heads: which are read, None for all of all layers.
    """

    def __init__(self, examples: Sequence[Marked], heads: Heads | None = None) -> None:
        keys = {row: [one.relevant] for row, one in enumerate(examples)}
        super().__init__(Where(None, heads, "last", keys))
        self.kept: dict[int, Tensor] = {}

    def masses(self, m: Tensor, place: Place) -> None:
        self.kept[place.layer] = m[:, self.where.chosen_heads(place), -1, 1]


def relevant_mass(
    model: PreTrainedModel, examples: Sequence[Marked], *edits: Edit, heads: Heads | None = None, shared: int = 0
) -> dict[int, Tensor]:
    """By layer ``(examples, heads)``: the mass that each prompt's last token gives to what is relevant.

    Args:
        shared: what the first so many tokens are is read once for all examples that have the same, which then have to
            be of one length.

    Raises:
        ValueError: examples of several lengths, or none behind what they share.
    """
    reading, ids = Mass(examples, heads), [one.ids for one in examples]
    if not shared:
        with steer(model, *edits, reading):
            model(**together(ids), use_cache=False, logits_to_keep=1)
        return reading.kept
    if len({len(one) for one in ids}) > 1 or not shared < len(ids[0]):
        what = f"{shared} of {sorted({len(one) for one in ids})} tokens"
        raise wrong("shared", what, "fewer than all, of examples of one length")
    contexts, rows = torch.stack(ids)[:, :shared].unique(dim=0, return_inverse=True)
    cache = DynamicCache(config=model.config)
    with steer(model, *edits):
        model(input_ids=contexts, logits_to_keep=1, **caches.given(model, cache))
        cache.reorder_cache(rows)
        with steer(model, reading):
            model(input_ids=torch.stack(ids)[:, shared:], logits_to_keep=1, **caches.given(model, cache))
    return reading.kept


@torch.no_grad()
def contextual_heads(
    model: PreTrainedModel, examples: Sequence[Marked], count: int, shared: int = 0
) -> dict[int, list[int]]:
    """The heads whose last token attends most to what is relevant, their mean over examples, by layer.

    Args:
        shared: see `relevant_mass`.

    Raises:
        ValueError: more heads than the model has.
    """
    means = {layer: mass.mean(0) for layer, mass in relevant_mass(model, examples, shared=shared).items()}
    every = [(float(mass), layer, head) for layer, row in means.items() for head, mass in enumerate(row)]
    if not 0 < count <= len(every):
        raise wrong("count", str(count), f"1 to {len(every)}, the heads of the model")
    found: dict[int, list[int]] = {}
    for _, layer, head in sorted(every, key=lambda one: -one[0])[:count]:
        found.setdefault(layer, []).append(head)
    return {layer: sorted(found[layer]) for layer in sorted(found)}


def learned(
    model: PreTrainedModel,
    heads: Mapping[int, Sequence[int]],
    examples: Sequence[Marked],
    steps: int = 50,
    rate: float = 0.05,
    alpha: float = 1.0,
    shared: int = 0,
) -> FocusDirections:
    """Directions that raise the mass which ``heads`` give to what is relevant, learned with the model frozen.

        loss = −mean log m_h over examples and heads

    Directions begin at zero, and those of other heads stay there; a kv head has one if one of its query heads does. For
    ``shared`` see `relevant_mass`.
    """
    sizes = head_sizes(model)
    of_queries, of_keys, masks = {}, {}, {}
    for layer, chosen in heads.items():
        query_heads, kv_heads, dim = sizes
        own = torch.zeros(query_heads, 1)
        own[list(chosen)] = 1
        masks[layer] = own, own.view(kv_heads, -1).amax(1, keepdim=True)
        of_queries[layer] = torch.zeros(query_heads, dim, requires_grad=True)
        of_keys[layer] = torch.zeros(kv_heads, dim, requires_grad=True)
    optimiser = torch.optim.Adam([*of_queries.values(), *of_keys.values()], lr=rate)

    def edit() -> FocusDirections:
        q = {layer: of_queries[layer] * masks[layer][0] for layer in heads}
        return FocusDirections(q, {layer: of_keys[layer] * masks[layer][1] for layer in heads}, alpha)

    with frozen(model.parameters()):
        for _ in range(steps):
            masses = relevant_mass(model, examples, edit(), heads=heads, shared=shared)
            loss = -torch.cat([masses[layer].flatten() for layer in heads]).clamp(min=LEAST).log().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    found = edit()
    return found.but(
        of_queries={layer: held.detach() for layer, held in found.of_queries.items()},
        of_keys={layer: held.detach() for layer, held in found.of_keys.items()},
    )


def head_sizes(model: PreTrainedModel) -> tuple[int, int, int]:
    """``(heads, kv_heads, d)`` of a model's attention, as its configuration has them."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, head_dim_of(model)


def random_like(edit: FocusDirections, seed: int) -> FocusDirections:
    """Directions of the same norms, drawn."""
    source = torch.Generator().manual_seed(seed)

    def drawn(held: Mapping[int, Tensor]) -> dict[int, Tensor]:
        noise = {layer: torch.randn(each.shape, generator=source) for layer, each in held.items()}
        return {
            layer: noise[layer] * (each.norm(dim=1) / noise[layer].norm(dim=1))[:, None] for layer, each in held.items()
        }

    return edit.but(of_queries=drawn(edit.of_queries), of_keys=drawn(edit.of_keys))
