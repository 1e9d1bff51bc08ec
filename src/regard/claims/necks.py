"""Necks: counts of published pyramids, which maps a level depends on, and their plain limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import apart, count, stirred
from regard.experiments.cell import Cell
from regard.featuremap.necks.fpn import level_of
from regard.featuremap.resize import resize

RESNET50 = (256, 512, 1024, 2048)
"""The channels of the maps of its four stages."""


def pyramid(channels: Sequence[int], y: int, x: int) -> list[Tensor]:
    """Normal numbers in float64, the finest map of y rows and x columns, each other half of the one before."""
    generator, maps = torch.Generator().manual_seed(0), []
    for c in channels:
        maps.append(torch.randn(2, c, y, x, dtype=torch.float64, generator=generator))
        y, x = -(-y // 2), -(-x // 2)
    return maps


def neck(text: str, channels: Sequence[int], out: int) -> Any:
    """An untrained neck in float64, in evaluation."""
    torch.manual_seed(0)
    return regard.neck(text)(channels, out=out).double().eval()


@measured()
def pyramid_of_resnet50() -> dict[str, int]:
    """Parameters of FPN for ResNet-50 at d = 256, and the sum Σ (c d + 9 d² + 2 d)."""
    with torch.device("meta"):
        own = count(regard.neck("fpn")(RESNET50, out=256))
    return {"parameters": own, "sum": sum(c * 256 + 9 * 256**2 + 2 * 256 for c in RESNET50)}


def is_the_sum(found: Figures) -> Finding:
    """The same number."""
    own, total = found.one("parameters"), found.one("sum")
    return Finding.of(f"{own:,} parameters, the sum {total:,}", own == total)


@measured(neck_text=["fpn"], same=[False])
def dependence(neck_text: str, same: bool) -> dict[str, str | int]:
    """The maps that each level of a neck of four depends on, by its gradients, and the channels and sizes that are
    not those wanted.

    Args:
        same: all maps have as many channels as come out.
    """
    channels, sizes = ((32,) * 4 if same else (3, 5, 7, 11)), [(23, 18), (12, 9), (6, 5), (3, 3)]
    made = stirred(neck(neck_text, channels, 32))
    maps = [each.requires_grad_() for each in pyramid(channels, 23, 18)]
    read, wrong = [], 0
    for level, stands in zip(made(maps), made.stands, strict=True):
        gradients = torch.autograd.grad(level.square().sum(), maps, retain_graph=True, allow_unused=True)
        seen = [n for n, g in enumerate(gradients) if g is not None and bool(g.abs().max() > 0)]
        read.append("".join(map(str, seen)))
        wrong += tuple(level.shape[1:]) != (32, *sizes[stands])
    return {"read": " ".join(read), "wrong": wrong}


def depends(neck_text: str, same: bool = False) -> Cell:
    """Which maps the levels of this neck depend on."""
    return dependence.cell(neck_text=neck_text, same=same)


def reads(found: Figures, wanted: str) -> Finding:
    """Each level depends on exactly these maps, the finest is 0, and has the channels and the size wanted of it."""
    read, wrong = found.one("read"), found.one("wrong")
    figure = f"levels fine to coarse depend on maps {read.replace(' ', ', ')}; {wrong} of another size"
    return Finding.of(figure, read == wanted.replace(", ", " "), wrong == 0)


BOXES = {(224, 224): 4, (112, 112): 3, (111, 112): 2, (448, 112): 4, (448, 448): 5, (447, 448): 4}
"""Sides of boxes in pixels, and the level that ⌊4 + log2(√(width height) / 224)⌋ is."""


@measured()
def boxes() -> dict[str, int]:
    """The level that each of these boxes is read from."""
    return {f"{width} x {height}": level_of(width, height) for width, height in BOXES}


def is_by_area(found: Figures) -> Finding:
    """All are the paper's."""
    own = {f"{width} x {height}": found.one(f"{width} x {height}") for width, height in BOXES}
    figure = ", ".join(f"{box} from level {level}" for box, level in own.items())
    return Finding.of(figure, list(own.values()) == list(BOXES.values()))


@measured()
def node() -> dict[str, float]:
    """BiFPN's node: one less the weights' sum, by its own strengths, and how much a map of negative strength changes
    what comes out."""
    made: Any = neck("bifpn(layers=1)", (4, 4), 4).layers[0].down[0]
    strengths = torch.relu(made.strengths.detach())
    one, two = pyramid((4, 4), 5, 7)[0], torch.ones(2, 4, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        same = made([one, one])  # the weights' sum times one map
        alone = made.norm(made.pointwise(made.depthwise(F.silu(one * (2 / (2 + 1e-4))))))
        made.strengths.copy_(torch.tensor([-1.0, 2.0]))
        changed = apart(made([one, two]), made([-one, two]))
    return {
        "short": 1 - (strengths / (strengths.sum() + 1e-4)).sum().item(),
        "mean": apart(same, alone),
        "negative": changed,
    }


def is_nearly_a_mean(found: Figures) -> Finding:
    """The weights sum to one but for 1e-4, are those of the output, and a map of negative strength counts nothing."""
    short, mean, negative = (found.one(name) for name in ("short", "mean", "negative"))
    figure = (
        f"short of one by {short:.1e}; a map with itself is it to {mean:.0e}; negative strengths change {negative:.0e}"
    )
    return Finding.of(figure, 0 < short < 1e-4, mean < 1e-9, negative < 1e-9)


@measured()
def separable() -> dict[str, int]:
    """FLOPs of the pyramid of rates of DeepLabv3+ on ResNet's 2,048 channels, separable and dense."""
    with torch.device("meta"):
        necks = [regard.neck(f"deeplabv3plus(separable={word})")((256, 2048), out=256) for word in (True, False)]
    low = 2 * (256 * 48 + 9 * 304 + 304 * 256 + 9 * 256 + 256 * 256)  # of a finest map of one cell
    own, dense = (each.flops([(1, 1), (33, 33)]) - low for each in necks)
    return {"separable": own, "dense": dense}


def is_a_third(found: Figures) -> Finding:
    """A third of the dense ones at most."""
    ratio = found.one("separable") / found.one("dense")
    return Finding.of(f"{ratio:.2f} of the multiply-adds", ratio <= 1 / 3)


@measured(rate=(1, 2, 4))
def rates(rate: int) -> dict[str, float]:
    """A convolution of a rate against one of a kernel with zeros between its taps."""
    made, maps = neck(f"deeplabv3plus(rates=({rate},))", (4, 6), 4), pyramid((6,), 9, 7)[0]
    convolution = made.spread[0][0][0]
    kernel = torch.zeros(6, 1, 2 * rate + 1, 2 * rate + 1, dtype=torch.float64)
    with torch.no_grad():
        kernel[:, :, ::rate, ::rate] = convolution.weight
        return {"apart": apart(convolution(maps), F.conv2d(maps, kernel, padding=rate, groups=6))}


@measured()
def integrated() -> dict[str, float]:
    """SEPC: begun with moving taps against without, and its norm of all levels against that of their concatenation."""
    text = "sepc(convolutions=2, deformable={})"
    moving, plain = (neck(text.format(word), (4, 4, 4), 4) for word in ("all", "none"))
    plain.load_state_dict({name: value for name, value in moving.state_dict().items() if "offset" not in name})
    maps = pyramid((4, 4, 4), 13, 9)
    with torch.no_grad():
        start = max(apart(one, other) for one, other in zip(moving(maps), plain(maps), strict=True))
        norm, cells = plain.train().class_tower.norm, torch.cat([each.flatten(2) for each in maps], 2)
        deviation = (cells.var((0, 2), keepdim=True, correction=0) + 1e-5).sqrt()
        got = torch.cat([each.flatten(2) for each in norm.over(maps)], 2)
        return {"start": start, "norm": apart(got, (cells - cells.mean((0, 2), keepdim=True)) / deviation)}


def begins_plain(found: Figures) -> Finding:
    """Both to 1e-9."""
    start, norm = found.one("start"), found.one("norm")
    return Finding.of(f"to {start:.0e} at the start; the norm to {norm:.0e}", start < 1e-9, norm < 1e-9)


@measured()
def without_attentions() -> dict[str, float]:
    """DyHead's block without its three attentions against the mean of its convolutions of neighbours, and its
    attention to channels, its last layer zero, against a relu."""
    made = stirred(neck("dyhead(blocks=1, levels=False, cells=False, tasks=False)", (5, 5, 5), 32))
    maps, (block,) = pyramid((5, 5, 5), 11, 7), made.blocks
    task = neck("dyhead(blocks=1)", (32,), 32).blocks[0].task
    with torch.no_grad():
        coarser = block.coarser(resize(maps[2], maps[1], "aligned"), None)
        mean = (block.own(maps[1], None) + block.finer(maps[0], None) + coarser) / 3
        for parameter in task.second.parameters():
            parameter.zero_()
        wide = pyramid((32,), 5, 7)[0]
        return {"mean": apart(made(maps)[1], mean), "relu": apart(task(wide), torch.relu(wide))}


def is_plain(found: Figures) -> Finding:
    """Both to 1e-9."""
    mean, relu = found.one("mean"), found.one("relu")
    return Finding.of(f"the mean to {mean:.0e}, the relu to {relu:.0e}", mean < 1e-9, relu < 1e-9)


@measured()
def shift() -> dict[str, float | int | str]:
    """The shift of channels among six levels of one size against an index of all levels' channels, the same for other
    weights; the levels that the first one is set beside."""
    made, other = neck("csn(ratio=8)", (16,) * 6, 16), stirred(neck("csn(ratio=8)", (16,) * 6, 16))
    every = torch.stack([pyramid((16,), 5, 7)[0] + level for level in range(6)], 1)
    source = (torch.arange(6)[:, None] + torch.tensor([1, -1, 2, -2]).repeat_interleave(2)) % 6
    wanted = torch.cat((every[:, source, torch.arange(8)], every), 2)
    read = "".join(map(str, sorted({0, *source[0].tolist()})))
    worst = max(apart(each.shifted(every), wanted) for each in (made, other))
    return {"apart": worst, "read": read}


def is_an_index(found: Figures) -> Finding:
    """Exactly, whatever the weights are, of the two levels on either side."""
    apart, read = found.one("apart"), found.one("read")
    figure = f"differs by {apart:g}, whatever the weights; the first of six levels stands beside {', '.join(read)}"
    return Finding.of(figure, apart == 0, read == "01245")
