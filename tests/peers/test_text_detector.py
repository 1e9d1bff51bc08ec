"""A pyramid of levels with gates that was trained, in our parts: the same maps, and the same text found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regard
from peers.text_detector import LATERALS, SMOOTH, Detector, detector

GATE = "composed_gate(mix=mlp(ratio=4), squash=hard_sigmoid, rule=residual)"
STEEPER = 6 * 0.2
"""Its hard sigmoid rises by 0.2, PyTorch's by a sixth."""


def text_lines(height: int = 160, width: int = 320) -> tuple[Tensor, list[tuple[int, int, int, int]]]:
    """An image ``(1, 3, height, width)`` with two lines of text as the network expects it, and their boxes."""
    drawing, fonts = pytest.importorskip("PIL.ImageDraw"), pytest.importorskip("PIL.ImageFont")
    image = pytest.importorskip("PIL.Image").new("RGB", (width, height), "white")
    pen, boxes = drawing.Draw(image), []
    for text, place in (("attention", (30, 30)), ("is read", (120, 100))):
        font = fonts.load_default(28)
        pen.text(place, text, "black", font)
        boxes.append(tuple(int(side) for side in pen.textbbox(place, text, font)))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    return ((pixels / 255 - mean) / deviation).permute(2, 0, 1)[None], boxes


def read(peer: Detector):
    """Our pyramid with the network's weights, and the gates that are in it."""
    weights = peer.weights
    channels = [weights[f"{name}.w_0"].shape[1] for name in LATERALS]
    inside, out = weights[f"{LATERALS[0]}.w_0"].shape[0], weights[f"{SMOOTH[0]}.w_0"].shape[0]
    neck = regard.neck(f"fpn(inside={inside})")(channels, out=out).eval()
    inserted = regard.insert(neck, GATE, ["laterals.*", "smooth.*"], keep=True)
    with torch.no_grad():
        for kind, names in (("laterals", LATERALS), ("smooth", SMOOTH)):
            for level, name in enumerate(names):
                convolution, number = neck.get_submodule(f"{kind}.{level}"), int(name.removeprefix("conv2d_"))
                convolution.weight.copy_(weights[f"{name}.w_0"])
                nn.init.zeros_(convolution.bias)
                mix = inserted.gates[f"{kind}.{level}"].mix
                for step, (matrix, scale) in enumerate(((mix.first, 1.0), (mix.second, STEEPER)), 1):
                    given = weights[f"conv2d_{number + step}.w_0"], weights[f"conv2d_{number + step}.b_0"]
                    matrix.weight.copy_(scale * given[0].flatten(1))
                    matrix.bias.copy_(scale * given[1])
    return neck, inserted


@pytest.fixture(scope="module")
def trained():
    peer = detector()
    image, boxes = text_lines()
    return peer, image, boxes, peer(image)


def test_the_network_finds_the_text_that_is_drawn(trained):
    _, _, boxes, maps = trained
    text = maps["sigmoid_0.tmp_0"][0, 0] > 0.5
    inside = torch.zeros_like(text)
    for left, top, right, bottom in boxes:
        inside[top - 3 : bottom + 3, left - 3 : right + 3] = True
        assert text[top:bottom, left:right].float().mean() > 0.5
    assert text[~inside].sum() == 0


def test_its_pyramid_gives_the_same_maps_here(trained):
    peer, _, _, maps = trained
    neck, inserted = read(peer)
    with torch.no_grad():
        found = neck([maps[peer.reads(f"{name}.w_0")] for name in LATERALS])
    assert [tuple(each.shape[1:]) for each in found] == [(24, 40, 80), (24, 20, 40), (24, 10, 20), (24, 5, 10)]
    for mine, name in zip(found, SMOOTH, strict=True):
        theirs = maps[peer.behind(f"{name}.w_0")]
        torch.testing.assert_close(mine, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    assert len(inserted.gates) == 8
    assert any(each["c"].std() > 0.05 for each in inserted.factors.values())  # the trained gates do tell channels apart


@pytest.mark.parametrize("gate", ["triplet", "cbam", "eca"])
def test_a_gate_more_changes_nothing_at_its_start_and_something_beyond(trained, gate):
    peer, _, _, maps = trained
    neck, inserted = read(peer)
    given = [maps[peer.reads(f"{name}.w_0")] for name in LATERALS]
    whole = nn.Sequential(neck)
    with torch.no_grad():
        before = whole(given)
        inserted.remove()
        gates_off = whole(given)
        assert not torch.allclose(before[0], gates_off[0], atol=1e-3)  # those that were trained matter
        with regard.insert(neck, gate, "smooth.*", start="identity") as more:
            assert all(torch.equal(one, other) for one, other in zip(whole(given), gates_off, strict=True))
            for added in more.added:
                added.alpha.fill_(1.0)
            assert not torch.allclose(whole(given)[0], gates_off[0], atol=1e-3)
