"""A page of maps that lie over the images that they are of: one HTML file that works offline."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong

STOPS = ((0.02, 0.02, 0.14), (0.33, 0.07, 0.43), (0.73, 0.22, 0.33), (0.97, 0.55, 0.05), (0.99, 1.0, 0.64))
"""Colours from the least value to the largest, dark to bright."""
SHORTEST = 160
"""Pixels of the shorter side at which an image is shown at least."""

STYLE = """
:root { color-scheme: light dark; --over: 0.6; --ink: #1c1c1e; --paper: #fff; --line: #d0d0d5; --soft: #5c5c66 }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --paper: #161618; --line: #3a3a40; --soft: #a5a5ae } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: var(--ink); background: var(--paper) }
h1 { font-size: 1.25rem; margin: 0 0 .25rem }
p { margin: .25rem 0; color: var(--soft); max-width: 46rem }
form { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; margin: 1rem 0; position: sticky; top: 0;
  background: var(--paper); padding: .5rem 0; z-index: 1; border-bottom: 1px solid var(--line) }
section { margin: 0 0 1.5rem }
h2 { font-size: 1rem; margin: 0 0 .5rem }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem }
figure { margin: 0 }
.stack { position: relative; display: block; line-height: 0 }
.stack img { width: 100%; height: 100%; image-rendering: pixelated }
.stack .over { position: absolute; inset: 0; opacity: var(--over) }
.stack .under { filter: grayscale(1) }
.smooth .over { image-rendering: auto }
figcaption { font-size: .8rem; overflow-wrap: anywhere }
.scale { display: flex; gap: .4rem; align-items: center; color: var(--soft); font-variant-numeric: tabular-nums }
.scale i { flex: 1; height: .5rem; background: linear-gradient(90deg, GRADIENT) }
output { font-variant-numeric: tabular-nums; min-width: 16rem }
"""
SCRIPT = """
const root = document.documentElement, told = document.querySelector('output');
document.getElementById('opacity').oninput = e => root.style.setProperty('--over', e.target.value);
document.getElementById('smooth').onchange = e => document.body.classList.toggle('smooth', e.target.checked);
for (const stack of document.querySelectorAll('[data-map]')) {
  const {rows, columns, low, high} = stack.dataset, bytes = atob(stack.dataset.map);
  stack.onpointermove = e => {
    const box = stack.getBoundingClientRect(), within = (at, size, cells) =>
      Math.min(cells - 1, Math.max(0, Math.floor(at / size * cells)));
    const y = within(e.clientY - box.top, box.height, rows), x = within(e.clientX - box.left, box.width, columns);
    const value = +low + (high - low) * bytes.charCodeAt(y * columns + x) / 255;
    told.textContent = `${stack.dataset.name}, row ${y}, column ${x}: ${value.toPrecision(3)}`;
  };
  stack.onpointerleave = () => { told.textContent = 'Point at a map to read its value.'; };
}
"""


def overlay(images: Tensor, maps: Any, path: str | Path) -> Path:
    """Writes a page on which maps lie over the images that they are of, each in the colours of its own range.

    What a gate multiplies each cell, row or column by is such a map, the mean over channels where it has some; gates of
    channels alone have no place in the image and are named below.

    Shapes: ``images (b, 3, y, x)``, or of one channel; maps of any rows and columns.

    Args:
        images: of any range, as they went into the model. maps: what a `regard.watch` or a `regard.insert` with
            ``keep=True`` has seen of these images in the latest call; or by names, maps ``(b, y, x)``, or factors
            ``{axes: (b, c, y, x)}`` as gates have them. path: of the page.

    Returns:
        The path.

    Raises:
        ValueError: images of another shape, no map at all, or maps of another number of images.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise wrong("images", f"shape {tuple(images.shape)}", "(batch, 3, rows, columns), or of one channel")
    planes, placeless = planes_of(named(maps))
    if not planes:
        seen = f"those of channels alone: {', '.join(placeless)}" if placeless else "none"
        wanted = "one at least over rows or columns, of gates that were called; of an A `received` makes one"
        raise wrong("maps", seen, wanted)
    for name, plane in planes.items():
        if len(plane) != len(images):
            raise wrong("maps", f"{name} of {len(plane)} images", f"the {len(images)} that went into the latest call")
    target = Path(path)
    target.write_text(page(images, planes, placeless), encoding="utf-8")
    return target


def received(attention: Tensor, images: Tensor, first: int = 0) -> Tensor:
    """How much attention each cell of a grid of tokens is given, ``(b, rows, columns)``: the mean of its column of A.

    The grid has the proportions of the images: ``overlay(images, {name: received(a, images)}, path)`` of an A of
    `intermediates`.

    Args:
        attention: A ``(b, h, n, m)``. images: ``(b, c, y, x)``. first: keys before those of the grid, such as a class
            token, which are left out.

    Raises:
        ValueError: keys that are no grid of these proportions.
    """
    share = attention.mean((1, 2))[:, first:]
    y, x = images.shape[2:]
    rows = round((share.shape[1] * y / x) ** 0.5)
    if rows < 1 or share.shape[1] % rows:
        raise wrong("attention", f"{share.shape[1]} keys behind the first {first}", f"a grid of {y} : {x}")
    return share.unflatten(1, (rows, -1))


def named(maps: Any) -> Mapping[str, Tensor | Mapping[str, Tensor]]:
    """The maps by their names, of whatever has seen them."""
    if isinstance(maps, Mapping):
        return maps
    if (gates := getattr(maps, "gates", None)) is not None and not getattr(maps, "factors", None):
        return {name: found.latest for name, found in gates.items() if hasattr(found, "latest")}
    if (factors := getattr(maps, "factors", None)) is not None:
        return factors
    raise wrong("maps", type(maps).__name__, "a watch, an insertion, or maps by their names", TypeError)


def planes_of(maps: Mapping[str, Tensor | Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], list[str]]:
    """The maps ``(b, y, x)`` by names, and the names of those that have no rows and columns."""
    planes: dict[str, Tensor] = {}
    placeless: list[str] = []
    for name, found in maps.items():
        factors = {"": found} if isinstance(found, Tensor) else found
        for axes, factor in factors.items():
            own = f"{name} ({axes})" if axes else name
            if factor.dim() not in (3, 4):
                raise wrong(
                    "maps", f"{own} of shape {tuple(factor.shape)}", "(b, rows, columns) or (b, c, rows, columns)"
                )
            plane = (factor if factor.dim() == 3 else factor.float().mean(1)).detach().float().cpu()
            if plane.shape[1:] == (1, 1):
                placeless.append(own)
            else:
                planes[own] = plane
    return planes, placeless


def page(images: Tensor, planes: Mapping[str, Tensor], placeless: list[str]) -> str:
    """The whole page."""
    pictures = shades(images.detach().float().cpu())
    sections = []
    for number, picture in enumerate(pictures):
        rows, columns = picture.shape[:2]
        larger = max(1.0, SHORTEST / min(rows, columns))
        size = f"width:{round(columns * larger)}px;height:{round(rows * larger)}px"
        image = png(picture)
        whole = f'<img src="{image}" alt="image {number}">'
        under = f'<img class="under" src="{image}" alt="">'
        tiles = [
            f'<figure><span class="stack" style="{size}">{whole}</span><figcaption>the image</figcaption></figure>'
        ]
        tiles += [tile(name, plane[number], ends(plane), under, size) for name, plane in planes.items()]
        sections.append(f'<section><h2>Image {number}</h2><div class="tiles">{"".join(tiles)}</div></section>')
    more = f"<p>Without a place in the image, of channels alone: {html.escape(', '.join(placeless))}.</p>"
    gradient = ", ".join(f"rgb({', '.join(str(round(255 * part)) for part in stop)})" for stop in STOPS)
    return "".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Maps over images · regard</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{STYLE.replace('GRADIENT', gradient)}</style><body><h1>Maps over images</h1>",
            "<p>Bright cells are weighed most; the image below is grey. A map has the same colours over all images, "
            "from its least value to its largest. In brackets are the axes along which a factor varies: channels c, "
            "rows y, columns x.</p>",
            more if placeless else "",
            '<form><label>Opacity <input id="opacity" type="range" min="0" max="1" step="0.05" value="0.6"></label>',
            '<label><input id="smooth" type="checkbox"> smooth</label>',
            "<output>Point at a map to read its value.</output></form>",
            *sections,
            f"<script>{SCRIPT}</script></body></html>\n",
        )
    )


def tile(name: str, plane: Tensor, limits: tuple[float, float], under: str, size: str) -> str:
    """One map over one image, with its name and its scale."""
    low, high = limits
    share = ((plane.nan_to_num(low) - low) / (high - low or 1.0)).clamp(0, 1)
    data = base64.b64encode((255 * share).round().byte().numpy().tobytes()).decode("ascii")
    told, (rows, columns) = html.escape(name, quote=True), plane.shape
    about = f'data-name="{told}" data-rows="{rows}" data-columns="{columns}" data-low="{low}" data-high="{high}"'
    return (
        f'<figure style="{size.partition(";")[0]}"><span class="stack" style="{size}" {about} data-map="{data}">{under}'
        f'<img class="over" src="{png(coloured(share))}" alt="map of {told}"></span><figcaption>{told}'
        f'<span class="scale">{low:.3g}<i></i>{high:.3g}</span></figcaption></figure>'
    )


def ends(plane: Tensor) -> tuple[float, float]:
    """The least and the largest finite value of a map over all images."""
    finite = plane[plane.isfinite()]
    return (finite.min().item(), finite.max().item()) if finite.numel() else (0.0, 0.0)


def shades(images: Tensor) -> list[Tensor]:
    """Pictures ``(y, x, 3)`` from 0 to 1: as they are where they lie there, else each from its least to its largest."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    if low.min() < 0 or high.max() > 1:
        images = (images - low) / (high - low).clamp(min=1e-12)
    return list(images.expand(-1, 3, -1, -1).movedim(1, -1))


def coloured(share: Tensor) -> Tensor:
    """Colours ``(y, x, 3)`` of numbers from 0 to 1, between the two nearest of `STOPS`."""
    stops = torch.tensor(STOPS)
    place = share * (len(STOPS) - 1)
    first = place.floor().long().clamp(max=len(STOPS) - 2)
    return torch.lerp(stops[first], stops[first + 1], (place - first)[..., None])


def png(picture: Tensor) -> str:
    """A picture ``(y, x, 3)`` from 0 to 1 as the address of its PNG."""
    rows, columns = picture.shape[:2]
    pixels = (255 * picture).round().clamp(0, 255).byte().reshape(rows, -1)
    lines = F.pad(pixels, (1, 0)).contiguous().numpy().tobytes()  # each line begins with the kind of its filter, none
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    found = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        found += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return f"data:image/png;base64,{base64.b64encode(found).decode('ascii')}"
