"""Writes feature_maps.json: every third number of what published modules for feature maps make of waves, with waves as
weights.

    python tests/reference/feature_maps.py FOLDER        (timm 1.0.31, PyTorch 2.13)

FOLDER holds the authors' files, as their repositories have them: ``triplet_attention.py`` of
landskape-ai/triplet-attention,
``fca_layer.py`` (model/layer.py of cfzd/FcaNet), ``ulsam.py`` of Nandan91/ULSAM without its first statement, which
sets a
tensor type of GPUs, ``emca.py`` (Code/eca_resnet_multi_scale.py of eslambakr/EMCA without the import of srm), and
``mhn_model.py`` (model.py of chenbinghui1/MHN). timm is found as in tests/peers/without_torchvision.py.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.without_torchvision import timm
from reference.waves import wave, waved


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


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    values = of_timm() | of_authors()
    for value in values.values():
        value["out"] = [round(number, 8) for number in value["out"][::3]]
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
