"""More necks, and backbones of dense networks, equal what published code computes, written down by
tests/reference/dense.py."""

import json
from pathlib import Path

import pytest
import torch

import regard
from reference.necks import STEP, pyramid
from reference.waves import wave, waved_in_use
from regard.networks.vision.deeplab import Xception
from regard.networks.vision.inspyrenet import InSPyReNet
from regard.networks.vision.p2at import P2AT
from regard.networks.vision.saliency_backbones import Res2Net, SwinMaps

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "dense.json").read_text())


def check(name, net, *inputs, every=1):
    """Layers are called here in the order in which they are there; the numbers are those of the authors' code."""
    net = waved_in_use(net, *inputs)
    with torch.no_grad():
        found = net(*inputs)
    got = torch.cat([each.flatten() for each in found])[:: STEP * every]
    torch.testing.assert_close(got, torch.tensor(VALUES[name], dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_reversed_pyramid_and_its_shift_are_those_of_the_authors():
    neck = regard.neck("revfp(extra=2, moved=0) | csn")((4, 6, 10), out=32)
    check("rcnet", neck, pyramid((4, 6, 10), 27, 38))


class Taps(torch.nn.Module):
    """The fine map behind the relu, as it is read there, and the last one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        fine, deep = self.net(images)
        return torch.relu(fine), deep


def test_the_aligned_xception_is_that_of_timm():
    check("xception", Taps(Xception(64, 12, 2, (10, 14))), wave((2, 3, 75, 98)))


def test_axial_attention_behind_bottlenecks_is_that_of_the_authors():
    check("p2at_bottlenecks", P2AT(5, width=8, auxiliary=True, bottlenecks=True), wave((2, 3, 75, 99)))


def test_res2net_is_that_of_the_authors_of_inspyrenet():
    check("res2net", Res2Net((2, 1, 1, 3)), wave((2, 3, 37, 34)), every=5)


def test_backbones_of_saliency_give_five_maps():
    """Of 4, 4, 8, 16 and 32 pixels a cell, those of Swin's stages normed, and the network reads them."""
    maps = SwinMaps((1, 1, 2, 1), 8, 2, 3)(torch.randn(2, 3, 75, 50))
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 19, 13), (8, 19, 13), (16, 10, 7), (32, 5, 4), (64, 3, 2)]
    for each in maps[1:]:
        torch.testing.assert_close(each.mean(1), torch.zeros_like(each[:, 0]), atol=1e-5, rtol=0)
    with torch.device("meta"):
        for name, widths in (("swin", [128, 128, 256, 512, 1024]), ("res2net", [64, 256, 512, 1024, 2048])):
            net = InSPyReNet(backbone=name, base=(24, 16))
            assert [encoder.skip[0].in_channels for encoder in net.encoders] == widths
    with pytest.raises(ValueError, match="backbone: got 'vgg', want residual, res2net, swin"):
        InSPyReNet(backbone="vgg")
