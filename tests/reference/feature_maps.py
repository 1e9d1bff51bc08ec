"""Writes feature_maps.json: every third number of what published modules for feature maps make of waves, with waves as
weights.

    python tests/reference/feature_maps.py FOLDER        (timm 1.0.31, PyTorch 2.13)

timm is found as in tests/peers/without_torchvision.py. FOLDER holds the authors' files, as their repositories have
them:

- ``triplet_attention.py`` of landskape-ai/triplet-attention, ``mhn_model.py`` (model.py of chenbinghui1/MHN)
- ``fca_layer.py`` (model/layer.py of cfzd/FcaNet)
- ``ulsam.py`` of Nandan91/ULSAM without its first statement, which sets a tensor type of GPUs
- ``emca.py`` (Code/eca_resnet_multi_scale.py of eslambakr/EMCA) without the import of srm
- ``aan.py`` of haoyuc/A2N, ``han_model.py`` (src/model/han.py of wwlCape/HAN) and its ``model/common.py``
- ``attention56.prototxt`` (imagenet_model/Attention-56-deploy.prototxt of fwang91/residual-attention-network)
- ``bevanet/`` with conv.py, FS.py and LSKA.py of models/ in maomao0819/BEVANet
- ``psmnet/`` with stackhourglass.py and submodule.py of models/ in JiaRenChang/PSMNet, in float64 without cuda
- ``patchconvnet_models.py`` of facebookresearch/deit with the places where timm has its parts today
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.without_torchvision import timm
from reference.waves import parameter_wave, wave, waved


def authors(file: str):
    return importlib.import_module(file)


def gate(module, channels: int, *size: int):
    """The shape of a map, and what a module makes of it, in float64."""
    module, shape = waved(module), (2, channels, *size)
    with torch.no_grad():
        return {"shape": shape, "out": module(wave(shape)).flatten().tolist()}


def of_timm():
    timm()
    layer = {
        "timm_se": ("squeeze_excite", "SEModule", {"rd_divisor": 8}),
        "timm_ese": ("squeeze_excite", "EffectiveSEModule", {}),
        "timm_eca": ("eca", "EcaModule", {}),
        "timm_cbam": ("cbam", "CbamModule", {}),
        "timm_gc": ("global_context", "GlobalContext", {}),
        "timm_coord": ("coord_attn", "CoordAttn", {}),
        "timm_splat": ("split_attn", "SplitAttn", {"norm_layer": torch.nn.BatchNorm2d}),
    }
    return {
        name: gate(getattr(importlib.import_module(f"timm.layers.{file}"), of)(16, **more), 16, 3, 5)
        for name, (file, of, more) in layer.items()
    }


def excitation(earlier: int, channels: int = 16):
    """1 + g of PKCAM's block, whose residual is the map itself and whose shortcut is nothing."""
    block = waved(authors("emca").BasicResidualECABlock(channels, channels, 1, 2, stage_id=earlier))
    block.residual, block.shortcut = torch.nn.Identity(), Nothing()
    x = wave((2, channels, 3, 5)) + 2
    past = [wave((2, channels // 2**s), 3 + s).repeat(1, 2**s) for s in range(earlier, 0, -1)]
    with torch.no_grad():
        out, _, _ = block((x, [], past))
    return {"out": out.flatten().tolist()}


class Nothing(torch.nn.Module):
    """A shortcut of zeros."""

    def forward(self, x):
        return torch.zeros_like(x)


def of_authors():
    triplet, fca = authors("triplet_attention"), authors("fca_layer").MultiSpectralAttentionLayer
    high, ulsam = authors("mhn_model").HighDivModule, authors("ulsam").ULSAM
    return {
        "triplet": gate(triplet.TripletAttention(5), 5, 7, 6),
        "fcanet": gate(fca(16, 7, 7, reduction=4), 16, 7, 7),
        "fcanet_14": gate(fca(16, 14, 14, reduction=4), 16, 5, 9),
        "ulsam": gate(ulsam(12, 12, 5, 4, 3), 12, 5, 4),
        "high_order": gate(high(16, 3), 16, 2, 3),
        **{f"pkcam_{earlier}": excitation(earlier) for earlier in (1, 2, 3)},
    }


def of_networks():
    han, patch = authors("han_model"), authors("patchconvnet_models").PatchConvnet
    layers, shape = waved(han.LAM_Module(3)), (2, 4, 3, 2, 5)
    with torch.no_grad():
        attended = layers(wave(shape)).flatten().tolist()
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    sizes = {"embed_dim": 16, "depth": 2, "num_classes": 5, "qkv_bias": True, "norm_layer": norm}
    return {
        "a2_block": gate(authors("aan").AAB(8), 8, 3, 5),
        "han_layers": {"shape": shape, "out": attended},
        "han_cells": gate(han.CSAM_Module(6), 6, 3, 5),
        "patchconvnet": gate(patch(**sizes), 3, 48, 48),
    }


def bevanet():
    return gate(authors("bevanet.LSKA").SDLSKA(8, 11), 8, 7, 6)


def psmnet():
    """In training, where batch norms keep the numbers of so deep a network in range; every 337th of them."""
    net = waved(authors("psmnet.stackhourglass").PSMNet(16)).train()
    left, right = wave((2, 3, 256, 256)), wave((2, 3, 256, 256), 0.3)
    with torch.no_grad():
        found = net(left, right)
    return {"out": torch.cat(found).flatten()[::337].tolist()}


def layers_of(text: str):
    """Name, type, inputs, output, a reader of fields and the text of each layer of a Caffe graph."""
    for body in re.split(r"\nlayer\s*\{", "\n" + text)[1:]:

        def read(key, body=body):
            return re.findall(key + r'\s*:\s*"?([^\s"}]+)', body)

        yield read("type")[0], read("bottom"), read("top")[0], read


def residual_attention(folder: str, shrink: int = 16):
    """The graph at a sixteenth of its channels, five classes, norms by batch; the k-th weight is the k-th wave."""
    shape, number = (2, 3, 75, 70), itertools.count()
    maps = {"data": wave(shape)}
    for kind, inputs, output, read in layers_of((Path(folder) / "attention56.prototxt").read_text()):
        x = maps[inputs[0]]
        if kind == "Convolution":
            size, width = int(read("kernel_size")[0]), int(read("num_output")[0]) // shrink
            weight = parameter_wave(next(number), (width, x.shape[1], size, size))
            x = F.conv2d(x, weight, stride=int(read("stride")[0]), padding=int(read("pad")[0]))
        elif kind == "BN":
            scale, shift = (parameter_wave(next(number), (x.shape[1],)) for _ in range(2))
            x = F.batch_norm(x, None, None, scale, shift, True)
        elif kind == "Pooling":
            x = F.max_pool2d(x, 3, 2, ceil_mode=True) if read("pool")[0] == "MAX" else x.mean((2, 3), keepdim=True)
        elif kind == "Interp":
            x = F.interpolate(x, maps[inputs[1]].shape[2:], mode="bilinear", align_corners=True)
        elif kind == "Eltwise":
            x = x * maps[inputs[1]] if read("operation") == ["PROD"] else x + maps[inputs[1]]
        elif kind == "InnerProduct":
            weight, bias = parameter_wave(next(number), (5, x.shape[1])), parameter_wave(next(number), (5,))
            return {"shape": shape, "out": F.linear(x.flatten(1), weight, bias).flatten().tolist()}
        else:
            x = {"ReLU": torch.relu, "Sigmoid": torch.sigmoid}[kind](x)
        maps[output] = x
    raise ValueError("a graph without a classifier")


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    values = of_timm() | of_authors() | of_networks() | {"sdlska": bevanet(), "psmnet": psmnet()}
    values["residual_attention"] = residual_attention(folder)
    for value in values.values():
        value["out"] = [round(number, 8) for number in value["out"][::3]]
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
