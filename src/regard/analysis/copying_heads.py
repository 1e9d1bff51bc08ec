"""Heads that copy, by their weights: whether what a head takes from a token speaks for that token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import HeadScores, sample_moments
from regard.analysis.weights import HeadWeights, gain_of, head_weights, unembedding
from regard.core.errors import wrong
from regard.networks.lm import LM
from regard.networks.untied import UntiedLM
from regard.projections.base import Grouped


@torch.no_grad()
def copying_eigenvalues(model: Any) -> dict[int, Tensor]:
    """How positive the eigenvalues of each head's OV circuit are, by layer ``(heads,)`` float64.

        Σ_k Re λ_k / Σ_k |λ_k| of U W_O W_V E'ᵀ, which maps tokens to logits

    One where the head only raises what it reads, as copying heads do, minus one where it only lowers it. E' are the
    embeddings behind the norm before the head, U the output matrix with the last norm's weight.

    Args:
        model: a Transformers model whose weights of heads are known, or an `LM` with grouped projections.

    Papers: Elhage et al., 2021; Olsson et al., arXiv 2209.11895.
    """
    layers, embeddings, rows = parts(model)
    found = {}
    for layer, of in enumerate(layers):
        across = of.norm(embeddings).double().T @ rows.double()  # channels that are read by channels that are written
        inner = torch.einsum("hec,cz,hzf->hef", of.shared(of.v).double(), across, of.o.double())
        values = torch.linalg.eigvals(inner)
        found[layer] = values.sum(1).real / values.abs().sum(1).clamp(min=1e-300)
    return found


@torch.no_grad()
def copying_scores(model: Any, ids: Tensor) -> HeadScores:
    """How much of what each head raises among some tokens is the token that it reads, were all its weight on it.

        score = mean over tokens t of ReLU(l_t − l̄) / Σ_{s among the tokens} ReLU(l_s − l̄),   l = U W_O W_V e'_t

    l̄ is the mean of all logits. One over the number of tokens is chance; a head that raises none of them has 0.

    Args:
        model: as for `copying_eigenvalues`. ids: ``(n,)`` different tokens.

    Raises:
        ValueError: fewer than two tokens, or one twice.

    Paper: Olsson et al., arXiv 2209.11895, which weighs by the attention of a text; here each token is read alone.
    """
    if ids.dim() != 1 or len(ids) < 2 or len(ids.unique()) < len(ids):
        raise wrong("ids", f"{ids.tolist()}", "at least two different tokens, (n,)")
    layers, embeddings, rows = parts(model)
    few, centre, found = rows[ids].double(), rows.double().mean(0), {}
    for layer, of in enumerate(layers):
        read = of.norm(embeddings[ids]).double()
        written = torch.einsum("hec,nc,hze->hnz", of.shared(of.v).double(), read, of.o.double())
        raised = (written @ (few - centre).T).clamp(min=0)
        shares = raised.diagonal(dim1=1, dim2=2) / raised.sum(2).clamp(min=1e-300)
        found[layer] = shares.T
    return HeadScores("copying", sample_moments(found))


def parts(model: Any) -> tuple[list[HeadWeights], Tensor, Tensor]:
    """The weights of all heads, the embeddings, and the rows of logits, the last two ``(vocabulary, c)``.

    Raises:
        ValueError: an `LM` of another projection.
    """
    if not isinstance(model, LM):
        return head_weights(model), model.get_input_embeddings().weight.detach(), unembedding(model)
    found = []
    for block in model.layers:
        projection = block.attention.projection
        if type(projection) is not Grouped:
            raise wrong("model", f"a projection {type(projection).__name__}", "grouped projections")
        q, k, v = (
            part.weight.detach().unflatten(0, (count, -1))
            for part, count in zip((projection.q, projection.k, projection.v), projection.counts, strict=True)
        )
        o = projection.out.weight.detach().unflatten(1, (len(q), -1)).transpose(0, 1)
        found.append(HeadWeights(q, k, v, o, block.norms[0]))
    embeddings = model.embedding.weight.detach()
    rows = model.output.detach() if isinstance(model, UntiedLM) else embeddings
    return found, embeddings, rows * gain_of(model.norm, embeddings.shape[1])
