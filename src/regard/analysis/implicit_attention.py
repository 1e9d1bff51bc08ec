"""The whole of a layer as one attention matrix: mechanism, convolution, activation, norm and gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.core.layout import Layout
from regard.core.mechanism import repeat_heads
from regard.networks import Config


@published(
    "implicit_attention",
    family="observe",
    kind="analysis",
    row=175,
    title="A Unified Implicit Attention Formulation for Gated-Linear Recurrent Sequence Models",
    arxiv="2405.16504",
    year=2024,
    aliases=("unified_implicit_attention",),
    fidelity="hand values",
    claim=(
        Claim(
            (
                "the matrix of a whole layer, times its values, is the layer, for state-space and gated "
                "linear ones; nothing stands above the diagonal"
            ),
            cells="layers.matrix",
            holds="layers.is_the_layer",
        ),
        Claim(
            "deleting what whole matrices point at loses the answer sooner than by the mechanism alone",
            cells="layers.deletions",
            holds="layers.tells_what_matters",
        ),
    ),
)
@shown_by(lambda: [Sample("gla", implicit_attention, {"known": matrix_of_a_layer})])
def implicit_attention(layer: Attention, x: Tensor) -> Tensor:
    """What each channel of a layer's output takes of the same channel's projected values, at every token.

        Â_{h,c} = diag(gate_{h,c}) diag(scale_{h,c}) (A_h + D_h I) diag(act(u_{h,c}) / u_{h,c}) T_{h,c},   u = T v + t

    T is the short convolution as a matrix and t its bias, D the skip, scale the norm's factor of a row, A the
    mechanism's weights; what the layer does not have is the identity, or zero. ``(Â v)_{h,c}``, and what t adds, is
    what `Projection.opened` and `Projection.merge` take.

    Shapes: ``x (b, n, width)`` -> ``(b, h, e, n, n)``, causal. Memory is h e n²: for looking at short texts.

    Paper: Zimerman, Ali and Wolf, arXiv 2405.16504.

    Raises:
        ValueError: a mechanism that is not causal, or a norm that takes the mean away: it mixes the channels.
    """
    return matrices_of(layer, x)[0]


def matrices_of(layer: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """``(Â, what the convolution's bias adds to Â v)``, the latter ``(b, h, n, e)``."""
    mechanism, layout, n = layer.mechanism, Layout(causal=True), x.shape[1]
    output = layer.output
    if output.norm is not None and output.norm.spec.centred:
        raise wrong("layer", f"{type(mechanism).__name__}, whose norm is centred", "one that keeps channels apart")
    if not mechanism.traits.causal:
        raise wrong("layer", type(mechanism).__name__, "a causal mechanism")
    out, _, _, (q, k, v, signals), opening = layer.attended(x, layout)
    heads, before = q.shape[1], values_of(layer, x)
    weights = mechanism.weights(q, k, layout, **signals)
    taps = torch.eye(n, dtype=x.dtype, device=x.device).expand(v.shape[1], v.shape[3], n, n)
    added = torch.zeros_like(v)
    if layer.convolution is not None:
        taps = toeplitz(layer, n)
        before = (taps @ before.mT[..., None])[..., 0].mT
        if layer.convolution.bias is not None:
            own = layer.convolution.bias[-v.shape[1] * v.shape[3] :].view(v.shape[1], 1, v.shape[3])
            before, added = before + own, added + own
    active = torch.where(before == 0, 0.5, v / torch.where(before == 0, 1, before))  # SiLU(u) / u at 0 is 1/2
    active = repeat_heads(active if layer.spec.activation else torch.ones_like(v), heads)
    if output.skip is not None:
        weights = weights + output.skip[:, None, None] * torch.eye(n, dtype=x.dtype, device=x.device)
        out = out + output.skip[:, None, None] * repeat_heads(v, heads)
    scale = row_scales(layer, out, opening)
    found = weights[:, :, None] @ (active.mT[..., None] * repeat_heads(taps[None], heads)) * scale.mT[..., None]
    return found, weights @ (active * repeat_heads(added, heads)) * scale


def values_of(layer: Attention, x: Tensor) -> Tensor:
    """The projected values ``(b, g, n, e)``, before the convolution."""
    return layer.projection(x, x)[2] if layer.selective is None else layer.selective.written(x)


def row_scales(layer: Attention, out: Tensor, opening: Tensor) -> Tensor:
    """What norm and gate multiply the heads' outputs ``(b, h, n, e)`` with, each element its own."""
    output, gate = layer.output, layer.output.opened(opening)
    scale = torch.ones_like(out) if gate is None else gate
    if output.norm is None:
        return scale
    first = output.spec is not None and output.spec.before_norm
    normed = out * scale if first else out
    return scale * output.norm.factors(normed)


def matrix_of_a_layer() -> tuple[Tensor, Tensor]:
    """The output of a layer, from its matrix and by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Config(vocabulary=8, width=16, heads=2, layers="gla").attention("gla").double()
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return reproduced(layer, x), layer(x, Layout(causal=True))


def toeplitz(layer: Attention, n: int) -> Tensor:
    """The short convolution of the values as matrices ``(g, e, n, n)``."""
    assert layer.convolution is not None
    p = layer.projection
    impulse = torch.eye(n, dtype=layer.convolution.weight.dtype, device=layer.convolution.weight.device)
    written = layer.sizes[2]
    blank = impulse.new_zeros(n, n, layer.channels - written)
    shown = layer.convolution(torch.cat([blank, impulse[..., None].expand(-1, -1, written)], 2), Layout(True))
    silent = layer.convolution(torch.zeros_like(shown[:1]), Layout(True))
    return (shown - silent)[..., -written:].permute(2, 1, 0).unflatten(0, (p.counts[2], p.value_dim))


def reproduced(layer: Attention, x: Tensor) -> Tensor:
    """The layer's output from its implicit matrix: what `Attention` gives, by other means."""
    return through(layer, x)[0]


def through(layer: Attention, x: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
    """``(the layer's output, the matrix that it went through)``: Â, or without ``whole`` the mechanism's A alone."""
    layout, n, heads = Layout(causal=True), x.shape[1], layer.projection.heads
    if whole:
        matrix, added = matrices_of(layer, x)
        out = (matrix @ repeat_heads(values_of(layer, x), heads).mT[..., None])[..., 0].mT + added
        return layer.projection.finish(out, x, layout.positions(n, x.device)), matrix
    _, _, positions, given, opening = layer.attended(x, layout)
    q, k, v, signals = given
    matrix = layer.mechanism.weights(q, k, layout, **signals)
    return layer.finish(matrix @ repeat_heads(v, heads), x, positions, given, opening), matrix


def attribution(model: nn.Module, score: Callable[[], Tensor], whole: bool = True) -> Tensor:
    """How much each token's last hidden state owes to each token of the text, for what ``score`` says of the output.

        R ← R + mean_c (∂score/∂Â_c ⊙ Â_c)⁺ R   over the layers from the first, R = I at the start

    Shapes: ``(b, n, n)``, row i what token i took of all. Cost: one forward and backward pass through dense matrices.

    Args:
        model: whose layers attend causally to themselves (`blocks.attention.Attention`), in order. score: runs the
            model on texts without padding and gives a scalar. whole: with convolution, activation, norm and gate; else
            by the mechanisms' A alone, c being the heads.

    Raises:
        ValueError: a model without such layers, a mechanism that is not causal, or a call that is bidirectional,
            padded, packed or across sequences.

    Paper: Zimerman, Ali and Wolf, arXiv 2405.16504, after Chefer et al., 2103.15679.
    """
    layers, matrices = [m for m in model.modules() if isinstance(m, Attention)], []

    if not layers:
        raise wrong("model", type(model).__name__, "one with layers of `blocks.attention.Attention`")

    def shown(layer: Attention, x: Tensor, layout: Layout = Layout(), context: Tensor | None = None) -> Tensor:
        if context is not None or not layout.causal or not layout.plain:
            raise wrong("score", f"a call under {layout}", "one of causal self-attention to whole texts")
        out, matrix = through(layer, x, whole)
        matrices.append(matrix)
        return out

    try:
        for layer in layers:
            cast(Any, layer).forward = partial(shown, layer)
        with torch.enable_grad():
            slopes = torch.autograd.grad(score(), matrices)
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
    found = torch.eye(matrices[0].shape[-1], dtype=matrices[0].dtype, device=matrices[0].device)
    for matrix, slope in zip(matrices, slopes, strict=True):
        found = found + (matrix * slope).clamp(min=0).detach().flatten(1, -3).mean(1) @ found
    return found


@published(
    "implied_rank",
    family="observe",
    kind="analysis",
    row=50,
    title="RNN as Linear Transformer: A Closer Investigation into Representational Potentials of Visual Mamba Models",
    arxiv="2511.18380",
    year=2025,
    aliases=("mamba_as_attention", "effective_rank"),
    missing="a small Vim that is trained by self-distillation, and how its maps overlap with masks of objects",
    fidelity="hand values",
    claim=Claim(
        (
            "every block of the unrolled matrix below the diagonal has at most the rank of the state, "
            "which softmax attention's has not"
        ),
        cells="layers.ranks",
        holds="layers.is_that_of_the_state",
    ),
)
@shown_by(lambda: [Sample("planted", block_rank, {"known": rank_of_a_product})])
def block_rank(weights: Tensor, cut: int, tolerance: float = 1e-9) -> Tensor:
    """Rank of what the tokens from ``cut`` on take from those before: of ``A[cut:, :cut]``, ``(…)`` int64.

    What passes from the past to the future goes through the state, so the rank is at most the number of its rows.

    Paper: Yang et al., arXiv 2511.18380.

    Args:
        weights: ``(…, n, n)``. tolerance: singular values below so much of the largest count as zero.
    """
    values = torch.linalg.svdvals(weights[..., cut:, :cut].double())
    return (values > tolerance * values[..., :1]).sum(-1)


def rank_of_a_product() -> tuple[Tensor, Tensor]:
    """What passes a cut through a state of three numbers has rank three."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 11, 3, generator=generator, dtype=torch.float64)
    return block_rank(one @ other.T, 5).double(), torch.tensor(3.0)


def effective_rank(weights: Tensor) -> Tensor:
    """``exp(entropy of the singular values over their sum)`` of matrices ``(…, n, m)``.

    Source: Roy and Vetterli, EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(weights.double())
    shares = values / values.sum(-1, keepdim=True)
    return torch.exp(-(shares * shares.clamp(min=1e-300).log()).sum(-1))
