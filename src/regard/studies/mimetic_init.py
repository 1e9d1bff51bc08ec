"""Mimetic initialisation: a state-space layer that begins as linear attention."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import cast

import torch
from torch import nn

from regard.blocks.attention import Attention
from regard.blocks.signals import before_activation
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.mechanisms.linear.mamba import SelectiveScan
from regard.mechanisms.linear.mamba2 import Mamba2
from regard.projections.base import Grouped

INGREDIENTS = ("decay", "step", "products", "convolution")
"""What `mimetic` may set."""


@published(
    "mimetic",
    family="linear",
    kind="study",
    row=354,
    title="Mimetic Initialization Helps State Space Models Learn to Recall",
    arxiv="2410.11135",
    year=2024,
    aliases=("mimetic_initialization",),
    fidelity="hand values",
    claim=(
        Claim(
            ("a two-layer Mamba copies 64 tokens to 95% where it stays below 50% with its own initial values"),
            cells="theory.copied_to_the_end",
            holds="theory.copies_to_95",
        ),
        Claim("it copies sooner, by a diagonal", cells="theory.copying", holds="theory.copies_sooner"),
        Claim("no ingredient does it alone", cells="theory.copying", holds="theory.no_ingredient_does_it_alone"),
    ),
)
@torch.no_grad()
def mimetic(
    layer: Attention, ingredients: Collection[str] = ("decay", "step", "products"), memory: float = 1000.0
) -> Attention:
    """Sets the initial values of a Mamba layer so that it is nearly linear attention between like tokens.

        decay:        A_h = −1 / memory, so that exp(Δ A) ≈ 1 and the past stays
        step:         Δ = 1 for every token: the map's matrix 0, its bias softplus⁻¹(1)
        products:     W_C = W_B, so that C_i · B_j is large for like tokens, W_Cᵀ W_B being near a multiple of I
        convolution:  the token itself, w = (1, 0, …)

    In place; the layer is returned. W_C is that of queries, W_B that of keys, which is repeated for the queries' heads
    that share it.

    Args:
        layer: of `SelectiveScan` or `Mamba2`. ingredients: of `INGREDIENTS`. memory: tokens after which a token has
            faded to 1/e.

    Raises:
        ValueError: another mechanism or projection, an unknown ingredient, or a memory that is not positive.

    Paper: Trockman et al., arXiv 2410.11135.
    """
    mechanism, projection = layer.mechanism, layer.projection
    if not isinstance(mechanism, (SelectiveScan, Mamba2)):
        raise wrong("layer", type(mechanism).__name__, "attention by mamba or mamba2")
    if not isinstance(projection, Grouped):
        raise wrong("layer.projection", type(projection).__name__, "Grouped")
    for unknown in set(ingredients) - set(INGREDIENTS):
        raise wrong("ingredients", repr(unknown), f"of {', '.join(INGREDIENTS)}")
    if not memory > 0:
        raise wrong("memory", str(memory), "above 0")
    if "decay" in ingredients:
        mechanism.log_rate.fill_(-math.log(memory))
    if "step" in ingredients:
        affine = cast(nn.Linear, layer.signals.maps["step"])
        affine.weight.zero_()
        affine.bias.fill_(before_activation(1.0, layer.signals.specs["step"]))
    if "products" in ingredients:
        queries, keys, _ = projection.counts
        groups = projection.k.weight.unflatten(0, (keys, -1))
        repeated = groups.repeat_interleave(queries // keys, dim=0)
        projection.q.weight.copy_(repeated.flatten(0, 1))
    if "convolution" in ingredients and layer.convolution is not None:
        layer.convolution.weight.zero_()
        layer.convolution.weight[0] = 1
    return layer
