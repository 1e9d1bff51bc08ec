"""Graph convolution and attention over a skeleton's joints, each of which gives to the other: poses lifted from 2D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network

PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
"""The joint that each of the 17 hangs from: pelvis, right and left leg, spine to head, left and right arm."""
MIRRORED = ((6, 3), (5, 2), (4, 1), (11, 14), (12, 15), (13, 16))
FAR = (1, 2, 3, 4, 2, 3, 4, 0, 1, 2, 3, 2, 3, 4, 2, 3, 4)
"""Bones between each joint and the thorax."""
TO_ATTENTION, TO_GRAPH = 0.5, 0.8
"""What each branch gives to the other is multiplied by these."""


def partitions() -> Tensor:
    """Adjacency ``(4, 17, 17)`` in parts: of each joint itself, from farther ones, from nearer ones, and mirrored.

    Entry (j, i) is one over the number of neighbours of i, itself among them.
    """
    joints = len(PARENTS)
    mirrored, near = torch.zeros(joints, joints, dtype=torch.bool), torch.eye(joints, dtype=torch.bool)
    for i, j in MIRRORED:
        mirrored[i, j] = mirrored[j, i] = True
    for child, parent in enumerate(PARENTS[1:], 1):
        near[child, parent] = near[parent, child] = True
    weights = (near | mirrored) / (near | mirrored).sum(0).double()
    far, own = torch.tensor(FAR), torch.eye(joints, dtype=torch.bool)
    closer = ~own & ~mirrored & (far[:, None] > far)
    return torch.stack([weights * part for part in (own, closer, ~own & ~mirrored & ~closer, mirrored)])


class SkeletonConvolution(nn.Module):
    """``Σ_p A_pᵀ x W_p + …``: one map for each part of the adjacency, with a bias before the neighbours are summed."""

    parts: Tensor

    def __init__(self, channels: int, parts: Tensor) -> None:
        super().__init__()
        self.map = nn.Linear(channels, channels * len(parts))
        self.register_buffer("parts", parts.float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bjpc,pji->bic", self.map(x).unflatten(2, (len(self.parts), -1)), self.parts)


@dataclass(frozen=True)
class Drops:
    """Chances that something is left out of a step of training, as the authors' code has them.

    Args:
        given: of numbers that one branch gives to the other. weights: of attention. out: of what attention puts out.
            mlp: of numbers in the network behind. block: of what the last block adds to one pose, once for its branches
            and once for its network; from zero in the first block it rises evenly.

    Raises:
        ValueError: what is no chance.
    """

    given: float = 0.15
    weights: float = 0.2
    out: float = 0.25
    mlp: float = 0.2
    block: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < 1:
                raise wrong(field.name, str(getattr(self, field.name)), "0 or more, below 1")


NOTHING = Drops(0.0, 0.0, 0.0, 0.0, 0.0)
"""Leaves nothing out."""


class DropWhole(nn.Module):
    """Leaves out all of what one example of a batch is given, with the chance ``p`` in training; raises the rest."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * F.dropout(x.new_ones(x.shape[0], *[1] * (x.dim() - 1)), self.p, self.training)


class Interwoven(nn.Module):
    """A block: convolution gives to attention before its projection, attention to the second convolution.

    Args:
        channels, heads, drops: as in `PoseLifter`; here the chance of the block is its own. ways: which of the two
            gives.
    """

    def __init__(self, channels: int, joints: int, heads: int, drops: Drops, ways: tuple[bool, bool]) -> None:
        super().__init__()
        parts, (self.to_attention, self.to_graph) = partitions(), ways
        self.heads, self.attention = heads, build("softmax")
        self.over_joints, self.before = nn.LayerNorm(joints, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.first, self.second = SkeletonConvolution(channels, parts), SkeletonConvolution(channels, parts)
        self.maps, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.behind, half = nn.LayerNorm(channels, eps=1e-6), channels // 2
        self.down, self.middle, self.up = nn.Linear(channels, half), nn.Linear(half, half), nn.Linear(half, channels)
        self.drop, self.drop_weights, self.drop_out, self.drop_mlp = (
            nn.Dropout(p) for p in (drops.given, drops.weights, drops.out, drops.mlp)
        )
        self.drop_block = DropWhole(drops.block)

    def forward(self, x: Tensor) -> Tensor:
        graph = self.first(self.over_joints(x.mT).mT)
        q, k, v = self.maps(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.training and self.drop_weights.p > 0:
            seen = self.drop_weights(self.attention.weights(q, k, Layout())) @ v
        else:
            seen = self.attention(q, k, v, Layout())
        seen = seen.transpose(1, 2).flatten(2)
        given = seen + self.drop(TO_ATTENTION * graph) if self.to_attention else seen
        shown = graph + self.drop(TO_GRAPH * seen) if self.to_graph else graph
        x = x + self.drop_block(self.second(shown) + self.drop_out(self.out(given)))
        low = self.drop_mlp(F.gelu(self.down(self.behind(x))))
        high = self.up(self.drop_mlp(F.gelu(self.middle(low))) + low)
        return x + self.drop_block(self.drop_mlp(F.gelu(high)))


@published(
    "pose_lifter",
    family="structured",
    kind="network",
    row=232,
    title="Interweaved Graph and Attention Network for 3D Human Pose Estimation",
    arxiv="2304.14045",
    year=2023,
    aliases=("iganet",),
    fidelity="authors' code",
    claim=(
        Claim(
            "it lifts poses with a smaller error than graph convolution alone and than attention alone",
            cells="poses.lifted",
            holds="poses.both_are_better",
        ),
        Claim(
            "without either way from one branch to the other the error is larger",
            cells="poses.lifted",
            holds="poses.needs_both_ways",
        ),
    ),
)
class PoseLifter(Network):
    """A network of 17 joints in which graph convolution and attention run beside each other and give to each other.

        g = GCN₁(norm x),   a = A V x,   x ← x + GCN₂(g + 0.8 a) + W_o (a + 0.5 g),   x ← x + uMLP(norm x)
        uMLP: h = gelu(W₁ x), gelu(W₃ (gelu(W₂ h) + h)), at half of the channels

    The first norm runs over joints. Joints are embedded by four maps without a kink between them.

    Shapes: ``poses (b, 17, 2)`` -> ``(b, 17, 3)``.

    Args:
        channels: 512 in the paper. depth: blocks. heads: of attention. drops: what training leaves out.
        ways: whether convolution gives to attention, and attention to convolution. seed: of the initial weights.

    Raises:
        ValueError: sizes below one, channels that heads do not divide, or poses of other joints.

    Paper: Yao et al., arXiv 2304.14045, with the layers of the authors' code.
    """

    def __init__(
        self,
        channels: int = 512,
        depth: int = 3,
        heads: int = 8,
        drops: Drops = Drops(),
        ways: tuple[bool, bool] = (True, True),
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if min(channels, depth, heads) < 1 or channels % heads or channels % 8:
            raise wrong("channels, depth, heads", f"{channels}, {depth}, {heads}", "channels of 8 and of heads")
        if seed is not None:
            torch.manual_seed(seed)
        sizes = (2, channels // 8, channels // 4, channels // 2, channels)
        self.embed = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
        self.blocks = nn.ModuleList(
            Interwoven(
                channels,
                len(PARENTS),
                heads,
                replace(drops, block=drops.block * place / max(1, depth - 1)),
                (ways[0], ways[1]),
            )
            for place in range(depth)
        )
        self.norm, self.out = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 3)

    def forward(self, poses: Tensor) -> Tensor:
        if poses.dim() != 3 or poses.shape[1:] != (len(PARENTS), 2):
            raise wrong("poses", f"shape {tuple(poses.shape)}", f"(b, {len(PARENTS)}, 2)")
        x = self.embed(poses)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": drawn, "output": (len(PARENTS), 3)}
        made = {"both": cls(16, 2, 2, seed=0), "one way": cls(16, 2, 2, ways=(True, False), seed=0)}
        return [Sample(label, network, given) for label, network in made.items()]


def drawn(batch: int, seed: int) -> tuple[Tensor]:
    """Poses for examples."""
    return (torch.randn(batch, len(PARENTS), 2, generator=torch.Generator().manual_seed(seed)),)
