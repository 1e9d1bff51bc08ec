"""How alike the states of two models, or of two layers, are: CKA, SVCCA and the largest correlation of neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by

KEPT = 0.99
"""Share of the variance whose directions SVCCA compares."""


@published(
    "model_similarity",
    family="observe",
    kind="analysis",
    row=346,
    title="Speech Representation Analysis based on Inter- and Intra-Model Similarities",
    arxiv="2406.16099",
    year=2024,
    fidelity="abstract only",
    missing="speech models",
    claim=(
        Claim(
            "models of other seeds come to like subspaces, and not to like neurons",
            cells="alike.seeds",
            holds="alike.subspaces_not_neurons",
        ),
        Claim(
            "a model that is tuned further stays like itself, and most in its lower layers",
            cells="alike.tuned",
            holds="alike.upper_layers_move",
        ),
        Claim(
            "heads of models of other seeds look alike more than those of one that is not trained",
            cells="alike.looks",
            holds="alike.trained_heads_look_alike",
        ),
    ),
)
@shown_by(lambda: [Sample("turned and scaled", cka, {"known": turned})])
def cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of two sets of states of the same tokens, 0 to 1.

        CKA = ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F),   X, Y centred

    The same for rotated and for scaled states.

    Args:
        x, y: ``(tokens, channels)``, of as many tokens.

    Raises:
        ValueError: other shapes.

    Paper: El Kheir, Ali and Chowdhury, arXiv 2406.16099, who compare models of speech: neurons by `max_correlation`,
    layers by this and by `svcca`, attention by `map_similarity`.
    """
    x, y = centred(x, y)
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def svcca(x: Tensor, y: Tensor) -> Tensor:
    """Mean canonical correlation of the directions that hold 99% of either's variance."""
    first, second = (directions(of) for of in centred(x, y))
    return torch.linalg.svdvals(first.T @ second).clamp(max=1).mean()


def max_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the channels of x of the largest correlation, of either sign, with a channel of y."""
    x, y = centred(x, y)
    x, y = (of / of.norm(dim=0).clamp(min=torch.finfo(of.dtype).tiny) for of in (x, y))
    return (x.T @ y).abs().amax(1).mean()


def map_similarity(x: Tensor, y: Tensor) -> Tensor:
    """How alike two layers look at the same text: the mean over heads of x of the largest correlation with one of y.

    Over all pairs of a query and a key that one of the maps shows.

    Args:
        x, y: ``(heads, n, n)``, of the same text.

    Raises:
        ValueError: other shapes.

    The measure of neurons, for maps: what the paper's abstract calls similarity of attention it does not define.
    """
    if x.dim() != 3 or x.shape[1] != x.shape[2] or y.dim() != 3 or x.shape[1:] != y.shape[1:]:
        raise wrong("x, y", f"shapes {tuple(x.shape)} and {tuple(y.shape)}", "(heads, n, n), of the same text")
    shown = (x > 0).any(0) | (y > 0).any(0)
    columns = [of[:, shown].double().T for of in (x, y)]
    x, y = centred(columns[0], columns[1])
    x, y = (of / of.norm(dim=0).clamp(min=torch.finfo(of.dtype).tiny) for of in (x, y))
    return (x.T @ y).amax(1).mean()


def centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, less their means."""
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 2:
        raise wrong("x, y", f"shapes {tuple(x.shape)} and {tuple(y.shape)}", "(tokens, channels), of as many tokens")
    return x.double() - x.double().mean(0), y.double() - y.double().mean(0)


def directions(x: Tensor) -> Tensor:
    """``(tokens, r)``: orthonormal, of the strongest singular directions."""
    u, sizes, _ = torch.linalg.svd(x, full_matrices=False)
    share = sizes.square().cumsum(0) / sizes.square().sum()
    return u[:, : int((share < KEPT).sum()) + 1]


def turned() -> tuple[Tensor, Tensor]:
    """States against themselves turned and scaled: all measures but that of neurons are one; of others, less."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(41, 7, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=draw, dtype=torch.float64)).Q
    y = 3 * x @ turn + 2
    found = [cka(x, y), svcca(x, y), max_correlation(x, x), max_correlation(x, x[:, torch.randperm(7, generator=draw)])]
    return torch.stack(found), torch.ones(4, dtype=torch.float64)
