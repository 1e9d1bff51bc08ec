"""Hierarchical networks: their text, any size of image, features for necks, timm's logits, folded norms."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regard
from reference.stages import state
from reference.waves import wave
from regard.mechanisms.scored.relative_plane import RelativePlane
from regard.networks.stages import sizes as sizes_module
from regard.networks.stages.design import Design, blocks_of
from regard.networks.stages.network import Stages, started
from regard.networks.stages.presets import is_printed
from regard.networks.stages.sizes import sizes, total
from regard.networks.stages.steps.attention import Channels, Enhanced, Summary
from regard.networks.stages.steps.base import Added, Step
from regard.networks.vision import davit, mambaout, maxvit, shvit, swin, twins
from regard.networks.vision.botnet import PlaneAttention
from regard.networks.vision.build import presets
from regard.networks.vision.from_timm import FAMILIES, renamed

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "stages.json").read_text())
SMALL = {
    "davit": ("DaVit", davit.design((1, 2), (4, 6), (2, 3), 3)),
    "focalnet": ("FocalNet", Design((4, 8), ("focal + mlp", "focal(levels=1, window=5) + mlp"))),
    "shvit": ("SHViT", shvit.design((1, 1, 1), (8, 10, 12), (None, 4, 5))),
    "mambaout": ("MambaOut", mambaout.design((1, 2), (4, 6))),
    "maxvit": ("MaxxVit", maxvit.design((1, 2), (4, 8), 4, 3, 6)),
    "twins": ("Twins", twins.design((2, 3), (4, 6), (2, 3), 3, (2, 1), (4, 2))),
    "swin": ("SwinTransformer", swin.design((2, 2), 4, 2, 4, True)),
}


@pytest.mark.parametrize("family", SMALL)
def test_logits_are_those_of_timm(family):
    """With the same waves as weights, by tests/reference/stages.py."""
    about, (name, design) = VALUES[family], SMALL[family]
    net = Stages(design, 5).double().eval()
    net.load_state_dict(renamed(net.state_dict(), state(about["state"]), FAMILIES[name]))
    out = net(wave(about["image"])).flatten()
    torch.testing.assert_close(out, torch.tensor(about["out"], dtype=torch.float64), atol=1e-7, rtol=0)


def test_a_weight_too_many_or_of_another_shape_is_named():
    name, design = SMALL["davit"]
    net, theirs = Stages(design, 5), state(VALUES["davit"]["state"])
    with pytest.raises(ValueError, match="stand nowhere here: \\['more'\\]"):
        renamed(net.state_dict(), {**theirs, "more": torch.zeros(2)}, FAMILIES[name])
    with pytest.raises(ValueError, match=r"stem\.conv\.weight of shape \(2,\)"):
        renamed(net.state_dict(), {**theirs, "stem.conv.weight": torch.zeros(2)}, FAMILIES[name])
    with pytest.raises(TypeError, match="one of timm's DaVit"):
        regard.from_timm(nn.Linear(2, 3))


def test_a_design_is_its_text():
    for name, preset in presets().items():
        assert Design.of(str(preset.design)) == preset.design, name
    assert blocks_of("a + b(c=1, d='x+y'), (e + f)*2, g*3") == [
        ["a", "b(c=1, d='x+y')"],
        *[["e", "f"]] * 2,
        *[["g"]] * 3,
    ]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("stages(widths=(8, 8), layers='mlp + cpe*2')", ValueError, "in brackets where they are repeated"),
        ("stages(widths=(8, 8), layers=('mlp', 'mlp', 'mlp'))", ValueError, "one for each of the 2 stages"),
        ("stages(widths=(8, 8), layers='pml')", LookupError, "pml"),
        ("stages(widths=(8, 8), layers='mamba', heads=2)", ValueError, "both sides"),
        ("stages(widths=(8, 8), layers='softmax', heads=3)", ValueError, "a divisor of the width 8"),
        ("stages(widths=(8, 8), layers='mlp', steam='patch')", TypeError, "steam"),
        ("davit_tinny", ValueError, "davit_tiny"),
    ],
)
def test_a_text_that_says_nothing_is_told_so(text, error, message):
    with pytest.raises(error, match=message):
        regard.vision(text, classes=5)


@settings(max_examples=8, deadline=None)
@given(y=st.integers(1, 41), x=st.integers(1, 41), family=st.sampled_from(sorted(SMALL)))
def test_images_of_any_size_alone_and_in_a_batch(y, x, family):
    net = Stages(SMALL[family][1], 5).double().eval()
    images = torch.randn(3, 3, y, x, dtype=torch.float64)
    out = net(images)
    assert out.shape == (3, 5)
    torch.testing.assert_close(net(images[1:2]), out[1:2], atol=1e-9, rtol=0)


def test_features_go_into_a_neck():
    net = regard.vision("stages(widths=(6, 8, 10), layers='windows(side=3) + mlp', heads=2)", classes=5)
    maps = net.features(torch.randn(2, 3, 45, 67))
    assert [tuple(each.shape) for each in maps] == [(2, 6, 12, 17), (2, 8, 6, 9), (2, 10, 3, 5)]
    levels = regard.neck("fpn")(net.design.widths, out=4)(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 4, 12, 17), (2, 4, 6, 9), (2, 4, 3, 5)]


def test_sizes_are_counted_stage_by_stage_without_numbers():
    net = regard.vision("shvit_s1", classes=7)
    parts = sizes(net, (64, 96))
    assert [part.name for part in parts] == ["stem", "stages.0", "stages.1", "stages.2", "head"]
    assert total(parts)[0] == net.parameter_count
    assert parts[0].shape == (128, 4, 6)
    assert parts[-1].multiply_adds == 320 * 7


@pytest.mark.parametrize(
    ("value", "printed", "said"), [(28_360_168, "28.3", True), (28_360_168, "28.5", False), (11_483_072, "11.4", True)]
)
def test_what_is_printed(value, printed, said):
    assert is_printed(value, printed, 1e6) == said


def test_channel_attention_is_softmax_of_channels_by_hand():
    """Keys with values weigh queries, as the authors' code has it; the other way around is the usual one."""
    x = torch.randn(2, 6, 3, 5)
    tokens = x.flatten(2).mT
    for swapped in (True, False):
        step = Channels(6, 2, swapped=swapped)
        q, k, v = (part.mT for part in step.projection(tokens, tokens))
        first, second, third = (k, v, q) if swapped else (q, k, v)
        want = ((first * 3**-0.5) @ second.mT).softmax(-1) @ third
        want = step.projection.out(want.flatten(1, 2).mT)
        torch.testing.assert_close(step(x).flatten(2).mT, want, atol=1e-6, rtol=1e-5)


def test_summaries_of_everything_are_one_key():
    step = Summary(6, 2, ratio=4)
    x = torch.randn(1, 6, 3, 4)
    out = step(x)
    torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out))


def test_steps_are_left_out_in_training_alone():
    class Same(Step):
        def forward(self, x):
            return x

    added = Added(Same(), nn.Identity(), 4, 1.0, 0.5)
    x = torch.ones(400, 4, 1, 1)
    torch.manual_seed(0)
    assert set(added(x)[:, 0, 0, 0].tolist()) == {1.0, 3.0}
    assert set(added.eval()(x).flatten().tolist()) == {2.0}


def test_padding_is_no_key_of_a_window():
    """A map of 4 × 5 cells in windows of 3: what stands outside cannot matter, whatever it is."""
    mechanism = regard.build("windows", side=3)
    layout = regard.Layout(grid=(4, 5))
    q, k = torch.randn(2, 1, 2, 20, 5).unbind()
    rows = mechanism.weights(q, k, layout).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    ones = mechanism(q, k, torch.ones(1, 2, 20, 3), layout)
    torch.testing.assert_close(ones, torch.ones_like(ones))


@pytest.mark.parametrize("scaled", [False, True])
def test_relative_positions_are_those_of_timm(scaled):
    about = VALUES["bottleneck_scaled" if scaled else "bottleneck"]
    weights = state(about["state"])
    layer = PlaneAttention(8, 2, 5).double()
    layer.mechanism.scaled = scaled
    for part, weight in zip("qkv", weights["qkv.weight"].flatten(1).chunk(3), strict=True):
        getattr(layer.projection, part).weight.data = weight
    layer.mechanism.rows_table.data = weights["pos_embed.height_rel"]
    layer.mechanism.columns_table.data = weights["pos_embed.width_rel"]
    out = layer(wave(about["image"])).flatten()[::3]
    torch.testing.assert_close(out, torch.tensor(about["out"], dtype=torch.float64), atol=1e-7, rtol=0)


def test_routed_regions_are_those_of_biformer():
    about = VALUES["bi_level"]
    weights = state(about["state"])
    step = Enhanced(8, 2, mechanism="routed_regions(topk=2, regions=3)").double()
    for part, weight, bias in zip(
        "qkv", weights["qkv.qkv.weight"].chunk(3), weights["qkv.qkv.bias"].chunk(3), strict=True
    ):
        getattr(step.projection, part).load_state_dict({"weight": weight, "bias": bias})
    step.projection.out.load_state_dict({"weight": weights["wo.weight"], "bias": weights["wo.bias"]})
    step.convolution.load_state_dict({"weight": weights["lepe.weight"], "bias": weights["lepe.bias"]})
    out = step(wave(about["image"])).flatten()[::3]
    torch.testing.assert_close(out, torch.tensor(about["out"], dtype=torch.float64), atol=1e-7, rtol=0)


def test_tables_of_relative_positions_fit_other_maps():
    mechanism = RelativePlane(4, 7)
    assert mechanism.fitted(mechanism.rows_table, 7) is mechanism.rows_table
    assert mechanism.fitted(mechanism.rows_table, 4).shape == (7, 4)
    torch.testing.assert_close(mechanism.fitted(mechanism.rows_table, 4)[[0, 3, 6]], mechanism.rows_table[[0, 6, 12]])


@pytest.mark.parametrize(("how", "spread"), [("matrices", None), ("all", 0.02), ("fan_out", (2 / 135) ** 0.5)])
def test_weights_begin_as_the_design_says(how, spread):
    """A weight of 30 outputs in two groups with kernels of 3 × 3 has a part in 9 · 15 = 135 of them."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"map": nn.Conv2d(38, 30, 3, groups=2), "matrix": nn.Linear(61, 53)})
    before = network["map"].weight.detach().clone()
    started(network, how)
    assert network["matrix"].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not network["matrix"].bias.any()
    assert torch.equal(network["map"].weight, before) == (spread is None)
    if spread is not None:
        assert network["map"].weight.std().item() == pytest.approx(spread, rel=0.05)
        assert not network["map"].bias.any()


def test_blocks_that_are_alike_are_counted_once_and_others_each(monkeypatch):
    network, parts = Stages(swin.design((2, 4), 4, 2, 4, True)), sizes_module.pieces
    wide = Stages(swin.design((2, 4), 4, 2, 8, True))

    def whole(made):
        with monkeypatch.context() as patch:
            patch.setattr(sizes_module, "pieces", lambda *given: ((module, None) for module, _ in parts(*given)))
            return sizes(made, 64)

    assert sizes(network, 64) == whole(network)
    network.stages[1].blocks[2] = wide.stages[1].blocks[2]  # of wider windows, where the design says nothing of it
    assert sizes(network, 64) == whole(network) != sizes(Stages(network.design), 64)
