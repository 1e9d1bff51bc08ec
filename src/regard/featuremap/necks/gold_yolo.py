"""Gather and distribute: the neck of Gold-YOLO, whose levels exchange through one map that all are gathered in."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.neck import Neck, NeckTraits
from regard.featuremap.parts.dropped import Dropped
from regard.featuremap.parts.layers import Bottle, Convolved, CrossStage, RepVGG, normed_as, per_cell
from regard.featuremap.resize import Size, fitted, halved, pooled, resize

EPS, MOMENTUM = 1e-3, 0.03
GATHERED, KEY, VALUE = 3, 8, 16
"""Blocks of the lower map; sizes of the keys and values of each head of attention."""


def silu(inside: int, out: int) -> Convolved:
    """A convolution 3 × 3 with a silu, the block of the largest network."""
    return Convolved(inside, out, 3, activation=nn.SiLU, bias=True)


def stack(inside: int, out: int, repeats: int, share: float | None, block: Callable[[int, int], nn.Module]) -> Any:
    """What follows an injection: blocks one after the other, or, where ``share`` is told, pairs of them around which
    the other part of the channels goes."""
    if share is None:
        return nn.Sequential(block(inside, out), *(block(out, out) for _ in range(repeats - 1)))
    inner = int(out * share)
    pairs = (Bottle(inner, block) for _ in range(max(1, repeats // 2)))
    return CrossStage(inside, inner, out, pairs, nn.SiLU if block is silu else nn.ReLU)


class Injection(nn.Module):
    """``norm(W x) ⊙ h(norm(V g)) + h'(norm(U g))``: a level takes from the gathered map what it lets through.

    h is a hard sigmoid, at the gathered map's cells; then both are brought to the level's size: by means where it is
    smaller, bilinearly else.

    Args:
        width: of the level and of its part of the gathered map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.gate, self.more = (Convolved(width, width, activation=None) for _ in range(3))

    def forward(self, x: Tensor, gathered: Tensor) -> Tensor:
        own = self.own(x)
        gate = fitted(F.hardsigmoid(self.gate(gathered)), x)
        return own * gate + fitted(self.more(gathered), x)


class MapAttention(nn.Module):
    """``x + d norm(W relu6(A v)) ``, A the softmax of products that are not scaled, then
    ``x + d norm(V relu6(D norm(U x)))``, D depthwise 3 × 3, d the dropping of paths.

    Args:
        width: of the map, within and without. heads: of attention. drop: the share of images that go without a branch
            in training.
    """

    def __init__(self, width: int, heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropped = heads, Dropped(drop)
        self.q, self.k = (Convolved(width, heads * KEY, activation=None) for _ in range(2))
        self.v = Convolved(width, heads * VALUE, activation=None)
        self.mechanism = build("softmax", scale=1.0)
        self.out = Convolved(heads * VALUE, width, activation=None, start=0.0)
        self.up = Convolved(width, width, activation=None)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down = Convolved(width, width, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).flatten(2).unflatten(1, (self.heads, -1)).mT for each in (self.q, self.k, self.v))
        heads = self.mechanism(q, k, v).mT.flatten(1, 2).unflatten(2, x.shape[2:])
        x = x + self.dropped(self.out(F.relu6(heads)))
        return x + self.dropped(self.down(F.relu6(self.depthwise(self.up(x)))))


@published(
    "gold_yolo",
    family="featuremap",
    kind="neck",
    row=170,
    title="Gold-YOLO: Efficient Object Detector via Gather-and-Distribute Mechanism",
    arxiv="2309.11331",
    year=2023,
    aliases=("gather_and_distribute",),
    fidelity="authors' code",
    claim=(
        Claim(
            "four maps become three, from the second level on, each of which depends on every map",
            cells="necks.depends(neck_text='gold_yolo(repeats=1, gathered=8)')",
            holds="necks.reads(wanted='0123, 0123, 0123')",
        ),
        Claim(
            "what the coarsest map alone shows is read from the finest level after one injection",
            cells="gathered.cues",
            holds="gathered.is_read",
        ),
        Claim(
            "blocks folded into one convolution each give the same maps",
            cells="gathered.folded",
            holds="common.within(most=1e-5)",
        ),
    ),
)
class GoldYolo(Neck):
    """Two gathered maps, each of which is made of all levels and injected into some of them.

        low = blocks [pool(c_0), pool(c_1), c_2, up(c_3)]
        p_2 = f(inject([pool(c_1), W c_2, up(W' c_3)], low_2)),   p_1 = f(inject([pool(c_0), W c_1, up(W' p_2)], low_1))
        high = attention [pool(p_1), pool(p_2), pool(c_3)]
        n_2 = f(inject([pool(p_1), W' p_2], high_2)),             n_3 = f(inject([pool(n_2), W' c_3], high_3))

    The maps that come out are p_1, n_2, n_3, at the levels 1 to 3. Up is bilinear, pool the mean of the cells. f are
    `RepVGG` blocks, or, with ``share``, pairs of them beside a way around.

    Args:
        channels: c of four levels. out: of the three maps, one number for all or one each; the authors' have c_0, 2 c_0
            and 2 c_0 + c_1. repeats: blocks of each f, 4 in the networks N and S, 7 in M, 12 in L. gathered: width of
            the lower gathered map, 96, 128, 192, 192. attention: its layers and their heads, in L (3, 8). share: None
            in N and S, ⅔ in M, ½ in L, the part of the channels that goes through the blocks. block: "rep", in L
            "silu". skip: in L, n_3 is made of p_2 in place of n_2. drop: the share of images that go without a branch
            of the last layer of attention in training, which grows to it from 0 at the first.

    Raises:
        ValueError: other than four levels, other than one or three widths, a size below one, or another block.

    `GoldYoloNetwork` is trained with it, `MaskedImages` its backbone before.

    Paper: Wang et al., arXiv 2309.11331. In the authors' code a gate that is brought to a smaller level by means is not
    squashed; here it is, as everywhere else.
    """

    traits = NeckTraits(batch_norm=True)

    def __init__(
        self,
        channels: Sequence[int],
        out: int | Sequence[int],
        repeats: int = 4,
        gathered: int = 96,
        attention: tuple[int, int] = (2, 4),
        share: float | None = None,
        block: str = "rep",
        skip: bool = False,
        drop: float = 0.1,
    ) -> None:
        widths = (out,) * 3 if isinstance(out, int) else tuple(out)
        super().__init__(channels, min(widths, default=0))
        known = block in ("rep", "silu") and min(repeats, gathered, *attention) >= 1
        if len(channels) != 4 or len(widths) != 3 or not known:
            came = f"{tuple(channels)}, {out}, {repeats}, {gathered}, {attention}, {block!r}"
            wanted = "four levels, one width or three, one or more of each, 'rep' or 'silu'"
            raise wrong("channels, out, repeats, gathered, attention, block", came, wanted)
        self.given, self.attention, self.repeats, self.share = widths, attention, repeats, share
        self.gathered, self.block, self.skip = gathered, block, skip
        (c0, c1, c2, c3), (fine, middle, coarse) = self.channels, widths
        make = RepVGG if block == "rep" else silu
        self.low = nn.Sequential(
            Convolved(sum(channels), gathered, activation=nn.SiLU),
            *(make(gathered, gathered) for _ in range(GATHERED)),
            Convolved(gathered, c1 + fine, activation=nn.SiLU),
        )
        self.reduce5 = Convolved(c3, c1)
        self.own4, self.join4 = Convolved(c2, c1), Convolved(c1 + 2 * c1, c1)
        self.reduce4 = Convolved(c1, fine)
        self.own3, self.join3 = Convolved(c1, fine), Convolved(c0 + 2 * fine, fine)
        self.inject4, self.inject3, self.inject_n4 = Injection(c1), Injection(fine), Injection(2 * fine)
        self.last = (c1 if skip else middle) + c1
        self.split = ((c1, fine), (2 * fine, self.last))
        self.inject_n5 = Injection(self.last)
        self.p4, self.p3 = (stack(width, width, repeats, share, make) for width in (c1, fine))
        self.n4 = stack(2 * fine, middle, repeats, share, make)
        self.n5 = stack(self.last, coarse, repeats, share, make)
        whole = fine + c1 + c3
        grow = drop / max(1, attention[0] - 1)
        self.high = nn.Sequential(*(MapAttention(whole, attention[1], n * grow) for n in range(attention[0])))
        self.parts = nn.Conv2d(whole, sum(self.split[1]), 1)
        normed_as(self, EPS, MOMENTUM)

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        c0, c1, c2, c3 = maps
        low = self.low(torch.cat((pooled(c0, c2), pooled(c1, c2), c2, resize(c3, c2, "bilinear")), 1))
        low4, low3 = low.split(self.split[0], 1)
        coarse = self.reduce5(c3)
        joined = self.join4(torch.cat((pooled(c1, c2), self.own4(c2), resize(coarse, c2, "bilinear")), 1))
        p4 = self.p4(self.inject4(joined, low4))
        half = self.reduce4(p4)
        joined = self.join3(torch.cat((pooled(c0, c1), self.own3(c1), resize(half, c1, "bilinear")), 1))
        p3 = self.p3(self.inject3(joined, low3))
        size = halved((c3.shape[2], c3.shape[3]))
        high = self.parts(self.high(torch.cat([pooled(each, size) for each in (p3, p4, c3)], 1)))
        high4, high5 = high.split(self.split[1], 1)
        n4 = self.n4(self.inject_n4(torch.cat((pooled(p3, half), half), 1), high4))
        before = p4 if self.skip else n4
        n5 = self.n5(self.inject_n5(torch.cat((pooled(before, coarse), coarse), 1), high5))
        return [p3, n4, n5]

    @property
    def reads(self) -> list[tuple[int, ...]]:
        return [(0, 1, 2, 3)] * 3

    @property
    def stands(self) -> list[int]:
        return [1, 2, 3]

    @property
    def widths(self) -> list[int]:
        return list(self.given)

    def folded(self) -> Self:
        """A copy each of whose `RepVGG` blocks is one convolution, as in evaluation."""
        made = copy.deepcopy(self)
        for module in list(made.modules()):
            for name, child in module.named_children():
                if isinstance(child, RepVGG):
                    setattr(module, name, child.folded())
        return made

    def stacked(self, inside: int, out: int) -> int:
        """Parameters of one f."""

        def of(c: int, d: int) -> int:
            return 9 * c * d + 3 * d if self.block == "silu" else 10 * c * d + 4 * d + 2 * d * (c == d)

        if self.share is None:
            return of(inside, out) + (self.repeats - 1) * of(out, out)
        inner, pairs = int(out * self.share), max(1, self.repeats // 2)
        around = 2 * (inside * inner + 2 * inner) + 2 * inner * out + 2 * out
        return around + pairs * (2 * of(inner, inner) + 1)

    @property
    def parameter_count(self) -> int:
        (c0, c1, c2, c3), (fine, middle, coarse), g = self.channels, self.given, self.gathered
        whole, (depth, heads) = fine + c1 + c3, self.attention
        block = 9 * g * g + 3 * g if self.block == "silu" else 10 * g * g + 6 * g
        low = sum(self.channels) * g + 2 * g + GATHERED * block + (g + 2) * (c1 + fine)
        near = (c3 + c2 + 3 * c1 + 6) * c1 + (c1 + c1 + c0 + 2 * fine + 6) * fine
        injected = sum(3 * (width * width + 2 * width) for width in (c1, fine, 2 * fine, self.last))
        attended = 2 * heads * ((KEY + VALUE) * whole + 2 * KEY + VALUE) + 2 * whole
        layer = attended + 2 * (whole * whole + 2 * whole) + 10 * whole
        stacks = ((c1, c1), (fine, fine), (2 * fine, middle), (self.last, coarse))
        parts = (whole + 1) * (2 * fine + self.last)
        return low + near + injected + depth * layer + parts + sum(itertools.starmap(self.stacked, stacks))

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        _, three, four, five = (y * x for y, x in given)
        up, both = halved(given[3])[0] * halved(given[3])[1], 0
        for inject, own, source in (
            *((self.inject4, four, four), (self.inject3, three, four)),
            *((self.inject_n4, four, up), (self.inject_n5, five, up)),
        ):
            both += per_cell(inject.own) * own + (per_cell(inject.gate) + per_cell(inject.more)) * source
        total = both + four * sum(map(per_cell, (self.low, self.own4, self.join4, self.p4, self.reduce4, self.n4)))
        total += three * sum(map(per_cell, (self.own3, self.join3, self.p3)))
        total += five * sum(map(per_cell, (self.reduce5, self.n5)))
        total += up * (per_cell(self.high) + per_cell(self.parts))
        depth, heads = self.attention
        return 2 * batch * (total + depth * 2 * heads * VALUE * up * up)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("gold_yolo", cls((3, 5, 4, 7), (4, 6, 5), 2, 6)),
            Sample("M", cls((2, 4, 3, 5), 6, 2, 4, (1, 2), 0.5)),
            Sample("L", cls((2, 4, 3, 5), 4, 3, 4, (1, 3), 0.5, "silu", True)),
        ]
