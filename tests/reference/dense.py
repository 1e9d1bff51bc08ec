"""Writes dense.json: some numbers of what more published necks, and backbones of dense networks, make of waves, with
waves as weights, numbered as their layers are called.

    python tests/reference/dense.py FOLDER        (PyTorch 2.13, timm 1.0.31)

timm, of which the aligned Xception is, is found as in tests/peers/without_torchvision.py. FOLDER holds clones of the
authors' repositories by their names, and stands for what they import and do not use:

- ``RCNet`` of TempleX98; of mmcv its ConvModule
- ``InSPyReNet`` of plemeri
- ``P2AT`` of mohamedac29, with timm's bottlenecks in place of torchvision's
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.without_torchvision import timm
from reference.necks import execute, numbers, pyramid, stand_in
from reference.segmenters import p2at, resnet
from reference.waves import wave, waved_in_use


class ConvModule(nn.Module):
    """mmcv's: a convolution, a norm where there is one, a relu, in an order."""

    def __init__(
        self, inside, out, kernel_size, padding=0, conv_cfg=None, norm_cfg=None, act_cfg=True, order=("conv",)
    ):
        super().__init__()
        assert conv_cfg is None
        self.first = order[0] == "act"
        self.conv = nn.Conv2d(inside, out, kernel_size, padding=padding, bias=norm_cfg is None)
        self.bn, self.active = nn.BatchNorm2d(out), act_cfg is not None

    def forward(self, x):
        x = torch.relu(x) if self.first else x
        x = self.bn(self.conv(x))
        return torch.relu(x) if self.active and not self.first else x


class Registry:
    """Registers nothing."""

    def register_module(self):
        return lambda thing: thing


def rcnet(folder: Path):
    """The whole neck of three levels and two more, its convolutions plain."""
    nothing = {"xavier_init": lambda *_, **__: None, "constant_init": lambda *_: None}
    stand_in("mmcv")
    stand_in("mmcv.cnn", ConvModule=ConvModule, **nothing)
    stand_in("there")
    stand_in("there.builder", NECKS=Registry())
    stand_in("there.necks")
    parts = execute(folder / "RCNet/mmdet/models/necks/rcfpn.py", "there.necks")
    neck = parts.RCFPN([5, 4, 6, 10], 32, 5, 1, norm_cfg={}, out_conv_cfg=None)
    maps = pyramid((4, 6, 10), 27, 38)
    neck = waved_in_use(neck, [None, *maps])
    with torch.no_grad():
        return {"rcnet": numbers(neck([None, *maps]))}


class Taps(nn.Module):
    """The map inside the second block of an Xception, and its last one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        x, found = self.net.stem(images), []
        for block in self.net.blocks:
            x, near = block.forward_with_tap(x)
            found.append(near)
        return found[1], x


def xception():
    """The maps of timm's, of fewer channels and two middle blocks, at a 16th of the resolution."""
    timm()
    module = importlib.import_module("timm.models.xception_aligned")
    plan = [{"in_chs": a, "out_chs": b, "stride": 2} for a, b in ((64, 128), (128, 256), (256, 12))]
    plan += [{"in_chs": 12, "out_chs": 12, "stride": 1}, {"in_chs": 12, "out_chs": 12, "stride": 1}]
    plan.append({"in_chs": 12, "out_chs": (12, 10, 10), "stride": 2})
    plan.append({"in_chs": 10, "out_chs": (15, 15, 14), "stride": 1, "no_skip": True, "start_with_relu": False})
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    net, images = module.XceptionAligned(plan, 0, output_stride=16, norm_layer=norm), wave((2, 3, 75, 98))
    net = waved_in_use(Taps(net), images)
    with torch.no_grad():
        return {"xception": numbers(net(images))}


def bottlenecks(folder: Path):
    """P2AT behind timm's, of a quarter of the channels that come out."""
    timm()
    module = importlib.import_module("timm.models.resnet")

    def made(inside, out, stride):
        down = None if inside == out else module.downsample_conv(inside, out, 1, stride)
        return module.Bottleneck(inside, out // 4, stride, down)

    return p2at(folder, "p2at_bottlenecks", partial(resnet, block=made, expansion=4))


def res2net(folder: Path):
    """The five maps of Res2Net v1b with a few blocks and narrow groups."""
    module = execute(folder / "InSPyReNet/lib/backbones/Res2Net_v1b.py")
    net, images = module.Res2Net(module.Bottle2neck, [2, 1, 1, 3]), wave((2, 3, 37, 34))
    net = waved_in_use(net, images)
    with torch.no_grad():
        return {"res2net": numbers(net(images))[::5]}


def main(folder: str) -> None:
    values = rcnet(Path(folder)) | xception()
    values |= res2net(Path(folder)) | bottlenecks(Path(folder))
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
