"""Writes stages.json: the logits of small hierarchical networks of timm on a wave, with waves as weights.

    python tests/reference/stages.py        (timm 1.0.31, PyTorch 2.13)

timm is found as in tests/peers/without_torchvision.py.
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
}
"""For each family its class and the sizes of a small one; MaxViT's are over those of maxvit_tiny_tf_224."""
SIDES = {"shvit": 64}


def small(family: str):
    """The small network of timm, for five classes."""
    timm()
    name, sizes = SIZES[family]
    module = importlib.import_module({"MaxxVit": "timm.models.maxxvit"}.get(name, f"timm.models.{name.lower()}"))
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


def main() -> None:
    values = {family: written(family) for family in SIZES}
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
