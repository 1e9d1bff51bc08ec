"""Writes stages.json: the logits of small hierarchical networks of timm on a wave, with waves as weights.

    python tests/reference/stages.py FOLDER        (timm 1.0.31, PyTorch 2.13, einops)

timm is found as in tests/peers/without_torchvision.py. FOLDER holds ``bra_legacy.py`` (ops/bra_legacy.py of
rayleizhu/BiFormer). Beside the networks, the attention of BiFormer and of timm's BottleneckAttn.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.without_torchvision import timm
from reference.waves import running_wave, wave

SIZES = {
    "davit": ("DaVit", {"embed_dims": (4, 6), "num_heads": (2, 3), "depths": (1, 2), "window_size": 3}),
    "focalnet": ("FocalNet", {"embed_dim": 4, "depths": (1, 1), "focal_levels": (2, 1), "focal_windows": (3, 5)}),
    "shvit": (
        "SHViT",
        {"embed_dim": (8, 10, 12), "depth": (1, 1, 1), "partial_dim": (3, 4, 5), "types": ("i", "s", "s")},
    ),
    "mambaout": ("MambaOut", {"dims": (4, 6), "depths": (1, 2)}),
    "maxvit": (
        "MaxxVit",
        {"embed_dim": (4, 8), "depths": (1, 2), "block_type": ("M", "M"), "stem_width": 6, "head_hidden_size": 8}
        | {"transformer_dim_head": 4, "transformer_window_size": (3, 3), "transformer_grid_size": (3, 3)},
    ),
    "twins": (
        "Twins",
        {"embed_dims": (4, 6), "num_heads": (2, 3), "mlp_ratios": (4, 2), "depths": (2, 3), "wss": (3, 3)}
        | {"sr_ratios": (2, 1), "img_size": 24},
    ),
    "swin": (
        "SwinTransformer",
        {"embed_dim": 4, "num_heads": (2, 4), "depths": (2, 2), "window_size": 4, "img_size": 64},
    ),
}
"""For each family its class and the sizes of a small one; MaxViT's are over those of maxvit_tiny_tf_224."""
SIDES = {"shvit": 64, "swin": 64}


def small(family: str):
    """The small network of timm, for five classes."""
    timm()
    name, sizes = SIZES[family]
    file = {"MaxxVit": "maxxvit", "SwinTransformer": "swin_transformer"}.get(name, name.lower())
    module = importlib.import_module(f"timm.models.{file}")
    more = (module.model_cfgs["maxvit_tiny_tf"],) if family == "maxvit" else ()
    return getattr(module, name)(*more, num_classes=5, **sizes).double().eval()


def state(shapes) -> dict[str, torch.Tensor]:
    """Waves of these shapes by their names, so large that the image still shows in what comes out."""
    return {name: value(place, name, tuple(shape)) for place, (name, shape) in enumerate(shapes.items())}


def value(place: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight of this name."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if name.endswith(("running_mean", "running_var")):
        return running_wave(place, name, shape)
    if len(shape) == 1:
        return 0.3 * wave(shape, 1 + place) + name.endswith("weight")
    return 2 * wave(shape, 1 + place) / (math.prod(shape) / shape[0]) ** 0.5


def written(family: str):
    """The shapes of the weights, and the logits."""
    model, side = small(family), SIDES.get(family, 24)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    model.load_state_dict(state(shapes))
    image = wave((2, 3, side, side))
    with torch.no_grad():
        out = model(image)
    return {"image": tuple(image.shape), "state": shapes, "out": [round(x, 8) for x in out.flatten().tolist()]}


def layer(module, image: torch.Tensor, call) -> dict:
    """The shapes of the weights, and what a layer makes of a wave."""
    module = module.double().eval()
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    module.load_state_dict(state(shapes))
    with torch.no_grad():
        out = call(module, image)
    return {"image": tuple(image.shape), "state": shapes, "out": [round(x, 8) for x in out.flatten()[::3].tolist()]}


def bottleneck(scaled: bool):
    timm()
    kind = importlib.import_module("timm.layers.bottleneck_attn").BottleneckAttn
    module = kind(8, feat_size=(5, 5), num_heads=2, scale_pos_embed=scaled)
    return layer(module, wave((2, 8, 5, 5)), lambda module, x: module(x))


def bi_level():
    module = importlib.import_module("bra_legacy").BiLevelRoutingAttention(8, 2, 3, topk=2, side_dwconv=5)
    return layer(module, wave((2, 8, 6, 9)), lambda module, x: module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    values = {family: written(family) for family in SIZES}
    values |= {"bottleneck": bottleneck(False), "bottleneck_scaled": bottleneck(True), "bi_level": bi_level()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
