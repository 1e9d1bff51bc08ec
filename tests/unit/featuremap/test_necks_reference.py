"""Necks and dense networks equal their authors' code, by numbers of tests/reference/necks.py and segmenters.py."""

import json
from pathlib import Path

import pytest
import torch

import regard
from reference.necks import STEP, pyramid
from reference.waves import wave, waved_in_use
from regard.networks.tridet import TriDet
from regard.networks.vision.bgf_yolo import BGFYolo
from regard.networks.vision.detectors import DetectoRS
from regard.networks.vision.inspyrenet import InSPyReNet
from regard.networks.vision.p2at import P2AT
from regard.networks.vision.piip import Crossed, Deformable, Interaction

FOLDER = Path(__file__).parents[2] / "reference"
VALUES = {
    name: each
    for file in ("necks", "segmenters")
    for name, each in json.loads((FOLDER / f"{file}.json").read_text()).items()
}


def check(name, net, *inputs):
    """Layers are called here in the order in which they are there; the numbers are those of the authors' code."""
    net = waved_in_use(net, *inputs)
    with torch.no_grad():
        found = net(*inputs)
    got = torch.cat([each.flatten() for each in found])[::STEP]
    torch.testing.assert_close(got, torch.tensor(VALUES[name], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "N": "gold_yolo(drop=0, gathered=6)",
        "M": "gold_yolo(drop=0, gathered=6, share=0.5)",
        "L": "gold_yolo(drop=0, gathered=6, attention=(1, 8), share=0.5, block=silu, skip=True)",
    }.items(),
)
def test_gather_and_distribute_is_that_of_the_authors(name, text):
    neck = regard.neck(text)((4, 8, 6, 10), out=(4, 8, 16))
    check(f"gold_yolo_{name}", neck, pyramid((4, 8, 6, 10), 27, 38))


@pytest.mark.parametrize("steps", [2, 3])
def test_the_recursive_pyramid_is_that_of_the_authors(steps):
    net = DetectoRS((1, 1, 1, 1), 8, 16, steps, deformable=False)
    check(f"detectors_{steps}", net, wave((2, 3, 75, 70)))


@pytest.mark.parametrize(
    ("name", "text", "channels", "out"),
    [("a", "cpdr", (16, 16, 32, 64), (16, 32, 64)), ("b", "dacf", (16, 32, 64, 64), (8, 16, 32))],
)
def test_crossed_refinement_is_that_of_the_authors(name, text, channels, out):
    check(f"cpdr_{name}", regard.neck(text)(channels, out=out), pyramid(channels, 24, 16))


@pytest.mark.parametrize(
    ("name", "attention"),
    [("normal", lambda width: Crossed(width, 2)), ("deform", lambda width: Deformable(width, 2, 0.5))],
)
def test_an_exchange_of_branches_is_that_of_the_authors(name, attention):
    given = (wave((2, 6, 12)), wave((2, 35, 8), 0.3), (3, 2), (5, 7))
    check(f"piip_{name}", Interaction(12, 8, attention), *given)


class Distances(torch.nn.Module):
    """Probability and distances to both ends, in place of the ends, row by row as they are there."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        found = self.net(x)
        time = torch.cat([2**level * torch.arange(x.shape[2] // 2**level) for level in range(3)])[:, None]
        found = torch.stack((found[..., 0], time - found[..., 1], found[..., 2] - time), -1)
        levels = found.split([x.shape[2] // 2**level for level in range(3)], 1)
        return [row.transpose(0, 1) for level in levels for row in level]


def test_events_are_those_of_the_authors():
    check("tridet", Distances(TriDet(5, 3, 16, 7, 2, 4, 3, 1.5, drop=0.0)), wave((2, 5, 32)))


def test_axial_attention_and_its_decoder_are_those_of_the_authors():
    check("p2at", P2AT(5, width=8, auxiliary=True), wave((2, 3, 75, 99)))


class Pyramid(torch.nn.Module):
    """The encoders, the decoder and its details, for maps that are given."""

    def __init__(self, net):
        super().__init__()
        self.encoders, self.decoder, self.details, self.decoded = net.encoders, net.decoder, net.details, net.decoded

    def forward(self, maps):
        return self.decoded([encode(each) for encode, each in zip(self.encoders, maps, strict=True)])[0]


def test_a_pyramid_of_saliency_is_that_of_the_authors():
    net = InSPyReNet(8, (1, 1, 1, 1), 4, (24, 16))
    widths = (4, 4, 8, 16, 32)
    maps = [wave((2, c, n, 2 * n), c) for c, n in zip(widths, (16, 16, 8, 4, 2), strict=True)]
    check("inspyrenet", Pyramid(net), maps)


class Levels(torch.nn.Module):
    """What the heads read."""

    def __init__(self, net):
        super().__init__()
        self.stem, self.stages, self.pools, self.neck, self.maps = (
            net.stem,
            net.stages,
            net.pools,
            net.neck,
            net.features,
        )

    def forward(self, images):
        return self.neck(self.maps(images))


def test_a_generalized_neck_is_that_of_the_authors():
    check("bgf_yolo", Levels(BGFYolo("n", width=1 / 16)), wave((2, 3, 256, 256)))
