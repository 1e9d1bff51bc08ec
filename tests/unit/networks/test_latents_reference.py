"""Latents compute what published code does, written down by tests/reference/latents.py."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from reference.waves import parameter_wave, running_wave, wave
from regard.networks.latents.co4 import Modulated
from regard.networks.latents.co4_control import Co4Policy, Paired
from regard.networks.latents.ep import EfficientProbing
from regard.networks.latents.flare import Flare
from regard.networks.latents.perceiver import Perceiver
from regard.networks.latents.slots import Slots
from regard.networks.latents.tempr import TemPr, adaptive
from regard.networks.latents.tempr_video import TemPrVideo, VideoResNet, with_positions

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "latents.json").read_text())
PERCEIVER = {
    "cross_attention.": "cross.0.",
    "self_attends.": "stack.",
    "attention.self.layernorm1": "norm",
    "attention.self.layernorm2": "norm_array",
    "attention.self.": "",
    "attention.output.dense": "out",
    "layernorm.": "norm_mlp.",
    "mlp.dense1": "mlp.0",
    "mlp.dense2": "mlp.2",
}


TEMPR = (
    (r"^layers\.(\d)\.0\.", r"towers.\1.cross.A."),
    (r"^layers\.(\d)\.1\.", r"towers.\1.cross.M."),
    (r"^layers\.(\d)\.2\.(\d)\.0\.", r"towers.\1.stack.\2.A."),
    (r"^layers\.(\d)\.2\.(\d)\.1\.", r"towers.\1.stack.\2.M."),
    (r"A\.fn\.to_q", "query"),
    (r"A\.fn\.to_kv", "to_kv"),
    (r"A\.fn\.to_out\.0", "out"),
    (r"A\.norm_context", "norm_array"),
    (r"A\.norm", "norm"),
    (r"M\.fn\.net\.0", "mlp.0"),
    (r"M\.fn\.net\.3", "mlp.2"),
    (r"M\.norm", "norm_mlp"),
    (r"^reduce\.2", "norm"),
    (r"^fc", "classes"),
    (r"^latents", "initial"),
)


def loaded(module, case, rename):
    """The module with the waves of the parameters that published code has under the names that ``rename`` changes."""
    module, names, own = module.double(), VALUES[case]["names"], {}
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    for place, name in enumerate(names):
        here = rename(name)
        if here is not None:
            own[here] = parameter_wave(place, shapes[here])
    module.load_state_dict(own)
    return module


def same(got, case):
    torch.testing.assert_close(got, torch.tensor(VALUES[case]["out"], dtype=torch.float64), atol=2e-7, rtol=0)


def replaced(names):
    def rename(name):
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    return rename


def test_efficient_probing():
    pool = loaded(EfficientProbing(12, 3, 2), "ep", replaced({"cls_token": "initial", "v.": "value."}))
    same(pool(wave((2, 5, 12))).flatten(1), "ep")


def test_flare():
    names = {"latent_q": "initial", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    names |= {"fc1": "layers.0", "fcs.0": "layers.1", "fc2": "layers.2"}
    same(loaded(Flare(12, 5, 3, 1), "flare", replaced(names))(wave((2, 7, 12))), "flare")


def test_slots():
    names = {
        "slots_mu": "mean",
        "slots_logsigma": "log_deviation",
        "norm_input.": "norm_inputs.",
        "norm_pre_ff": "norm_mlp",
    }
    names |= {"to_q": "query", "to_k": "key", "to_v": "value"}
    kept = replaced(names)
    pool = loaded(
        Slots(6, 3, 6, 2, 8), "slots", lambda name: None if name[:3] == "to_" and "bias" in name else kept(name)
    )
    noise = torch.tensor(VALUES["slots"]["noise"], dtype=torch.float64)
    same(pool(wave((2, 5, 6)), start=pool.mean + pool.log_deviation.exp() * noise), "slots")


def test_perceiver():
    pool = Perceiver(6, 3, 8, rounds=2, layers=2, heads=2)
    initial = {"initial": pool.initial.detach().double()}
    pool = pool.double()
    names = [replaced(PERCEIVER)(name) for name in VALUES["perceiver"]["names"]]
    shapes = {name: parameter.shape for name, parameter in pool.named_parameters()}
    pool.load_state_dict(initial | {name: parameter_wave(place, shapes[name]) for place, name in enumerate(names)})
    same(pool(wave((2, 7, 6)), start=wave((2, 3, 8))), "perceiver")


def test_co4():
    same(loaded(Modulated(6, 12), "co4", str)(wave((2, 15, 6))), "co4")


CONTROL = (
    (r"^0\.lstm", "memory"),
    (r"^0\.attention\.", "scores."),
    (r"proj_q", "query"),
    (r"proj_k", "key"),
    (r"scores\.linear", "scores.context"),
    (r"^1\.", "act."),
)


def renamed(name):
    for old, new in CONTROL:
        name = re.sub(old, new, name)
    return name


def test_co4_policy():
    """In float64 its sines too, which theirs rounds to single precision first, as ours does."""
    policy = Co4Policy(5, 2, 16, 7, 4, bias=True, scaled=True)
    same(loaded(policy, "co4_policy", renamed)(wave((1, 3, 5)))[0], "co4_policy")


def test_co4_paired():
    with torch.no_grad():
        same(loaded(Paired((4, 3), 7), "co4_paired", renamed)(wave((6, 4)), wave((2, 3), 0.5)), "co4_paired")


def test_co4_of_many_latents_by_hand():
    """Each number of the output by its formula, three latents and two heads of two channels."""
    torch.manual_seed(0)
    net, x = Modulated(4, 2, 3, 2).double(), torch.randn(1, 8, 4, dtype=torch.float64)
    out, d = net(x)[0], 2
    for head in range(2):
        q, k, v = (part[0, :, head * d : head * d + d] for part in net.qkv(x).chunk(3, -1))
        asks, keys, values, put = list(q[:3]), list(k[:3]), list(v[:3]), []
        streams = []
        for one in range(3):
            qm, km = q[3:] + q[one] * k[3:], k[3:] + k[one] * q[3:]
            vm = v[3:] ** 2 + 2 * v[3:] + q[one] * k[one] * (1 + v[one].abs())
            streams.append(vm)
            for rank in range(2):
                asks.append(qm.sort(0, descending=True).values[rank])
                keys.append(km.sort(0, descending=True).values[rank])
                values.append(vm.sort(0, descending=True).values[rank])
                put.append((one, vm.sort(0, descending=True).indices[rank]))
        a = torch.softmax(torch.stack(asks) @ torch.stack(keys).mT / d**0.5, -1)
        found = a @ torch.stack(values)
        want = torch.stack(streams)
        for row, (one, places) in zip(found[3:], put, strict=True):
            for channel in range(d):
                want[one, places[channel], channel] += row[channel]
        torch.testing.assert_close(out[:3, head * d : head * d + d], found[:3])
        torch.testing.assert_close(out[3:, head * d : head * d + d], want.mean(0))


def test_co4_is_told_what_cannot_be():
    with pytest.raises(ValueError, match="heads: got 3, want a divisor of the 4 channels"):
        Modulated(4, 2, 1, 3)
    with pytest.raises(ValueError, match="keys: got 4, want a divisor of the 6 queries"):
        Paired((3, 3), 5)(torch.zeros(6, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="x: got shape"):
        Co4Policy(4)(torch.zeros(2, 7, 5))


def towers(case, channels):
    """Two towers with the weights of published ones."""
    net = TemPr(channels, 4, 2, latents=3, width=8, heads=2, head_dim=4).double()
    shapes, own = {name: p.shape for name, p in net.named_parameters()}, {"beta": torch.ones((), dtype=torch.float64)}
    for place, name in enumerate(VALUES[case]["names"]):
        here = name
        for old, new in TEMPR:
            here = re.sub(old, new, here)
        if "to_kv" in here:
            key, value = (here.replace("to_kv", part) for part in ("key", "value"))
            own[key], own[value] = parameter_wave(place, (2 * shapes[key][0], shapes[key][1])).chunk(2)
        else:
            own[here] = parameter_wave(place, shapes[here])
    net.load_state_dict(own)
    return net


def test_tempr():
    """What each tower says; of the adaptive pool see below."""
    same(towers("tempr", 5).predictions(wave((2, 2, 6, 5))), "tempr")


def test_tempr_reads_maps_with_places():
    maps = wave((2, 5, 2, 3, 2, 4)).transpose(1, 2)
    features = with_positions(maps.flatten(0, 1), 3, 10.0).unflatten(0, (2, 2))
    same(towers("tempr_places", 5 + 3 * 7).predictions(features), "tempr_places")


RESIDUAL = (
    (r"^stem\.0", "stem"),
    (r"^stem\.1", "norm"),
    (r"^layer1\.0", "blocks.0"),
    (r"^layer2\.(\d)", lambda m: f"blocks.{1 + int(m[1])}"),
    (r"conv1\.0\.0", "first"),
    (r"conv2\.0\.0", "second"),
    (r"conv(\d)\.1", lambda m: f"norms.{int(m[1]) - 1}"),
    (r"downsample", "skip"),
)


def test_what_tempr_reads():
    """Its residual network, with running statistics, to the end of the second stage."""
    net, own = VideoResNet(3, (1, 2), (64, 128)).double().eval(), {}
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    case = VALUES["video_resnet"]
    for kind in ("names", "running"):
        for place, name in enumerate(case[kind]):
            here = name
            for old, new in RESIDUAL:
                here = re.sub(old, new, here)
            if name.endswith("num_batches_tracked"):
                own[here] = torch.zeros((), dtype=torch.int64)
            elif kind == "running":
                own[here] = running_wave(place, name, shapes[here])
            else:
                own[here] = parameter_wave(place, shapes[here])
    net.load_state_dict(own)
    with torch.no_grad():
        same(net(wave((1, 3, 5, 18, 21)))[:, ::16], "video_resnet")


def test_beginnings_by_hand():
    """Of 8 frames a quarter, a half, three quarters and all, three frames each; of one frame always that."""
    net = TemPrVideo(2, 4, 3, 1, (1,), (4,), 2, towers={"latents": 2, "width": 4, "heads": 1, "head_dim": 4})
    assert net.beginnings(8).tolist() == [[0, 0, 1], [0, 1, 3], [0, 2, 5], [0, 3, 7]]
    assert not net.beginnings(1).any()
    assert not any(p.requires_grad for p in net.backbone.parameters())
    with pytest.raises(ValueError, match="videos: got shape"):
        net(torch.zeros(1, 2, 8, 9, 9))


def test_the_adaptive_pool_by_hand():
    """Scores 1 and 3, mean 2: alike by 0.8 and 12/13, exponentials of both kinds."""
    said = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
    near, most = math.exp(0.8), math.exp(12 / 13)
    alike, highest = (near + 3 * most) / (near + most), (math.e + 3 * math.e**3) / (math.e + math.e**3)
    for beta in (0.0, 0.25, 1.0):
        want = beta * alike + (1 - beta) * highest
        assert abs(adaptive(said, torch.tensor(beta)).item() - want) < 1e-7
