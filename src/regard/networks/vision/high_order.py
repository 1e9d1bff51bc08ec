"""MHN: branches of attention of every order after a shared stem, which share the later stages and are kept apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gates.mhn import HighOrder
from regard.networks.base import Network
from regard.networks.stages.norms import ConvNorm
from regard.networks.vision.botnet import Bottleneck
from regard.networks.vision.vit import image_sample

LENGTH = 20
"""What descriptors of stripes are scaled to."""


class Embedding(nn.Sequential):
    """A matrix with a bias and a batch norm: ``(b, c)`` -> ``(b, e)``."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__(nn.Linear(inside, out), nn.BatchNorm1d(out))


class Flip(torch.autograd.Function):
    """x forward, the negative gradient backward."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -gradient


class Adversary(nn.Module):
    """How far apart the descriptors of the orders are, in a space that a network of its own makes small.

        d = mean_{r < s} mean ‖z_r − z_s‖,   z = unit(norm(W_3 relu(norm(W_2 unit(x)))))

    Minimised by the adversary, maximised by what makes x: its gradient is reversed on the way out.

    Args:
        width: of the descriptors.

    Shapes: ``(orders, b, width)`` -> a number, to be added to a loss. Paper: Chen et al., arXiv 1908.05819.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.first = nn.Linear(width, half, bias=False)
        self.rest = nn.Sequential(nn.BatchNorm1d(half), nn.ReLU(), nn.Linear(half, half), nn.BatchNorm1d(half))

    def forward(self, descriptors: Tensor) -> Tensor:
        unit: Any = Flip.apply(F.normalize(descriptors, dim=-1))
        found = F.normalize(self.rest(self.first(unit).flatten(0, 1)), dim=1).unflatten(0, descriptors.shape[:2])
        pairs = itertools.combinations(range(len(found)), 2)
        return torch.stack([(found[r] - found[s]).norm(dim=1).mean() for r, s in pairs]).mean()


@published(
    "mhn_network",
    family="featuremap",
    kind="network",
    title="Mixed High-Order Attention Network for Person Re-Identification",
    arxiv="1908.05819",
    year=2019,
    aliases=("mixed_high_order",),
    fidelity="authors' code",
    claim=Claim(
        "trained against its adversary the branches of the orders give descriptors that are further apart, in every "
        "one of three runs",
        cells="map_networks.branches",
        holds="map_networks.are_further_apart",
    ),
)
class MixedHighOrder(Network):
    """A residual network whose map after the second stage is weighed by attention of orders 1 to R, each a branch.

        x_r = g_r(x) ⊙ x,   descriptors of stage_4(stage_3(x_r)), with weights that all branches share

    Branches go through the later stages as one batch. With several stripes the last stage keeps its resolution, and
    the mean of each stripe has a descriptor, of length 20; with one it is that of the whole map, as it is.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, stripes · orders, classes)``, stripe by stripe, of any height and width.

    Args:
        classes: to tell apart. orders: R. stripes: 1 or more, 6 in the paper. blocks: of each stage. width: of the
            first stage's inner maps. descriptor: its width. seed: of the weights.

    Raises:
        ValueError: no order or no stripe.

    Paper: Chen et al., arXiv 1908.05819; `Adversary` is its other half; stripes: Sun et al. (PCB), 1711.09349.
    """

    def __init__(
        self,
        classes: int = 751,
        orders: int = 4,
        stripes: int = 6,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        descriptor: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if orders < 1 or stripes < 1:
            raise wrong("orders, stripes", f"{orders}, {stripes}", "at least 1 each")
        self.stripes = stripes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, inside, stages = ConvNorm(3, width, 7, 2), width, []
            for stage, count in enumerate(blocks):
                stride = 2 if stage and not (stage == len(blocks) - 1 and stripes > 1) else 1
                made = [Bottleneck(inside, width * 2**stage, stride, None)]
                inside = 4 * width * 2**stage
                made += [Bottleneck(inside, width * 2**stage, 1, None) for _ in range(count - 1)]
                stages.append(nn.Sequential(*made))
            self.early, self.late = nn.Sequential(*stages[:2]), nn.Sequential(*stages[2:])
            self.gates = nn.ModuleList(HighOrder(8 * width, order + 1) for order in range(orders))
            self.embeddings = nn.ModuleList(Embedding(inside, descriptor) for _ in range(stripes))
            self.classes = nn.ModuleList(nn.Linear(descriptor, classes) for _ in range(stripes * orders))
        self.pool = nn.MaxPool2d(3, 2, 1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made(stripes: int) -> Sample:
            net = cls(5, 3, stripes, (1, 2, 1, 1), 4, 7)
            return image_sample(f"{stripes} stripes", net, (45, 22), 3, output=(3 * stripes, 5))

        return [made(1), made(2)]

    def shared(self, images: Tensor) -> Tensor:
        """The map that all branches weigh."""
        return self.early(self.pool(torch.relu(self.stem(images))))

    def descriptors(self, images: Tensor) -> Tensor:
        """``(stripes, orders, b, descriptor)``."""
        x = self.shared(images)
        x = self.late(torch.cat([gate(x) for gate in self.gates]))
        means = F.adaptive_avg_pool2d(x, (self.stripes, 1))[..., 0].unbind(2)
        found = torch.stack([embedding(mean) for embedding, mean in zip(self.embeddings, means, strict=True)])
        found = found if self.stripes == 1 else LENGTH * F.normalize(found, dim=-1)
        return found.unflatten(1, (len(self.gates), -1))

    def told(self, descriptors: Tensor) -> Tensor:
        """The logits ``(b, stripes · orders, classes)`` of descriptors."""
        pairs = zip(self.classes, descriptors.flatten(0, 1), strict=True)
        return torch.stack([classes(each) for classes, each in pairs], 1)

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What each branch weighs the shared map by, ``(b, c, y, x)``."""
        x, gates = self.shared(images), enumerate(self.gates)
        return {f"gates.{place}": gate.factors(x)["cyx"] for place, gate in gates if isinstance(gate, HighOrder)}

    def forward(self, images: Tensor) -> Tensor:
        return self.told(self.descriptors(images))
