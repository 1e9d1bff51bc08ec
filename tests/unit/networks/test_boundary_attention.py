"""Boundary attention: the numbers of its authors' code, and the geometry of what it draws."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.boundary import SHAPE, weight
from reference.waves import wave
from regard.networks.vision.boundary_attention import BoundaryAttention, Sizes, boundary_loss, dense
from regard.networks.vision.junctions import Junction, folded, patches

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "boundary.json").read_text())
SIZES = Sizes(3, 8, 4, 2, 3, 11, 2, 2, 2, 5, (1, 3, 5), 2, 7, 6)
NAMES = [
    (r"^stem\.", "PatchInitializer.PatchMixer_0.stem."),
    (r"^norm\.", "PatchInitializer.PatchMixer_0.pre_head_layer_norm."),
    (r"^head\.", "PatchInitializer.Hidden2OutputsBlock.head."),
    (r"^mixer\.(\d)\.", r"PatchInitializer.PatchMixer_0.MixerBlock_\1."),
    (r"near\.(\d)\.convolution\.", r"token_mixing.TiedWeightsConv_\1."),
    (r"(MixerBlock_\d)\.first\.", r"\1.channel_mixing.Dense_0."),
    (r"(MixerBlock_\d)\.second\.", r"\1.channel_mixing.Dense_1."),
    (r"^blocks\.(\d)\.token", r"PatchRefinement_\1.PatchsizeToken"),
    (r"^blocks\.(\d)\.positions", r"PatchRefinement_\1.TransformerBlock.PositionalEmbedding"),
    (r"^blocks\.(\d)\.scales\.", r"PatchRefinement_\1.EstMaxPatchsize."),
    (r"^blocks\.(\d)\.head\.", r"PatchRefinement_\1.Hidden2OutputsBlock.head."),
    (r"^blocks\.(\d)\.residual\.", r"PatchRefinement_\1.ResidualBlock.Residual."),
    (r"^blocks\.(\d)\.norm\.", r"PatchRefinement_\1.ResidualBlock.LayerNorm_0."),
    (r"^blocks\.(\d)\.layers\.(\d)\.", r"PatchRefinement_\1.TransformerBlock.EncoderBlock_\2."),
    (r"\.attention\.([qkv])\.", r".MultiHeadDotProductAttention_0.\1."),
    (r"\.attention\.out\.", ".MultiHeadDotProductAttention_0.out."),
    (r"0\.q\.", "0.query."),
    (r"0\.k\.", "0.key."),
    (r"0\.v\.", "0.value."),
    (r"(EncoderBlock_\d)\.first\.", r"\1.Dense_0."),
    (r"(EncoderBlock_\d)\.second\.", r"\1.Dense_1."),
    (r"\.norms\.(\d)\.", r".LayerNorm_\1."),
    (r"(norm|LayerNorm_\d)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel"),
]


def authors() -> BoundaryAttention:
    """The network with their weights: kernels are transposed, those of heads flat."""
    net = BoundaryAttention(SIZES).double().eval()
    theirs = {name: weight(n, name, tuple(shape)) for n, (name, shape) in enumerate(VALUES["state"].items())}
    found = {}
    for name, tensor in net.state_dict().items():
        there = name
        for pattern, by in NAMES:
            there = re.sub(pattern, by, there)
        value = theirs.pop(there)
        if there.endswith("kernel"):
            if "TiedWeightsConv" in there:
                value = value.permute(3, 2, 0, 1)
            else:
                value = (value.flatten(0, -2) if there.endswith("out.kernel") else value.flatten(1)).T
        found[name] = value.reshape(tensor.shape)
    assert not theirs, list(theirs)
    net.load_state_dict(found)
    return net


def test_every_round_is_that_of_the_authors():
    rounds = authors().rounds(wave(SHAPE))
    assert len(rounds) == len(VALUES["out"]) == 5
    for each, want in zip(rounds, VALUES["out"], strict=True):
        out = torch.cat([each.colours, each.distances, each.lines], 1).flatten()[::7]
        torch.testing.assert_close(out, torch.tensor(want, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_its_loss_is_that_of_the_authors():
    distances = 3 * wave((SHAPE[0], 1, *SHAPE[2:]), 0.4).abs()
    inside = (wave((SHAPE[0], *SHAPE[2:], 1), 0.7) > 0).double().movedim(-1, 1)
    loss = boundary_loss(authors().rounds(wave(SHAPE)), wave(SHAPE, 0.2), distances, inside)
    assert loss.item() == pytest.approx(VALUES["loss"], rel=1e-6)


def test_it_has_the_parameters_of_the_paper():
    """207 thousand."""
    assert BoundaryAttention().parameter_count == 207_129


def test_a_junction_by_hand():
    """Rays to the right, down and to the left of a vertex in the middle: wedges of a quarter, a quarter, a half."""
    quarter = math.pi / 2
    openings = torch.tensor([quarter, quarter, 2 * quarter], dtype=torch.float64).view(1, 3, 1, 1)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    junction = Junction(zero, openings, zero.expand(1, 2, 1, 1))
    want = torch.tensor([[1] * 5, [0.5] * 5, [0] * 5, [0.5, 0.5, 0, 0.5, 0.5], [1, 0.5, 0, 0.5, 1]])
    torch.testing.assert_close(junction.distances(5)[0, 0, :, :, 0, 0], 2.5 * want.double(), atol=1e-5, rtol=0)
    wedges = junction.wedges(5)[0, :, :, :, 0, 0]
    assert wedges[:, 3, 4].argmax() == 0
    assert wedges[:, 3, 0].argmax() == 1
    assert wedges[:, 0, 2].argmax() == 2
    torch.testing.assert_close(wedges.sum(0), torch.ones(5, 5, dtype=torch.float64))
    lines = junction.lines(5)[0, 0, :, :, 0, 0]
    assert (lines[2] > 0.99).all()
    assert (lines[3:, 2] > 0.99).all()
    assert lines[0].max() < 0.01


@given(rows=st.sampled_from([5, 7, 11]), columns=st.sampled_from([5, 6, 13]))
@settings(max_examples=6, deadline=None)
def test_folding_is_patching_transposed(rows, columns):
    image = torch.randn(2, 3, rows, columns, dtype=torch.float64)
    parts = patches(image, 5)
    other = torch.randn_like(parts)
    torch.testing.assert_close((parts * other).sum(), (image * folded(other)).sum())
    torch.testing.assert_close(parts[1, 2, :, :, -1, 0], image[1, 2, -5:, :5])


def test_its_maps_are_what_it_weighed_by():
    """Dense maps times projected cells are the layer's output without positions."""
    layer = BoundaryAttention(SIZES).double().blocks[0].layers[0].attention
    x, cells = torch.randn(2, 12, 4, 5, dtype=torch.float64), torch.randn(2, 15, 4, 5, dtype=torch.float64)
    none = torch.zeros(9, 15, dtype=torch.float64)
    a = dense(layer.weights(x, cells, none), 3, (4, 5))
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    v = layer.v(cells.flatten(2).mT).unflatten(2, (2, -1)).transpose(1, 2)
    want = layer.out((a @ v).transpose(1, 2).flatten(2)).mT.unflatten(2, (4, 5))
    torch.testing.assert_close(layer(x, cells, none), want)


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="5 pixels a side"):
        BoundaryAttention(SIZES)(torch.zeros(1, 3, 4, 9))
