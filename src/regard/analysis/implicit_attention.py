"""The whole of a layer as one attention matrix: mechanism, convolution, activation, norm and gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import EPSILON, Attention
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.core.layout import Layout
from regard.core.mechanism import repeat_heads
from regard.networks import Config
from regard.projections.base import split_heads


@published(
    "implicit_attention",
    family="observe",
    kind="analysis",
    row=175,
    title="A Unified Implicit Attention Formulation for Gated-Linear Recurrent Sequence Models",
    arxiv="2405.16504",
    year=2024,
    aliases=("unified_implicit_attention",),
    claim=Claim(
        text="the matrix of a whole layer, times its values, is the layer, for state-space and gated linear ones; "
        "nothing stands above the diagonal",
        status="works",
        figure="1e-9 in float64 for eight mechanisms with their hosts; deletion test of a trained Mamba, three seeds: "
        "area 0.28 to 0.31, by the mechanism alone 0.28 to 0.38, in random order 0.49 to 0.50",
        command="pytest tests/claims/test_implicit.py",
    ),
)
@shown_by(lambda: [Sample("gla", implicit_attention, {"known": matrix_of_a_layer})])
def implicit_attention(layer: Attention, x: Tensor) -> Tensor:
    """What each channel of a layer's output takes of the same channel's projected values, at every token.

        Â_{h,c} = diag(gate_{h,c}) diag(scale_h) A_h diag(act(u_{h,c}) / u_{h,c}) T_{h,c},   u = T v

    T is the short convolution as a matrix, scale the norm's factor of a row, A the mechanism's weights; what the layer
    does not have is the identity. ``(Â v)_{h,c}`` is what `Projection.opened` and `Projection.merge` take.

    Shapes: ``x (b, n, width)`` -> ``(b, h, e, n, n)``, causal. Memory is h e n²: for looking at short texts.

    Paper: Zimerman, Ali and Wolf, arXiv 2405.16504.

    Raises:
        ValueError: a mechanism that is not causal.
    """
    mechanism, layout, n = layer.mechanism, Layout(causal=True), x.shape[1]
    if not mechanism.traits.causal:
        raise wrong("layer", type(mechanism).__name__, "a causal mechanism")
    q, k, v, signals = layer.inputs(x, layout)
    weights, before = mechanism.weights(q, k, layout, **signals), layer.projection(x, x)[2]
    taps = torch.eye(n, dtype=x.dtype, device=x.device).expand(v.shape[1], v.shape[3], n, n)
    if layer.convolution is not None:
        taps = toeplitz(layer, n)
        before = (taps @ before.mT[..., None])[..., 0].mT
    active = torch.where(before == 0, 0.5, v / torch.where(before == 0, 1, before))  # SiLU(u) / u at 0 is 1/2
    active = active if layer.spec.activation else torch.ones_like(v)
    inner = repeat_heads(active.mT[..., None] * taps[None], q.shape[1])  # (b, h, e, n, n)
    found = weights[:, :, None] @ inner
    if layer.scale is not None:
        out = weights @ repeat_heads(v, q.shape[1])
        rows = (out.square().mean(-1) + EPSILON).rsqrt()
        found = found * rows[:, :, None, :, None] * (layer.scale * layer.spec.factor)[:, None, None]
    if layer.gate is not None:
        opened = split_heads(layer.gate(x), layer.projection.heads)
        opened = F.silu(opened) if layer.spec.gate == "silu" else torch.sigmoid(opened)
        found = found * opened.mT[..., None]
    return found


def matrix_of_a_layer() -> tuple[Tensor, Tensor]:
    """The output of a layer, from its matrix and by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = Config(vocabulary=8, width=16, heads=2, layers="gla").attention("gla", {}).double()
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return reproduced(layer, x), layer(x, Layout(causal=True))


def toeplitz(layer: Attention, n: int) -> Tensor:
    """The short convolution of the values as matrices ``(g, e, n, n)``."""
    assert layer.convolution is not None
    p = layer.projection
    impulse = torch.eye(n, dtype=layer.convolution.weight.dtype, device=layer.convolution.weight.device)
    channels = [p.heads * p.head_dim, p.kv_heads * p.head_dim, p.kv_heads * p.value_dim]
    blank = [impulse.new_zeros(n, n, size) for size in channels[:2]]
    shown = layer.convolution(torch.cat([*blank, impulse[..., None].expand(-1, -1, channels[2])], 2), Layout(True))
    silent = layer.convolution(torch.zeros_like(shown[:1]), Layout(True))
    return (shown - silent)[..., -channels[2] :].permute(2, 1, 0).unflatten(0, (p.kv_heads, p.value_dim))


def reproduced(layer: Attention, x: Tensor) -> Tensor:
    """The layer's output from its implicit matrix: what `Attention` gives, by other means."""
    return through(layer, x)[0]


def through(layer: Attention, x: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
    """``(the layer's output, the matrix that it went through)``: Â, or without ``whole`` the mechanism's A alone."""
    layout, n, heads = Layout(causal=True), x.shape[1], layer.projection.heads
    positions = layout.positions(n, x.device)
    if whole:
        matrix = implicit_attention(layer, x)
        values = repeat_heads(layer.projection(x, x)[2], heads)
        return layer.projection.finish((matrix @ values.mT[..., None])[..., 0].mT, x, positions), matrix
    q, k, v, signals = layer.inputs(x, layout)
    matrix = layer.mechanism.weights(q, k, layout, **signals)
    return layer.finish(matrix @ repeat_heads(v, heads), x, positions), matrix


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
    claim=Claim(
        text="the unrolled matrix reproduces the scan; every block of it below the diagonal has at most the rank of "
        "the state, which softmax attention's has not",
        status="partly",
        figure="ranks at most the state size for five mechanisms, above it for softmax; the maps of trained vision "
        "models are not built",
        command="pytest tests/claims/test_implicit.py",
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
