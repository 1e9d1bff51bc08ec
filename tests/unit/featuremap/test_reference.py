"""Gates and mixtures equal what published code computes, written down by tests/reference/feature_maps.py."""

import json
from pathlib import Path

import pytest
import torch

import regard
from reference.waves import parameter_wave, running_wave, wave, waved
from regard.networks.vision.a2n import A2Block
from regard.networks.vision.han import ChannelSpatialAttention, LayerAttention
from regard.networks.vision.patchconvnet import PatchConvNet
from regard.networks.vision.psmnet import PSMNet
from regard.networks.vision.residual_attention import ResidualAttentionNetwork

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "feature_maps.json").read_text())


def numbers(*places):
    """The waves of so many parameters, one after the other, flat."""
    return torch.cat([parameter_wave(place, (count,)) for place, count in places])


def in_turn(names, parameters):
    """The waves of parameters that stand in the same order here as there."""
    return {name: parameter_wave(place, parameters[name].shape) for place, name in enumerate(names)}


def running(module, names):
    """Running statistics of norms that stand in the same order here as there."""
    state = module.state_dict()
    given = {}
    for place, name in enumerate(names):
        for step, statistic in enumerate(("running_mean", "running_var")):
            key = f"{name}.{statistic}"
            given[key] = running_wave(3 * place + step, key, state[key].shape)
    return given


MLP = ["mix.first.weight", "mix.first.bias", "mix.second.weight", "mix.second.bias"]
CONV = ["convolutions.0.weight", "norms.0.weight", "norms.0.bias"]
TRIPLET = [f"mix.{name.replace('0', str(branch))}" for branch in range(3) for name in CONV]
CASES = {
    "timm_se": ("se(divisor=8)", MLP, []),
    "timm_ese": ("ese", ["mix.linear.weight", "mix.linear.bias"], []),
    "timm_eca": ("eca", ["mix.convolution.weight"], []),
    "timm_cbam": (
        "cbam",
        ["gates.0.mix.first.weight", "gates.0.mix.second.weight", *(f"gates.1.mix.{name}" for name in CONV)],
        ["gates.1.mix.norms.0"],
    ),
    "timm_gc": (
        "gc(eps=1e-6)",
        ["pools.0.score.weight", "pools.0.score.bias", *MLP[:2], "mix.norm.weight", "mix.norm.bias", *MLP[2:]],
        [],
    ),
    "timm_coord": (
        "coord(ratio=24)",
        ["mix.first.weight", "mix.norm.weight", "mix.norm.bias", "mix.second.0.weight", "mix.second.1.weight"],
        ["mix.norm"],
    ),
    "triplet": ("triplet", TRIPLET, [f"mix.norms.{branch}" for branch in range(3)]),
    "fcanet": ("fcanet(ratio=4)", [MLP[0], MLP[2]], []),
    "fcanet_14": ("fcanet(ratio=4, size=14)", [MLP[0], MLP[2]], []),
}
"""What it is here, its parameters and its norms in the order of those there."""


def turned(name, state):
    """Kernels as they are here: maxima stand before means, rows before columns before the channels of another order."""
    if name == "timm_cbam":
        state["gates.1.mix.convolutions.0.weight"] = state["gates.1.mix.convolutions.0.weight"].flip(1)
    if name == "triplet":
        state["mix.convolutions.1.weight"] = state["mix.convolutions.1.weight"].transpose(2, 3)
    return state


def check(got, value):
    torch.testing.assert_close(got.flatten()[::3], torch.tensor(value["out"], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_gate_is_that_of_published_code(name):
    text, parameters, norms = CASES[name]
    shape = VALUES[name]["shape"]
    gate = regard.gate(text)(shape[1]).double().eval()
    state = turned(name, in_turn(parameters, dict(gate.named_parameters())) | running(gate, norms))
    missing = {key for key in gate.state_dict() if not key.endswith("num_batches_tracked")} - state.keys()
    assert not missing
    gate.load_state_dict(state, strict=False)
    check(gate(wave(shape)), VALUES[name])


def test_subspaces_are_those_of_the_authors():
    gate, groups = regard.gate("ulsam(subspaces=3)")(12).double().eval(), range(3)
    state = {
        name: numbers(*((8 * group + place, count) for group in groups)).reshape(gate.state_dict()[name].shape)
        for place, (name, count) in enumerate(
            (
                *(("depthwise.weight", 4), ("depthwise.bias", 4), ("norm.weight", 4), ("norm.bias", 4)),
                *(("pointwise.weight", 4), ("pointwise.bias", 1), ("last.weight", 1), ("last.bias", 1)),
            )
        )
    }
    for step, statistic in enumerate(("running_mean", "running_var")):
        for place, norm, count in ((0, "norm", 4), (3, "last", 1)):
            parts = [running_wave(6 * group + place + step, statistic, (count,)) for group in groups]
            state[f"{norm}.{statistic}"] = torch.cat(parts)
    gate.load_state_dict(state, strict=False)
    check(gate(wave(VALUES["ulsam"]["shape"])), VALUES["ulsam"])


def test_polynomials_are_those_of_the_authors():
    gate = regard.gate("high_order(order=3)")(16).double()
    inner = [numbers(*((first + i, 64) for i in range(r + 1))) for r, first in enumerate((0, 1, 3))]
    state = {f"mix.inner.{r}.weight": w.view(-1, 16, 1, 1) for r, w in enumerate(inner)}
    state |= {f"mix.outer.{r}.weight": parameter_wave(6 + r, (16, 4, 1, 1)) for r in range(3)}
    gate.load_state_dict(state)
    check(gate(wave(VALUES["high_order"]["shape"])), VALUES["high_order"])


@pytest.mark.parametrize("earlier", [1, 2, 3])
def test_previous_knowledge_is_that_of_the_authors(earlier):
    widths = tuple(16 // 2**s for s in range(earlier, 0, -1))
    gate = regard.gate("pkcam")(16, earlier=widths).double()
    shapes = {
        "local.weight": (1, 1, 3),
        "wide.weight": (1, 1, 3),
        "stages.weight": (1, earlier + 1),
        "pair.weight": (1, 2),
    }
    gate.load_state_dict({name: parameter_wave(6 + place, shape) for place, (name, shape) in enumerate(shapes.items())})
    past = [wave((2, width), 3 + s) for width, s in zip(widths, range(earlier, 0, -1), strict=True)]
    check(gate(wave((2, 16, 3, 5)) + 2, past), VALUES[f"pkcam_{earlier}"])


def test_split_attention_is_that_of_timm():
    mixture = regard.mixture("split_attention")(16).double().eval()
    order = [
        *("convolution.weight", "norm.weight", "norm.bias", "down.weight", "down.bias"),
        *("hidden_norm.weight", "hidden_norm.bias", "up.weight", "up.bias"),
    ]
    state = in_turn(order, dict(mixture.named_parameters())) | running(mixture, ["norm", "hidden_norm"])
    mixture.load_state_dict(state, strict=False)
    check(mixture(wave(VALUES["timm_splat"]["shape"])), VALUES["timm_splat"])


def test_the_blocks_of_super_resolution_are_those_of_the_authors():
    block = A2Block(8).double()
    inner = ("down.weight", "up.weight", "first.weight", "second.weight", "second.bias", "third.weight", "last.weight")
    order = ["first.weight", "last.weight", *(f"mixture.{name}" for name in inner), "mixture.plain.weight"]
    block.load_state_dict(in_turn(order, dict(block.named_parameters())))
    check(block(wave(VALUES["a2_block"]["shape"])), VALUES["a2_block"])
    layers, cells = LayerAttention().double(), ChannelSpatialAttention().double()
    layers.load_state_dict({"gamma": parameter_wave(0, (1,))[0]}, strict=False)
    check(layers(wave(VALUES["han_layers"]["shape"])), VALUES["han_layers"])
    given = {"gamma": parameter_wave(0, (1,))[0], "convolution.bias": parameter_wave(2, (1,))}
    cells.load_state_dict(given | {"convolution.weight": parameter_wave(1, (1, 1, 3, 3, 3))})
    check(cells(wave(VALUES["han_cells"]["shape"])), VALUES["han_cells"])


def test_patchconvnet_is_that_of_the_authors():
    net = PatchConvNet(classes=5, width=16, depth=2).double().eval()
    stem = ["pool.query", *(f"stem.{n}.weight" for n in (0, 2, 4, 6))]
    convolutions = [f"inner.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    gate = [f"inner.4.{name}" for name in MLP]
    block = ["gamma", "norm.weight", "norm.bias", *convolutions, *gate, "inner.5.weight", "inner.5.bias"]
    pool = ["pool.gammas.0", "pool.gammas.1", "pool.norms.0.weight", "pool.norms.0.bias"]
    pool += [f"pool.attention.projection.{n}.{kind}" for n in ("q", "k", "v", "out") for kind in ("weight", "bias")]
    pool += ["pool.norms.1.weight", "pool.norms.1.bias"]
    pool += [f"pool.network.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    order = [*stem, *(f"blocks.{n}.{name}" for n in range(2) for name in block), *pool]
    order += ["norm.weight", "norm.bias", "classes.weight", "classes.bias"]
    net.load_state_dict(in_turn(order, dict(net.named_parameters())))
    check(net(wave(VALUES["patchconvnet"]["shape"])), VALUES["patchconvnet"])


def test_the_large_kernel_is_that_of_the_authors():
    gate = regard.gate("sdlska(kernel=11)")(8).double().eval()
    steps = [f"{n}.{kind}" for n in (0, 1, 2) for kind in ("weight", "bias")]
    order = [f"{part}.{kind}" for part in ("square", "row", "column", "mix") for kind in ("weight", "bias")]
    order += [f"select.{part}.{step}" for part in ("reduce", "expand.0", "expand.1", "expand.2") for step in steps]
    order += ["select.cells.weight", "select.cells.bias"]
    norms = [f"select.{part}.2" for part in ("reduce", "expand.0", "expand.1", "expand.2")]
    state = in_turn(order, dict(gate.named_parameters())) | running(gate, norms)
    gate.load_state_dict(state, strict=False)
    check(gate(wave(VALUES["sdlska"]["shape"])), VALUES["sdlska"])


@pytest.mark.slow
def test_stereo_matching_is_that_of_the_authors():
    net = waved(PSMNet(16, aligned=False)).train()
    with torch.no_grad():
        found = net(wave((2, 3, 256, 256)), wave((2, 3, 256, 256), 0.3))
    check(torch.cat(found).flatten()[::337], VALUES["psmnet"])


def test_residual_attention_is_the_graph_of_the_authors():
    """In training, since norms by batch keep the numbers of so deep a network in range."""
    net, order = ResidualAttentionNetwork(56, 5, 4).double().train(), []
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.Linear)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, _: order.append(module))
    x = wave(VALUES["residual_attention"]["shape"])
    net(x)
    parameters = [parameter for module in order for parameter in module.parameters()]
    assert len(order) == len(layers)
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter.copy_(parameter_wave(number, parameter.shape))
    check(net(x), VALUES["residual_attention"])
