"""Writes dense.json: some numbers of what more published necks, and backbones of dense networks, make of waves, with
waves as weights, numbered as their layers are called.

    python tests/reference/dense.py FOLDER        (PyTorch 2.13)

FOLDER holds clones of the authors' repositories by their names, and stands for what they import and do not use:

- ``RCNet`` of TempleX98; of mmcv its ConvModule
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.necks import execute, numbers, pyramid, stand_in
from reference.waves import waved_in_use


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


def main(folder: str) -> None:
    Path(__file__).with_suffix(".json").write_text(json.dumps(rcnet(Path(folder))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
