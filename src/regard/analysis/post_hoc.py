"""Attention beside post-hoc explanations: of a classifier of one attention layer all three have exact values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by

WIDTH = 25.0
"""Of LIME's kernel, as its text explainer has it: distances there are a hundred times 1 − cosine."""
MOST = 14
"""Words of which all subsets are looked at."""


@dataclass(frozen=True)
class OneQuery:
    """A classifier of a single attention layer with a learned query.

        f(x) = Σ_h w_h · Σ_j α_hj V_h x_j,   α_hj = softmax_j(q_h · K_h x_j / √d)

    Args:
        q: ``(heads, d)``. k: ``(heads, d, c)``. v: ``(heads, e, c)``. w: ``(heads, e)``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    w: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """``q_h · K_h x_j / √d (heads, words)``."""
        return torch.einsum("hd,hdc,jc->hj", self.q, self.k, x) / self.q.shape[1] ** 0.5

    def weights(self, x: Tensor, kept: Tensor | None = None, unknown: Tensor | None = None) -> Tensor:
        """α ``(…, heads, words)`` of the words ``x (words, c)``; of the others of ``kept (…, words)`` bool each becomes
        the word ``unknown (c,)``, or is left out where there is none."""
        scores = self.scores(x)
        if kept is not None:
            other = torch.full((), -math.inf, dtype=x.dtype) if unknown is None else self.scores(unknown[None])
            scores = torch.where(kept[..., None, :], scores, other)
        return scores.softmax(-1)

    def evidence(self, x: Tensor) -> Tensor:
        """``w_h · V_h x_j (heads, words)``: what each word says to the output, weighted by α."""
        return torch.einsum("he,hec,jc->hj", self.w, self.v, x)

    def __call__(self, x: Tensor, kept: Tensor | None = None, unknown: Tensor | None = None) -> Tensor:
        said = self.evidence(x)
        if kept is not None and unknown is not None:
            said = torch.where(kept[..., None, :], said, self.evidence(unknown[None]))
        return (self.weights(x, kept, unknown) * said).sum((-2, -1))


@published(
    "attention_vs_post_hoc",
    family="observe",
    kind="analysis",
    row=19,
    title="Attention Meets Post-hoc Interpretability: A Mathematical Perspective",
    arxiv="2402.03485",
    year=2024,
    fidelity="hand values",
    claim=(
        Claim(
            "LIME of 5,000 samples is within 5% of its limit",
            cells="posthoc.explained",
            holds="posthoc.samples_reach_the_limit",
        ),
        Claim(
            "words that speak against the output have negative coefficients of LIME, and no negative weights",
            cells="posthoc.explained",
            holds="posthoc.signs_are_seen",
        ),
        Claim(
            "what a word says, weighted by its attention, less what an unknown word says, follows LIME's limit",
            cells="posthoc.explained",
            holds="posthoc.approximation_follows",
        ),
    ),
)
@shown_by(lambda: [Sample("against autograd", gradient, {"known": against_autograd})])
def gradient(model: OneQuery, x: Tensor) -> Tensor:
    """The gradient of the output by each word's embedding, ``(words, c)``, in closed form.

        ∂f/∂x_t = Σ_h α_ht ( V_hᵀ w_h + (e_ht − Σ_j α_hj e_hj) K_hᵀ q_h / √d ),   e_hj = w_h · V_h x_j

    Paper: Lopardo, Precioso and Garreau, arXiv 2402.03485.
    """
    weights, evidence = model.weights(x), model.evidence(x)
    over = evidence - (weights * evidence).sum(1, keepdim=True)
    said = torch.einsum("he,hec->hc", model.w, model.v)
    asked = torch.einsum("hd,hdc->hc", model.q, model.k) / model.q.shape[1] ** 0.5
    return torch.einsum("hj,hc->jc", weights, said) + torch.einsum("hj,hc->jc", weights * over, asked)


def against_autograd() -> tuple[Tensor, Tensor]:
    """The gradient of a random model, and what differentiation gives."""
    model, x = drawn(0), torch.randn(7, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_(True)
    return gradient(model, x.detach()), torch.autograd.grad(model(x), x)[0]


def drawn(seed: int, heads: int = 2, size: int = 5, channels: int = 11) -> OneQuery:
    """A classifier with random weights, in float64."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((heads, size), (heads, size, channels), (heads, size, channels), (heads, size))
    return OneQuery(*(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes))


def lime(
    model: OneQuery, x: Tensor, samples: int | None = None, seed: int = 0, unknown: Tensor | None = None
) -> Tensor:
    """LIME's coefficient of each word ``(words,)``: a linear model of the output where words are left out at random.

    With ``unknown (c,)`` each word that is left out becomes that word, as in the paper. How many are left out is drawn
    evenly from 1 to all but one, then which; a text with share s of its words left counts
    ``exp(−(100 (1 − √s))² / 2 · 25²)``. Least squares without penalty.

    Args:
        samples: how many texts, None for the limit of many: all subsets with their chances.

    Raises:
        ValueError: no or one word, or for the limit more than `MOST`.
    """
    n = len(x)
    if n < 2 or (samples is None and n > MOST):
        raise wrong("x", f"{n} words", f"2 to {MOST}" if samples is None else "at least 2")
    kept, chances = subsets(n) if samples is None else drawn_texts(n, samples, seed)
    share = kept.double().mean(1)
    weights = chances * torch.exp(-((100 * (1 - share.sqrt())) ** 2) / (2 * WIDTH**2))
    design = torch.cat([torch.ones(len(kept), 1, dtype=torch.float64), kept.double()], 1) * weights.sqrt()[:, None]
    return torch.linalg.lstsq(design, (model(x, kept, unknown) * weights.sqrt())[:, None]).solution[1:, 0]


def approximation(model: OneQuery, x: Tensor, unknown: Tensor) -> Tensor:
    """The paper's approximation of LIME's limit for long texts, ``(words,)``, where words become ``unknown (c,)``.

        β_j ≈ 3/2 Σ_h ( α_hj e_hj − e_hu / n ),   e_hj = w_h · V_h x_j

    e_hu is what the unknown word says, and n how many words there are: α in a text of that word alone is 1 / n.

    Paper: Lopardo, Precioso and Garreau, arXiv 2402.03485, whose heads are averaged where w sums them up here.
    """
    return 1.5 * ((model.weights(x) * model.evidence(x)).sum(0) - model.evidence(unknown[None]).sum() / len(x))


def subsets(n: int) -> tuple[Tensor, Tensor]:
    """All texts with 1 to n − 1 words left out ``(texts, n)`` bool, and their chances."""
    rows, chances = [], []
    for out in range(1, n):
        every = list(combinations(range(n), out))
        kept = torch.ones(len(every), n, dtype=torch.bool)
        kept[torch.arange(len(every))[:, None], torch.tensor(every)] = False
        rows.append(kept)
        chances.append(torch.full((len(every),), 1 / ((n - 1) * len(every)), dtype=torch.float64))
    return torch.cat(rows), torch.cat(chances)


def drawn_texts(n: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random texts of this kind."""
    draw = torch.Generator().manual_seed(seed)
    out = torch.randint(1, n, (samples,), generator=draw)
    order = torch.rand(samples, n, generator=draw).argsort(1).argsort(1)
    return order >= out[:, None], torch.full((samples,), 1 / samples, dtype=torch.float64)
