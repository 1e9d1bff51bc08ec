"""Gates and mixtures equal what published code computes, written down by tests/reference/feature_maps.py."""

import json
from pathlib import Path

import pytest
import torch

import regard
from reference.waves import parameter_wave, running_wave, wave

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
