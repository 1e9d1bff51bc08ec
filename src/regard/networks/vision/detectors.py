"""DetectoRS: a residual network that sees an image twice, the second time with what a pyramid made of the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.mixtures.switchable import StandardisedConvolution, SwitchableAtrous
from regard.featuremap.necks.fpn import FPN
from regard.networks.base import Network, modules_of, told_by
from regard.networks.vision.vit import random_images, settled

RATES = (3, 6)


class Bottleneck(nn.Module):
    """``relu(norm(W_3 relu(norm(f(relu(norm(W_1 x)))))) + skip(x) + P r)``, f switchable or not, P zero at the start.

    Args:
        inside, planes: channels that come in and of f; four times these come out. stride: of f. switchable: whether f
            is a `SwitchableAtrous`. deformable: whether its taps move. feedback: channels of r, None where there is
            none.
    """

    def __init__(
        self, inside: int, planes: int, stride: int, switchable: bool, deformable: bool, feedback: int | None
    ) -> None:
        super().__init__()
        out = 4 * planes
        self.first, self.norm1 = StandardisedConvolution(inside, planes), nn.BatchNorm2d(planes)
        self.middle: nn.Module = (
            SwitchableAtrous(planes, planes, 3, stride, deformable)
            if switchable
            else StandardisedConvolution(planes, planes, 3, stride)
        )
        self.norm2 = nn.BatchNorm2d(planes)
        self.last, self.norm3 = StandardisedConvolution(planes, out), nn.BatchNorm2d(out)
        same = stride == 1 and inside == out
        skip = (StandardisedConvolution(inside, out, 1, stride), nn.BatchNorm2d(out))
        self.skip = nn.Identity() if same else nn.Sequential(*skip)
        self.feedback = None if feedback is None else nn.Conv2d(feedback, out, 1)
        for parameter in () if self.feedback is None else self.feedback.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        inner = torch.relu(self.norm2(self.middle(torch.relu(self.norm1(self.first(x))))))
        out = self.norm3(self.last(inner)) + self.skip(x)
        return torch.relu(out if self.feedback is None or given is None else out + self.feedback(given))


class Backbone(nn.Module):
    """Four stages of bottlenecks, from the second on switchable and, where it is told, with feedback into the first
    block of each.

    Args:
        blocks: of each stage. width: of the first stage's inner maps. switchable, deformable, feedback: see
            `Bottleneck`.
    """

    def __init__(
        self, blocks: Sequence[int], width: int, switchable: bool, deformable: bool, feedback: int | None
    ) -> None:
        super().__init__()
        self.stem, self.norm = StandardisedConvolution(3, width, 7, 2), nn.BatchNorm2d(width)
        self.pool, self.stages, inside = nn.MaxPool2d(3, 2, 1), nn.ModuleList(), width
        for stage, count in enumerate(blocks):
            made, planes = [], width * 2**stage
            for block in range(count):
                stride, again = (2 if stage and not block else 1), feedback if stage and not block else None
                made.append(Bottleneck(inside, planes, stride, switchable and stage > 0, deformable, again))
                inside = 4 * planes
            self.stages.append(nn.ModuleList(made))

    def forward(self, images: Tensor, feedback: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The map of each stage; ``feedback`` has one for each, of its size, of which the first is not read."""
        x, found = self.pool(torch.relu(self.norm(self.stem(images)))), []
        for place, stage in enumerate(self.stages):
            for block in stage.children():
                x = block(x, None if feedback is None else feedback[place])
            found.append(x)
        return found


class Rates(nn.Module):
    """``[relu(W_1 p), relu(W_3 p), relu(W_6 p), relu(W_m mean(p))]``, convolutions of the rates 1 × 1, 3, 6 and 1 × 1,
    each of a quarter of the channels.

    Args:
        width: channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        part = width // 4
        spread = (nn.Conv2d(width, part, 3, 1, rate, rate) for rate in RATES)
        self.convolutions = nn.ModuleList([nn.Conv2d(width, part, 1), *spread, nn.Conv2d(width, part, 1)])
        for layer in (each for each in self.convolutions if isinstance(each, nn.Conv2d)):
            fan = part * layer.weight[0, 0].numel()
            nn.init.normal_(layer.weight, std=(2 / fan) ** 0.5)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        *near, last = self.convolutions
        found = [each(x) for each in near]
        mean = last(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return torch.relu(torch.cat([*found, mean], 1))


@published(
    "detectors",
    family="featuremap",
    kind="network",
    row=174,
    title="DetectoRS: Detecting Objects with Recursive Feature Pyramid and Switchable Atrous Convolution",
    arxiv="2006.02334",
    year=2020,
    aliases=("rfp", "recursive_feature_pyramid"),
    fidelity="authors' code",
    claim=(
        Claim(
            "untrained, with the second backbone a copy of the first, it gives what the pyramid of one pass gives",
            cells="recursive.start",
            holds="common.within(most=1e-6)",
        ),
        Claim(
            "in a later pass each stage but the first reads the pyramid of the pass before",
            cells="recursive.feedback",
            holds="recursive.reaches_all_but_the_first",
        ),
    ),
)
class DetectoRS(Network):
    """A pyramid whose maps go back into the backbone, which sees the image again.

        p^1 = neck(backbone_1(images)),   q = neck(backbone_t(images, r(p^{t−1}))),
        p^t = s ⊙ q + (1 − s) ⊙ p^{t−1},  s = σ(w · q + b) of each cell

    r is `Rates`; w and b begin as zero, as what brings r into the stages does. The neck is `FPN`. The convolutions
    3 × 3 of all stages but the first are `SwitchableAtrous`.

    Shapes: ``images (b, 3, y, x)`` of any height and width -> a map ``(b, out, y_l, x_l)`` for each level, 4 to 64
    pixels a cell.

    Args:
        blocks: of each stage. width: of the first stage's inner maps. out: of the pyramid, a multiple of 4. steps:
            passes. shared: one backbone for all passes, else one each. switchable: whether convolutions are.
            deformable: whether their taps move. seed: of the weights.

    Raises:
        ValueError: a size below one, or an ``out`` that 4 does not divide.

    Paper: Qiao et al., arXiv 2006.02334, whose method ends with the pyramid: in the authors' code the heads that read
    it are those of Hybrid Task Cascade (1901.07518), unchanged.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        out: int = 256,
        steps: int = 2,
        shared: bool = False,
        switchable: bool = True,
        deformable: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(*blocks, width, out, steps) < 1 or out % 4:
            raise wrong("blocks, width, out, steps", f"{tuple(blocks)}, {width}, {out}, {steps}", "sizes, out by 4")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reading = [out if shared else None] if shared or steps == 1 else [None, *[out] * (steps - 1)]
            self.backbones = nn.ModuleList(Backbone(blocks, width, switchable, deformable, each) for each in reading)
            self.neck = FPN([4 * width * 2**n for n in range(len(blocks))], out, 1)
            self.rates, self.share = (Rates(out), nn.Conv2d(out, 1, 1)) if steps > 1 else (None, None)
        for parameter in () if self.share is None else self.share.parameters():
            nn.init.zeros_(parameter)
        self.steps = steps

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def sample(label: str, **more: Any) -> Sample:
            def made(seed: int = 0) -> DetectoRS:
                network = cls((1, 1, 1, 1), 4, 4, **more, seed=seed)
                generator = torch.Generator().manual_seed(seed)
                with torch.no_grad():  # past the zeros that it begins with
                    for parameter in network.parameters():
                        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
                return settled(network, *random_images((3, 75, 70), 3, seed))

            def inputs(batch: int, seed: int) -> tuple[Tensor]:
                return random_images((3, 75, 70), batch, seed)

            sizes = [(4, 19, 18), (4, 10, 9), (4, 5, 5), (4, 3, 3), (4, 2, 2)]
            return Sample(label, made(), {"inputs": inputs, "output": sizes, "again": lambda: made(7)})

        return [sample("detectors"), sample("three passes of one", steps=3, shared=True, deformable=False)]

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of each cell the weights of both rates, and those of the new pyramid and the one before ``(b, 1, n, 2)``."""

        def weights(module: Any, given: tuple[Tensor], out: Tensor) -> Tensor:
            return cells(module.weights(module.before(given[0]), []))

        with told_by(modules_of(self, SwitchableAtrous), weights) as found:
            _, shares = self.passes(images)
        return found | {f"share.{name}": cells(torch.stack((s, 1 - s), 1)) for name, s in shares.items()}

    def passes(self, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The last pyramid, and s of each level of each pass ``(b, 1, y, x)``."""
        maps, shares = self.neck(self.backbones[0](images)), {}
        for step in range(1, self.steps):
            backbone = self.backbones[step if len(self.backbones) > 1 else 0]
            levels = len(self.neck.channels)
            again = [maps[0], *(self.rates(each) for each in maps[1:levels])] if self.rates else maps
            new = self.neck(backbone(images, again))
            for level, each in enumerate(new):
                share = torch.sigmoid(self.share(each)) if self.share else each
                shares[f"{step}.{level}"] = share
                maps[level] = share * each + (1 - share) * maps[level]
        return maps, shares

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.passes(images)[0]


def cells(weights: Tensor) -> Tensor:
    """Weights ``(b, k, 1, y, x)`` as a map ``(b, 1, n, k)``."""
    return weights[:, :, 0].flatten(2).mT[:, None]
