"""What a head does to tokens whatever the text, from its weights alone: relations of tokens, its strongest tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, HeadScores, sample_moments
from regard.analysis.planted import model_sample
from regard.analysis.weights import HeadWeights, head_weights, unembedding
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample

Relation = tuple[int, int]
"""Ids of a source and a target token."""
AT_ONCE = 64
"""Rows of logits that are formed together."""


@published(
    "maps",
    family="observe",
    kind="analysis",
    row=94,
    title="Inferring Functionality of Attention Heads from their Parameters",
    arxiv="2412.11965",
    year=2024,
    fidelity="hand values",
    missing="descriptions of a head's strongest tokens by a language model",
    claim=(
        Claim(
            "what weights say of copying goes with what heads do in a text",
            cells="parameters.copying",
            holds="parameters.weights_tell",
        ),
        Claim(
            "without the heads that copy, by their weights, a repetition saves less than without random ones",
            cells="parameters.copying",
            holds="parameters.copying_heads_matter",
        ),
    ),
)
class HeadMaps(Analysis[Relation, HeadScores]):
    """The share of pairs of tokens that a head maps from one to the other, by its weights alone.

        M_h = E' W_VO U,   score_h = share of pairs (s, t) with t among the ``top`` of row s of M_h, and M_st > 0

    E' are the embeddings, after the first feed-forward network for heads of later layers, and after the norm before the
    head's layer; U has the last norm's weight in it. `suppression` takes −M.

    Args:
        top: 1 for copying, 10 for other relations in the paper. suppression: whether it keeps tokens from being said.

    Paper: Elhelo and Geva, arXiv 2412.11965.
    """

    name = "relation"

    @classmethod
    def examples(cls) -> list[Sample]:
        pairs = [(int(s), int(t)) for s, t in torch.randint(29, (40, 2), generator=torch.Generator().manual_seed(6))]
        known = {"known": by_dense_map}
        suppressed = model_sample(cls(7, True), pairs, "relation")
        return [model_sample(cls(), pairs, "relation", **known), replace(suppressed, label="suppression")]

    def __init__(self, top: int = 10, suppression: bool = False) -> None:
        if top < 1:
            raise wrong("top", str(top), "at least one token")
        self.top, self.suppression = top, suppression

    @torch.no_grad()
    def run(self, subject: Any, data: Iterable[Relation]) -> HeadScores:
        pairs = torch.tensor(list(data), dtype=torch.int64).reshape(-1, 2)
        if not len(pairs):
            raise wrong("data", "no pairs of tokens", "at least one")
        hits, rows = {}, unembedding(subject)
        for layer, of in enumerate(head_weights(subject)):
            states = of.norm(embedded(subject, pairs[:, 0], layer))
            hits[layer] = torch.stack([self.hits(head, rows, pairs[:, 1]) for head in outputs(of, states)], 1)
        return HeadScores(self.name, sample_moments(hits))

    def hits(self, outputs: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """``(pairs,)`` float: whether each target is among the first tokens that outputs ``(pairs, c)`` speak for."""
        found = []
        for some, wanted in zip(outputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            logits = (some @ rows.T) * (-1 if self.suppression else 1)
            own = logits.gather(1, wanted[:, None].to(logits.device))
            found.append(((logits > own).sum(1) < self.top) & (own[:, 0] > 0))
        return torch.cat(found).double().cpu()


def embedded(model: Any, ids: Tensor, layer: int) -> Tensor:
    """``(n, c)``: embeddings, with what the first feed-forward network adds to them where the layer stands after it.

    Raises:
        ValueError: a later layer of a model whose blocks have no ``mlp`` after ``post_attention_layernorm``.
    """
    x = model.get_input_embeddings()(ids.to(model.device))
    if not layer:
        return x
    block = getattr(model.base_model, "layers", [None])[0]
    norm, mlp = (getattr(block, name, None) for name in ("post_attention_layernorm", "mlp"))
    if norm is None or mlp is None:
        raise wrong("model", type(model).__name__, "one whose blocks have mlp and post_attention_layernorm")
    return x + mlp(norm(x))


def outputs(of: HeadWeights, states: Tensor) -> Tensor:
    """``(heads, n, c)``: what each head adds where all its weight lies on one of the states ``(n, c)``."""
    return torch.einsum("hec,nc,hde->hnd", of.shared(of.v), states, of.o)


@torch.no_grad()
def salient(model: Any, layer: int, head: int, ids: Sequence[int], top: int = 10) -> list[tuple[int, float]]:
    """The tokens among ``ids`` whose states the head amplifies most, ‖e W_VO‖ / ‖e‖, with that number."""
    of, tokens = head_weights(model)[layer], torch.as_tensor(ids)
    states = of.norm(embedded(model, tokens, layer))
    gain = outputs(of, states)[head].norm(dim=1) / states.norm(dim=1)
    best = gain.topk(min(top, len(tokens)))
    return [(int(tokens[i]), float(x)) for x, i in zip(best.values, best.indices, strict=True)]


def by_dense_map() -> tuple[Tensor, Tensor]:
    """Scores from the whole matrix M of every head, sorted, against those of the analysis."""
    from regard.analysis.planted import planted_model

    model, top = planted_model(), 4
    draw = torch.Generator().manual_seed(8)
    pairs = torch.randint(29, (23, 2), generator=draw)
    found = HeadMaps(top).run(model, [(int(s), int(t)) for s, t in pairs])
    got, want = [], []
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            everything = torch.arange(29)
            x = block.input_layernorm(embedded(model, everything, layer))
            attention = block.self_attn
            for head in (0, 1, 2):
                part = slice(6 * head, 6 * head + 6)
                ov = attention.o_proj.weight[:, part] @ attention.v_proj.weight[part]
                dense = x @ ov.T @ (model.lm_head.weight * model.model.norm.weight).T
                best = dense.argsort(1, descending=True)[:, :top]
                hit = [(int(t) in best[s].tolist()) and bool(dense[s, t] > 0) for s, t in pairs.tolist()]
                want.append(sum(hit) / len(hit))
                got.append(found.of((layer, head)))
    return torch.tensor(got), torch.tensor(want)
