"""More necks, and backbones of dense networks, equal what published code computes, written down by
tests/reference/dense.py."""

import json
from pathlib import Path

import torch

import regard
from reference.necks import STEP, pyramid
from reference.waves import waved_in_use

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "dense.json").read_text())


def check(name, net, *inputs):
    """Layers are called here in the order in which they are there; the numbers are those of the authors' code."""
    net = waved_in_use(net, *inputs)
    with torch.no_grad():
        found = net(*inputs)
    got = torch.cat([each.flatten() for each in found])[::STEP]
    torch.testing.assert_close(got, torch.tensor(VALUES[name], dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_reversed_pyramid_and_its_shift_are_those_of_the_authors():
    neck = regard.neck("revfp(extra=2, moved=0) | csn")((4, 6, 10), out=32)
    check("rcnet", neck, pyramid((4, 6, 10), 27, 38))
