"""Retention: rotary linear attention with a constant decay for each head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layer import Norm
from regard.core.mechanism import Example, LayerSpec
from regard.mechanisms.linear.base import Recurrent


@published(
    "retnet",
    family="linear",
    title="Retentive Network: A Successor to Transformer for Large Language Models",
    arxiv="2307.08621",
    year=2023,
    aliases=("retention",),
    fidelity="third-party code",
    claim=(
        Claim(
            "the parallel, the recurrent and the chunkwise form are equal",
            cells="recurrent.forms_of(kind=retnet)",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "one decoding step costs the same after any number of tokens",
            cells="recurrent.step_of(kind=retnet)",
            holds="recurrent.costs_the_same",
        ),
    ),
)
class Retention(Recurrent):
    """Causal linear attention whose memory fades at a fixed rate for each head, slowly for most.

        A_ij = γ_h^{i−j} q_i · k_j / √d  for j ≤ i,   γ_h = 1 − 2^{−5−h},   h = 0, 1, …

    A is ``weights``; γ is ``gammas``. Rotary positions, the norm of each head and the swish gate are its host's.

    Args:
        gammas: one for each head, above 0 and at most 1; None for those above.

    Raises:
        ValueError: a γ outside of (0, 1], or another number of them than q has heads.

    Paper: Sun et al., arXiv 2307.08621. Its xPos scaling is left out, as in its later code; its row normalisation is
    undone by the norm of each head.
    """

    layer = LayerSpec(norm=Norm(eps=1e-5), gate="silu")

    def __init__(self, gammas: Sequence[float] | None = None):
        super().__init__()
        if gammas is not None and not all(0 < gamma <= 1 for gamma in gammas):
            raise wrong("gammas", str(list(gammas)), "numbers above 0 and at most 1")
        self.gammas = None if gammas is None else tuple(gammas)

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q * q.shape[-1] ** -0.5, k

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        heads = k.shape[1]
        gammas = [1 - 2.0 ** (-5 - h) for h in range(heads)] if self.gammas is None else self.gammas
        if len(gammas) != heads:
            raise wrong("q", f"{heads} heads", f"{len(gammas)}, the number of gammas")
        logs = torch.tensor([math.log(gamma) for gamma in gammas], dtype=k.dtype, device=k.device)
        return logs[None, :, None].expand(1, heads, k.shape[2])

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("default γ", cls(), heads=3, kv_heads=3),
            Example("given γ, grouped", cls((1.0, 0.9, 0.5, 0.01)), heads=4, kv_heads=2),
        ]
