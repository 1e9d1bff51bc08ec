"""Writes networks.json: what networks of images by their authors make of waves, with waves as weights.

    python tests/reference/networks.py FOLDER        (PyTorch 2.13, timm 1.0.31, einops, easydict)

timm is found as in tests/peers/without_torchvision.py. FOLDER holds the repositories named in `AUTHORS`, each in a
folder of the repository's name.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.without_torchvision import timm
from reference.stages import state
from reference.waves import wave

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def theirs(folder: str, module: str) -> ModuleType:
    """A module of a repository whose packages have common names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("models", "utils", "functions", "modules")]:
        del sys.modules[name]
    timm()
    layers = importlib.import_module("timm.layers")
    sys.modules["timm.models.layers"] = layers
    sys.path.insert(0, str(FOLDER / folder))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.pop(0)


def written(module: nn.Module, *shapes: tuple[int, ...], call: Callable[..., Tensor] | None = None) -> dict:
    """The shapes of the weights and of what goes in, and every third number that comes out."""
    module = module.double().eval()
    about = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    module.load_state_dict(state(about))
    with torch.no_grad():
        out = (call or module)(*(wave(shape, 0.3 * place) for place, shape in enumerate(shapes)))
    return {"inputs": shapes, "state": about, "out": [round(x, 8) for x in out.flatten()[::3].tolist()]}


def patnet() -> dict:
    """The deviation is taken of the population, as here: theirs is of a sample."""
    deviation = Tensor.std
    Tensor.std = lambda self, dim: deviation(self, dim, correction=0)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        kind = theirs("PartialNet", "models.partialnet").PartialNet
        net = kind(num_classes=5, embed_dim=16, depths=(1, 2, 1, 1), feature_dim=11, act_layer="GELU")
        return written(net, (2, 3, 96, 64))
    finally:
        Tensor.std = deviation


def resnet50(pretrained: bool = False) -> nn.Module:
    """A residual network of one block a stage with torchvision's names, which timm's has too."""
    timm()
    resnet = importlib.import_module("timm.models.resnet")
    net = resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), num_classes=0)
    net.relu = nn.ReLU()
    return net


def high_order(kind: str, **more: int) -> dict:
    module = theirs("MHN", "model")
    module.models = SimpleNamespace(resnet50=resnet50)  # pyright: ignore[reportAttributeAccessIssue]
    net = getattr(module, kind)(5, 3, **more)
    return written(net, (2, 3, 64, 32), call=lambda image: torch.stack(net(image)[0], 1))


def bevanet() -> dict:
    sys.modules["utils"] = ModuleType("utils")
    sys.modules["utils.utils"] = ModuleType("utils.utils")
    sys.modules["utils.utils"].calculate_FPS = None  # pyright: ignore[reportAttributeAccessIssue]
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]
    sys.path.insert(0, str(FOLDER / "BEVANet"))
    made, pyramids, fusion = (importlib.import_module(f"models.{name}") for name in ("BEVANet", "PPM", "FB"))
    sys.path.pop(0)
    parts = {"ppm": pyramids.DLKPPM, "fb": fusion.BGAF, "mlp_expand": [4, 4, 4], "n_blocks": [2, 1, 2, 2, 2]}
    spans = {"semantic_kernel_size": [0, 35, 35], "detail_kernel_size": [0, 23]}
    sizes = {"num_classes": 5, "planes": 4, "ppm_planes": 6, "head_planes": 7}
    net = made.BEVANet_SEG(**parts, **spans, **sizes)
    return written(net, (2, 3, 128, 64), call=lambda image: torch.cat([x.flatten() for x in net(image)]))


AUTHORS: dict[str, Callable[[], dict]] = {
    "patnet": patnet,
    "bevanet": bevanet,
    "mhn": partial(high_order, "MHN_IDE"),
    "mhn_stripes": partial(high_order, "MHN_smallPCB", part=2),
}


def main() -> None:
    values = {name: make() for name, make in AUTHORS.items()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
