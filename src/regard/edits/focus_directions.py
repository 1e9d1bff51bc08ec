"""Focus directions: learned vectors in the queries and keys of heads that look at what is relevant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample


@published(
    "focus_directions",
    family="steering",
    kind="edit",
    row=28,
    title="Focus Directions Make Your Language Models Pay More Attention to Relevant Contexts",
    arxiv="2503.23306",
    year=2025,
    fidelity="hand values",
    claim=Claim(
        "learned directions raise the attention to the asked line by 30% and recall it better, random ones do not: "
        "lookup in SmolLM2",
        cells="focus.directed",
        holds="focus.looks_where_asked",
    ),
)
class FocusDirections(Edit):
    """Vectors added to the queries and keys of contextual heads, for all tokens.

        q_i ← q_i + α d_q,   k_j ← k_j + α d_k,   before positions are turned into them

    After them a vector that is added to all keys would change nothing: A is a softmax. The cache holds the keys that
    were added to, so that a text which was read without the edit keeps its own.

    Args:
        of_queries: d_q by layer, ``(heads, d)``, zeros for other heads; `hosts.focus.learned` learns them.
        of_keys: d_k by layer, ``(kv_heads, d)``. alpha: α. layers, batch: see `core.edit.Where`. rows: positions of
            the tokens whose queries and keys are added to, all of them unless they are given.

    Raises:
        ValueError: while it runs, directions of another size than a layer's queries or keys; a model without modules
            ``q_proj`` and ``k_proj``.

    The α of a prompt at which the mass that is taken from the sink stays within a range: `hosts.focus_control`.

    Departs from it: of which loss, and for how long, directions are learned is not told where it could be read; ours is
    that of `hosts.focus.learned`.
    """

    dial: ClassVar[tuple[str, float] | None] = ("alpha", 0.0)
    parts = ("q_pre", "k_pre")

    def __init__(
        self,
        of_queries: Mapping[int, Tensor],
        of_keys: Mapping[int, Tensor],
        alpha: float = 1.0,
        *,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if of_queries.keys() != of_keys.keys():
            what = f"layers {sorted(of_keys)}"
            raise wrong("of_keys", what, f"those of the queries' directions, {sorted(of_queries)}")
        super().__init__(Where(of_queries.keys() if layers is None else layers, None, rows, batch=batch))
        self.of_queries, self.of_keys, self.alpha = of_queries, of_keys, alpha

    def hidden(self, x: Tensor, place: Place) -> Tensor:
        name = "of_queries" if place.part == "q_pre" else "of_keys"
        directions = getattr(self, name)
        if place.layer not in directions:
            raise wrong(name, f"none of layer {place.layer}", "directions of every layer that is edited")
        added = directions[place.layer].to(x).flatten()
        if added.shape[0] != x.shape[2]:
            what = f"{tuple(directions[place.layer].shape)} of layer {place.layer}"
            raise wrong(name, what, f"heads times their size that make {x.shape[2]}")
        return x + self.alpha * added

    @classmethod
    def examples(cls) -> list[Sample]:
        q = {layer: torch.linspace(-1, 2, 24).view(6, 4) for layer in (0, 1)}
        k = {layer: torch.linspace(1, -1, 12).view(3, 4) for layer in (0, 1)}
        return sampled(cls(q, k, 0.5), cls(q, k, -1.0, layers=[1], rows=slice(3, None)))
