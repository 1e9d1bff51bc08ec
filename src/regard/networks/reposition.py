"""IR-Diffusion: blocks in which the subjects of an image read their references, moved to where they stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks.base import Network
from regard.projections.base import Grouped


def boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """First and last row, and first and last column, ``(..., 2)`` each, of the cells in ``masks (..., y, x)`` bool.

    Of a mask without cells they are (0, −1).
    """

    def ends(seen: Tensor) -> Tensor:
        first, last = seen.int().argmax(-1), seen.shape[-1] - 1 - seen.flip(-1).int().argmax(-1)
        some = seen.any(-1)
        return torch.stack([torch.where(some, first, 0), torch.where(some, last, -1)], -1)

    return ends(masks.any(-1)), ends(masks.any(-2))


def sources(inside: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Which cell of a reference comes to each cell of the target, and whether it is one of the subject's.

    The box around the subject in the reference is brought to the box around it in the target, by nearest cells: row r
    of h comes from row ⌊r h' / h⌋ of the reference's h', columns likewise. (The authors divide in float32, which for
    one pair of sizes in a hundred gives a row before.) Cells outside of the box are none of the subject's, and all are
    none where either mask is empty.

    Args:
        inside, places: ``(..., y, x)`` bool, the subject's cells in its reference and in the target.

    Returns:
        ``((..., y · x) int64, (..., y · x) bool)``.
    """
    axes, kept = [], []
    for there, here, size in zip(boxes(inside), boxes(places), inside.shape[-2:], strict=True):
        cells = torch.arange(size, device=inside.device)
        first, last = here[..., :1], here[..., 1:]
        extent, wanted = (x[..., 1:] - x[..., :1] + 1 for x in (there, here))
        axes.append((there[..., :1] + (cells - first) * extent // wanted.clamp(min=1)).clamp(0, size - 1))
        kept.append((cells >= first) & (cells <= last))
    index = (axes[0][..., :, None] * inside.shape[-1] + axes[1][..., None, :]).flatten(-2)
    within = (kept[0][..., :, None] & kept[1][..., None, :]).flatten(-2)
    return index, within & inside.flatten(-2).gather(-1, index)


def apart(places: Tensor) -> Tensor:
    """``(b, n, n)`` bool: False between two cells of different subjects, by ``places (b, s, n)`` bool.

    A cell that is in two subjects is apart from itself and from both, as in the authors' code.
    """
    count = places.float()
    every, same = count.sum(1), count.mT @ count
    return every[:, :, None] * every[:, None] == same


@published(
    "repositioned",
    family="generate",
    kind="network",
    row=240,
    title="Improving Multi-Subject Consistency in Open-Domain Image Generation with Isolation and Reposition Attention",
    arxiv="2411.19261",
    year=2024,
    aliases=("reposition_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "a subject that stands in one box in both images reads what plain K/V concatenation under the masks gives",
            cells="reposition.same_box",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "without positions in attention nothing but the copies of cells matters: moved whole, a subject reads what "
            "it would unmoved",
            cells="reposition.without_positions",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "where attention favours near cells, a subject that is displaced by half of the image is made more like "
            "its reference than by plain K/V concatenation",
            cells="reposition.likeness",
            holds="reposition.is_more_like",
        ),
    ),
)
class Repositioned(Network):
    """Blocks whose target reads, besides itself, each subject's reference, resized into the subject's box.

        x_i ← softmax(q_i [K(moved r_1), …, K(moved r_s), K(x)]ᵀ / √d + bias) [V(moved r_1), …, V(moved r_s), V(x)]

    A target's token of subject j sees the tokens of subject j in reference r_j, and in the target those of j and of the
    background, not those of other subjects; tokens of the background see the target alone. References go through the
    same blocks by themselves. Moved are hidden states before the projection, by `sources`; the target stays where it
    is, so that nothing has to be moved back.

    Shapes: ``x (b, y x, width), references (b, s, y x, width), inside, places (b, s, y, x) bool`` -> as x.

    Args:
        grid: y and x. width, heads, depth, inner: of the blocks. first: the first block that reads references; those
            before it isolate subjects only. moved: False for K/V concatenation, references where they are.
        near: whether scores fall with the squared distance of cells, by a rate that each head learns. The authors'
            networks have no positions in attention, and then a whole number of copies of each key changes nothing:
            moving matters where it resizes, and where attention knows places.
        seed: of the weights.

    Raises:
        ValueError: heads that do not divide the width, a first block that is none; in a call, other shapes.

    Paper: He et al., arXiv 2411.19261. There the masks come from a segmenter, half of their cells are left out at
    random, references are read in the last blocks of each step, and targets also ask the references' prompts, which is
    DreamStory's (2407.12899).
    """

    def __init__(
        self,
        grid: Sequence[int],
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        inner: int = 128,
        first: int = 0,
        moved: bool = True,
        near: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = Sizes.even(width, heads)
        if not 0 <= first <= depth:
            raise wrong("first", str(first), f"a block of {depth}, or {depth} for none")
        self.rows, self.columns = grid
        self.first, self.moved = first, moved
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = (Block(Attention(build("softmax"), Grouped(sizes)), width, inner) for _ in range(depth))
            self.blocks = nn.ModuleList(made)
        self.rates = nn.Parameter(torch.full((depth, heads), -2.0)) if near else None
        cells = torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns))
        self.distances: Tensor
        self.register_buffer("distances", (cells[:, None] - cells).square().sum(-1), persistent=False)

    def check(self, x: Tensor, references: Tensor, inside: Tensor, places: Tensor) -> None:
        """Raises a ValueError that names what has another shape than the constructor and ``x`` tell."""
        n, subjects = self.rows * self.columns, references.shape[1] if references.dim() == 4 else -1
        if x.dim() != 3 or x.shape[1] != n:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(batch, {n}, width)")
        if tuple(references.shape) != (len(x), subjects, n, x.shape[2]):
            wanted = f"({len(x)}, subjects, {n}, {x.shape[2]})"
            raise wrong("references", f"shape {tuple(references.shape)}", wanted)
        for name, masks in (("inside", inside), ("places", places)):
            wanted = (len(x), subjects, self.rows, self.columns)
            if tuple(masks.shape) != wanted:
                raise wrong(name, f"shape {tuple(masks.shape)}", str(wanted))

    def near(self, block: int, copies: int, like: Tensor) -> Tensor | None:
        """``(1, heads, n, copies · n)``: what is added to scores for the distance of cells; None where nothing is."""
        if self.rates is None:
            return None
        fall = -F.softplus(self.rates[block]).to(like.dtype)[:, None, None] * self.distances.to(like.dtype)
        return fall.repeat(1, 1, copies)[None]

    def forward(self, x: Tensor, references: Tensor, inside: Tensor, places: Tensor) -> Tensor:
        self.check(x, references, inside, places)
        inside, places = inside.bool(), places.bool()
        subjects, flat = references.shape[1], places.flatten(2)
        if self.moved:
            index, told = sources(inside, places)
        else:
            told = inside.flatten(2) & flat.any(-1, keepdim=True)
            index = torch.arange(x.shape[1], device=x.device).expand_as(told)
        own = apart(flat)
        asks = (flat[..., None] & told[:, :, None]).movedim(1, 2).flatten(2)  # (b, n, s n)
        seen, line = torch.cat([asks, own], -1)[:, None], references.flatten(0, 1)
        for place, block in enumerate(cast(list[Block], list(self.blocks))):
            state = block.norms[0](x)
            if place < self.first or not subjects:
                layout = Layout(mask=own[:, None], bias=self.near(place, 1, x))
                x = block.rest(x + block.attention(state, layout), None, Layout())
            else:
                taken = block.norms[0](line).unflatten(0, (-1, subjects))
                taken = taken.take_along_dim(index[..., None], 2).flatten(1, 2)
                layout = Layout(mask=seen, bias=self.near(place, subjects + 1, x))
                x = block.rest(x + block.attention(state, layout, torch.cat([taken, state], 1)), None, Layout())
            if subjects and place + 1 < len(self.blocks):
                line = block(line, Layout(bias=self.near(place, 1, x)))
        return x

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        found = []
        for grid, told in (((4, 5), {}), ((5, 3), {"near": True, "first": 1})):

            def draw(batch: int, seed: int, grid: tuple[int, int] = grid) -> tuple[Tensor, ...]:
                generator, n = Generator().manual_seed(seed), math.prod(grid)
                x = torch.randn(batch, n, 8, generator=generator)
                references = torch.randn(batch, 2, n, 8, generator=generator)
                inside = torch.rand(batch, 2, *grid, generator=generator) < 0.5
                owner = torch.randint(-1, 2, (batch, *grid), generator=generator)
                return x, references, inside, torch.stack([owner == 0, owner == 1], 1)

            given: dict[str, Any] = {"inputs": draw, "output": (math.prod(grid), 8)}
            net = cls(grid, 8, 2, 2, 12, **cast(dict[str, Any], told))
            found.append(Sample(f"two subjects on {grid[0]} × {grid[1]} cells", net, given))
        return found
