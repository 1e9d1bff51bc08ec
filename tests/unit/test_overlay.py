"""The page of maps over images: its numbers, its pictures, what it refuses."""

import base64
import re
import struct
import zlib

import pytest
import torch
from torch import nn

import regard
from regard.web.overlay import png, received, shades


def pixels(address: str) -> torch.Tensor:
    """What an address of a PNG of three colours and no filters shows, ``(y, x, 3)``."""
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, found = 8, {}
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        (check,) = struct.unpack(">I", data[place + 8 + size : place + 12 + size])
        assert check == zlib.crc32(kind + body)
        found[kind], place = body, place + 12 + size
    columns, rows = struct.unpack(">II", found[b"IHDR"][:8])
    lines = torch.frombuffer(bytearray(zlib.decompress(found[b"IDAT"])), dtype=torch.uint8).view(rows, 3 * columns + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(rows, columns, 3)


def test_a_picture_is_its_pixels():
    picture = torch.rand(5, 7, 3)
    assert torch.equal(pixels(png(picture)), (255 * picture).round().byte())


def test_the_page_has_the_numbers_of_every_map(tmp_path):
    plane = torch.tensor([[[0.0, 0.5], [1.0, 0.25], [2.0, 1.5]], [[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]])
    page = regard.overlay(torch.rand(2, 1, 12, 8), {"<heat>": plane}, tmp_path / "maps.html").read_text()
    found = [list(base64.b64decode(each)) for each in re.findall('data-map="([^"]*)"', page)]
    assert found == [(255 * each.flatten() / 2).round().int().tolist() for each in plane]
    assert page.count('data-rows="3" data-columns="2" data-low="0.0" data-high="2.0"') == 2
    assert page.count('class="under"') == 2  # grey below the maps, the image itself as it is
    assert re.findall('<img src="[^"]*" alt="image ([01])">', page) == ["0", "1"]
    assert "&lt;heat&gt;" in page
    assert "<heat>" not in page


def test_a_watch_and_an_insertion_are_laid_over_the_images(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).eval()
    images = torch.randn(3, 3, 21, 17)
    with regard.insert(model, "cbam(ratio=4)", "1", keep=True) as inserted:
        with regard.watch(model) as seen:
            model(images)
        pages = [regard.overlay(images, maps, tmp_path / "page.html").read_text() for maps in (seen, inserted)]
        with pytest.raises(ValueError, match=r"maps: got .* of 3 images, want the 2 that went into the latest call"):
            regard.overlay(images[:2], seen, tmp_path / "page.html")
    for page in pages:
        assert len(re.findall("data-map=", page)) == 3
        assert 'data-rows="10" data-columns="8"' in page
        assert re.search(r"of channels alone: 1(\.gate)? \(c\)\.", page)
    assert "1.gate: mean factor" in repr(seen)
    assert "tensor" not in repr(seen.gates)


def test_a_gate_that_reads_earlier_stages_by_name_is_watched():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = regard.gate("pkcam(earlier=(4,))")(8)

        def forward(self, x):
            return self.gate(x, past=[x.mean((2, 3))[:, :4]])

    with regard.watch(Two()) as seen:
        Two.forward(seen.model, torch.randn(2, 8, 5, 3))
    assert seen.gates["gate"].images == 2


def test_attention_is_what_cells_are_given():
    """By hand: of two heads and two queries, behind a class token; and of a network's own windows."""
    a = torch.zeros(1, 2, 2, 7)
    a[0, 0, 0, 2], a[0, 1, 1, 6], a[0, 0, 1, 0] = 1.0, 0.5, 1.0
    grid = received(a, torch.zeros(1, 3, 20, 30), first=1)
    assert grid.tolist() == [[[0, 0.25, 0], [0, 0, 0.125]]]
    net, images = (
        regard.vision("stages(widths=(4,), layers='windows(side=2) + mlp')", classes=2),
        torch.rand(2, 3, 24, 16),
    )
    (found,) = net.intermediates(images).values()
    within = nn.functional.avg_pool2d(received(found, images), 2)  # windows give nothing away
    torch.testing.assert_close(within, torch.full((2, 3, 2), 1 / 24))
    with pytest.raises(ValueError, match="attention: got 7 keys behind the first 0, want a grid of 20 : 30"):
        received(a, torch.zeros(1, 3, 20, 30))


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        ((2, 4, 5, 5), {"a": torch.rand(2, 3, 3)}, "images: got shape"),
        ((2, 3, 5, 5), {"a": {"c": torch.rand(2, 6, 1, 1)}}, "maps: got those of channels alone: a"),
        ((2, 3, 5, 5), {}, "maps: got none"),
        ((2, 3, 5, 5), {"a": torch.rand(2, 3)}, "maps: got a of shape"),
    ],
)
def test_what_is_no_map_is_named(images, maps, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        regard.overlay(torch.rand(*images), maps, tmp_path / "page.html")
    with pytest.raises(TypeError, match="maps: got Linear"):
        regard.overlay(torch.rand(2, 3, 5, 5), nn.Linear(2, 2), tmp_path / "page.html")


@pytest.mark.parametrize(
    ("given", "shown"),
    [([0.0, 0.25, 0.5], [0.0, 0.25, 0.5]), ([0.5, 0.75, 1.0], [0.5, 0.75, 1.0]), ([-1.0, 0.0, 3.0], [0.0, 0.25, 1.0])],
)
def test_pictures_from_0_to_1_are_shown_as_they_are_and_others_stretched(given, shown):
    (picture,) = shades(torch.tensor(given).view(1, 1, 1, 3))
    torch.testing.assert_close(picture, torch.tensor(shown)[None, :, None].expand(1, 3, 3))
