"""Networks of images: with waves as weights, what their authors' code gives, by tests/reference/networks.py."""

import json
import re
from pathlib import Path

import pytest
import torch

from reference.stages import state
from reference.waves import wave
from regard.networks.stages.network import Stages
from regard.networks.vision import patnet

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "networks.json").read_text())


def named(ours, about, names, made=None):
    """Their weights by our names: ``names`` are patterns of ours and what they are there, ``made`` what is done."""
    theirs, found, used = state(about["state"]), {}, set()
    for name, tensor in ours.items():
        there = name
        for pattern, by in names:
            there = re.sub(pattern, by, there)
        part = re.fullmatch(r"(.*qkv)\.([qkv])\.(.*)", there)
        if part:
            there = f"{part[1]}.{part[3]}"
        value = theirs[there]
        used.add(there)
        if part:
            value = value.chunk(3)["qkv".index(part[2])]
        for pattern, change in (made or {}).items():
            if re.search(pattern, there):
                value = change(value)
        assert value.numel() == tensor.numel(), (name, there, value.shape)
        found[name] = value.reshape(tensor.shape)
    assert not set(theirs) - used, sorted(set(theirs) - used)[:5]
    return found


def check(net, about, names, made=None, call=None):
    """The numbers that come out are theirs."""
    net = net.double().eval()
    net.load_state_dict(named(net.state_dict(), about, names, made))
    with torch.no_grad():
        out = (call or net)(*(wave(shape, 0.3 * place) for place, shape in enumerate(about["inputs"])))
    want = torch.tensor(about["out"], dtype=torch.float64)
    assert want.std() > 1e-3
    torch.testing.assert_close(out.flatten()[::3], want, atol=1e-7, rtol=0)


PATNET = [
    (r"^stem\.convolution", "patch_embed.proj"),
    (r"^stem\.norm", "patch_embed.norm"),
    (r"^head\.first\.", "avgpool_pre_head.1."),
    (r"^head\.classes", "head"),
    (r"^stages\.(\d)\.down\.convolution", lambda m: f"stages.{2 * int(m[1]) - 1}.reduction"),
    (r"^stages\.(\d)\.down", lambda m: f"stages.{2 * int(m[1]) - 1}"),
    (r"^stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"stages.{2 * int(m[1])}.blocks.{m[2]}."),
    (r"(blocks\.\d+)\.0\.step\.(?!mlp)", r"\1.spatial_mixing."),
    (r"(blocks\.\d+)\.0\.step\.mlp\.", r"\1.mlp."),
    (r"(blocks\.\d+)\.1\.step\.", r"\1.mlp."),
    (r"spatial_mixing\.convolution", "spatial_mixing.partial_conv3"),
    (r"spatial_mixing\.gate\.mix\.linear", "spatial_mixing.attn.cfc1"),
    (r"spatial_mixing\.gate\.mix\.norm", "spatial_mixing.attn.bn"),
    (r"spatial_mixing\.projection\.out", "spatial_mixing.attn.proj"),
    (r"spatial_mixing\.projection", "spatial_mixing.attn.qkv"),
    (r"spatial_mixing\.table", "spatial_mixing.attn.rpe_k.lookup_table_bias"),
    (r"mlp\.first", "mlp.0"),
    (r"mlp\.norm", "mlp.1"),
    (r"mlp\.second", "mlp.3"),
    (r"mlp\.cells\.matrix", "mlp.4.conv"),
    (r"mlp\.cells\.score", "mlp.4.conv_attn"),
    (r"mlp\.cells\.first_norm", "mlp.4.norm"),
    (r"mlp\.cells\.second_norm", "mlp.4.norm2"),
]


def test_patnet():
    net = Stages(patnet.design((1, 2, 1, 1), 16, "gelu", True, 4, 11), 5)
    check(net, VALUES["patnet"], PATNET, {"cfc1": lambda weight: weight.permute(0, 3, 1, 2)})


def test_another_size_is_told():
    with pytest.raises(ValueError, match="divisor"):
        Stages("stages(widths=(8,), layers='partial_channels(divisor=9)')", 5)
