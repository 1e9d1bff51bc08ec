"""Sparse attention decomposition: the few directions of two states through which a head scores a pair of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head, Result
from regard.analysis.planted import planted_model
from regard.analysis.weights import HeadWeights, head_weights
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.edits.trace import Trace
from regard.hosts.attach import attach


@dataclass(frozen=True)
class Decomposition(Result):
    """The score of one pair as a sum of terms, one a singular direction.

    Args:
        layer, head, query, key: of the pair. asks: ``(d,)``, what each direction of the key is multiplied with:
            ``s σ_k (x_i · u_k)``. reads: ``(d, channels)``, these directions, v. state: ``(channels,)``, x_j.
    """

    layer: int
    head: int
    query: int
    key: int
    asks: Tensor
    reads: Tensor
    state: Tensor
    name = "sparse_decomposition"

    @property
    def terms(self) -> Tensor:
        """``(d,)``, by singular value."""
        return self.asks * (self.reads @ self.state)

    @property
    def score(self) -> float:
        """The sum of all terms."""
        return float(self.terms.sum())

    def fewest(self) -> list[int]:
        """The fewest terms whose sum reaches the score, the largest first; none where it is not above zero."""
        order = self.terms.argsort(descending=True)
        reached = self.terms[order].cumsum(0) >= self.score - 1e-9 * abs(self.score)
        return [] if self.score <= 0 else order[: int(reached.double().argmax()) + 1].tolist()

    def without(self, directions: Tensor) -> float:
        """The score for a key whose state has nothing in the span of ``directions (r, channels)``."""
        base = torch.linalg.qr(directions.T).Q
        return float(self.asks @ (self.reads @ (self.state - base @ (base.T @ self.state))))

    def table(self) -> list[dict[str, Any]]:
        kept = set(self.fewest())
        return [{"direction": k, "term": float(x), "kept": k in kept} for k, x in enumerate(self.terms)]


@published(
    "sparse_attention_decomposition",
    family="observe",
    kind="analysis",
    row=26,
    title="Sparse Attention Decomposition Applied to Circuit Tracing",
    arxiv="2410.00340",
    year=2024,
    fidelity="authors' code",
    claim=(
        Claim(
            "a fifth of the terms reaches the scores of pairs that heads attend to",
            cells="decomposed.attended",
            holds="decomposed.few_terms",
        ),
        Claim(
            "without what the key's state has in their directions most of the weight is gone, not without random ones",
            cells="decomposed.attended",
            holds="decomposed.signal_matters",
        ),
    ),
)
@shown_by(lambda: [Sample("planted", decompose, {"known": scores_of_a_model})])
def decompose(model: Any, ids: Tensor, head: Head, query: int, key: int) -> Decomposition:
    """The terms of the score of one pair, by the singular directions of Ω.

        score = s x_iᵀ Ω x_j = s Σ_k σ_k (x_i · u_k)(v_k · x_j),   Ω = W_Qᵀ R_iᵀ R_j W_K

    x are the states after the norm before the attention, R rotary positions, so that Ω depends on how far apart the
    tokens stand.

    Args:
        model: a Transformers model with known weights of heads and rotary positions. ids: ``(n,)``. query, key: slots.

    Raises:
        ValueError: a model without ``rotary_emb``, with biases or norms of queries and keys, or a pair that is not
            there.

    Which earlier heads wrote these directions into the two states: `signal_graph`.

    Paper: Franco and Crovella, arXiv 2410.00340; of models without rotary positions.
    """
    if not 0 <= key <= query < len(ids):
        raise wrong("query, key", f"{query}, {key}", f"0 <= key <= query < {len(ids)}")
    plain_products(model)
    trace = Trace("resid")
    with attach(model, edits=[trace]), torch.no_grad():
        model(input_ids=ids[None].to(model.device), use_cache=False)
    return of_states(model, head_weights(model)[head[0]], trace.get("resid", head[0])[0], head, query, key)


@torch.no_grad()
def of_states(model: Any, of: HeadWeights, states: Tensor, head: Head, query: int, key: int) -> Decomposition:
    """The same from the states ``(n, channels)`` that come into the head's block."""
    (x, y) = (of.norm(states[[query, key]])).double()
    u, sizes, reads = singular(model, of, head[1], query, key)
    return Decomposition(*head, query, key, sizes * (x @ u) / of.q.shape[1] ** 0.5, reads, y)


def singular(model: Any, of: HeadWeights, head: int, query: int, key: int) -> tuple[Tensor, Tensor, Tensor]:
    """``U (channels, d)``, ``σ (d,)`` and ``V (d, channels)`` of Ω of one head for tokens at these slots."""
    queries, keys = of.q[head].double(), of.shared(of.k)[head].double()
    turned = rotations(model, torch.tensor([query, key]), len(queries)).double()
    left, of_left = torch.linalg.qr((turned[0] @ queries).T)
    right, of_right = torch.linalg.qr((turned[1] @ keys).T)
    u, sizes, v = torch.linalg.svd(of_left @ of_right.T)
    return left @ u, sizes, (right @ v.T).T


def plain_products(model: Any) -> None:
    """Raises a ValueError for a model whose scores are more than products of its matrices' queries and keys."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        biased = last in ("q_proj", "k_proj") and getattr(module, "bias", None) is not None
        if biased or last in ("q_norm", "k_norm"):
            what = f"{type(model).__name__}, whose {name} {'has a bias' if biased else 'norms queries or keys'}"
            raise wrong("model", what, "one whose scores are products of states with its matrices alone")


def rotations(model: Any, positions: Tensor, size: int) -> Tensor:
    """``(positions, d, d)``: what rotary positions turn queries and keys by.

    Raises:
        ValueError: a model without them, or one that turns some of the coordinates alone.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        raise wrong("model", type(model).__name__, "one with rotary positions")
    cos, sin = (x[0] for x in rotary(torch.zeros(1, dtype=model.dtype), positions[None]))
    if cos.shape[1] != size:
        raise wrong("model", f"{cos.shape[1]} turned coordinates of {size}", "one that turns all of them")
    half, one = size // 2, torch.eye(size, dtype=cos.dtype)
    swapped = torch.cat([-one[half:], one[:half]])
    return torch.diag_embed(cos) + torch.diag_embed(sin) @ swapped


def scores_of_a_model() -> tuple[Tensor, Tensor]:
    """Sums of terms against products of the queries and keys that a model computes, of pairs of all its heads."""
    model, ids = planted_model(), torch.arange(3, 14)
    trace = Trace("q", "k")
    with attach(model, edits=[trace]), torch.no_grad():
        model(input_ids=ids[None], use_cache=False)
    got, want = [], []
    for layer in (0, 1):
        q, k = trace.get("q", layer)[0], trace.get("k", layer)[0]
        for head in (0, 1, 2):
            got.append(decompose(model, ids, (layer, head), 9, 4).score)
            want.append(float(q[head, 9] @ k[head, 4]) * q.shape[-1] ** -0.5)
    return torch.tensor(got), torch.tensor(want)
