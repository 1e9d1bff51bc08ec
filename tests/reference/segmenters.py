"""Writes segmenters.json: some numbers of what published networks that label or cut out pixels make of waves, with
waves as weights, numbered as their layers are called.

    python tests/reference/segmenters.py FOLDER        (PyTorch 2.13)

FOLDER holds clones of the authors' repositories by their names, and stands for what they import and do not use:

- ``P2AT`` of mohamedac29
- ``InSPyReNet`` of plemeri, which needs OpenCV
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.necks import execute, numbers, stand_in
from reference.waves import wave, waved_in_use


class Block(nn.Module):
    """torchvision's basic block."""

    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.down = None
        if stride > 1 or inside != out:
            self.down = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + (x if self.down is None else self.down(x)))


def resnet(weights, block=Block, expansion=1):
    """torchvision's residual network of two blocks a stage, the first of eight channels."""
    net = types.SimpleNamespace(relu=nn.ReLU(), maxpool=nn.MaxPool2d(3, 2, 1), bn1=nn.BatchNorm2d(8))
    net.conv1, inside = nn.Conv2d(3, 8, 7, 2, 3, bias=False), 8
    for stage in range(4):
        out = 8 * 2**stage * expansion
        setattr(net, f"layer{stage + 1}", nn.Sequential(block(inside, out, 2 if stage else 1), block(out, out, 1)))
        inside = out
    return net


def p2at(folder: Path, name: str = "p2at", backbone=resnet):
    """The network at an eighth of a backbone's channels, the second pool in the place of its first."""
    root = folder / "P2AT/models"
    stand_in("timm")
    stand_in("timm.models")
    stand_in("timm.models.layers", DropPath=lambda _: nn.Identity())
    changed = {"x_pool1, x_pool1, x_pool3": "x_pool1, x_pool2, x_pool3"}
    stand_in("models")
    sys.modules["models.common_blocks"] = execute(root / "common_blocks.py", **changed)

    depths = (18, 34, 50, 101, 152)
    kinds = types.SimpleNamespace(IMAGENET1K_V1=None, IMAGENET1K_V2=None)
    stand_in("torchsummary", summary=None)
    stand_in("torchvision")
    weights = {f"ResNet{n}_Weights": kinds for n in depths}
    stand_in("torchvision.models", **{f"resnet{n}": backbone for n in depths}, **weights)
    net, images = execute(root / "P2AT.py").P2AT("resnet18", False, 5), wave((2, 3, 75, 99))
    net = waved_in_use(net, images)
    with torch.no_grad():
        return {name: numbers(net(images))}


def inspyrenet(folder: Path):
    """The pyramid of five waves as the backbone's maps, its line attention and its contexts with the axes turned that
    are meant; with OpenCV for its kernel."""
    root = folder / "InSPyReNet"
    stand_in("kornia")
    stand_in("kornia.morphology", dilation=None, erosion=None)
    sys.path.insert(0, str(root))
    for name in ("lib", "lib.optim", "lib.backbones", "utils", "utils.misc"):
        stand_in(name)
    sys.modules["lib"].__path__ = [str(root / "lib")]
    stand_in("lib.backbones.Res2Net_v1b", res2net50_v1b_26w_4s=None)
    stand_in("lib.backbones.SwinTransformer", SwinB=None)
    layers = importlib.import_module("lib.modules.layers")
    layers.SelfAttention.forward = lines(layers.SelfAttention.forward)
    attention = importlib.import_module("lib.modules.attention_module")
    text = (root / "lib/modules/attention_module.py").read_text()
    text = text.replace("align_corners=False).view(b, shape_mul, -1)", "align_corners=False).flatten(2).mT")
    exec(compile(text, "attention_module", "exec"), attention.__dict__)
    module = importlib.import_module("lib.InSPyReNet")
    module.SICA = attention.SICA
    widths = (4, 4, 8, 16, 32)
    maps = [wave((2, c, n, 2 * n), c) for c, n in zip(widths, (16, 16, 8, 4, 2), strict=True)]
    net = module.InSPyReNet(lambda _: maps, widths, 8, [24, 16])
    net.image_pyramid.kernel = kernel_of(7)

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def train(self, mode=True):
            for part in self.net.children():
                part.train(mode)
            return self

        def forward(self, images):
            return self.net.forward_inspyre(images)["saliency"][::-1]

    steps, images = Steps(), torch.zeros(2, 3, 64, 128, dtype=torch.float64)
    steps = waved_in_use(steps, images)
    with torch.no_grad():
        return {"inspyrenet": numbers(steps(images))}


def kernel_of(side: int):
    """The Gaussian that OpenCV gives."""
    line = torch.from_numpy(importlib.import_module("cv2").getGaussianKernel(side, 1))
    return (line @ line.T)[None, None]


def lines(columns):
    """Attention of rows by that of columns: theirs takes the last axis for both."""

    def forward(own, x):
        if own.mode == "w":
            return columns(own, x)
        own.mode = "w"
        out = columns(own, x.transpose(2, 3).contiguous()).transpose(2, 3)
        own.mode = "h"
        return out

    return forward


def main(folder: str) -> None:
    values = p2at(Path(folder)) | inspyrenet(Path(folder))
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
