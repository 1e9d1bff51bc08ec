"""The contract of hierarchical networks of images, and their making from a design."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.kinds import Sample
from regard.networks.base import Network, attention_maps, modules_of, told_by
from regard.networks.stages.design import Design
from regard.networks.stages.ends import Pair, end_of
from regard.networks.stages.norms import ConvNorm, norm_of
from regard.networks.stages.steps.base import Added, Step
from regard.networks.stages.steps.table import step_of
from regard.networks.vision.vit import image_sample


class Stage(nn.Module):
    """A step down and blocks at one resolution."""

    def __init__(self, down: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.down, self.blocks = down, nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return x


class Stages(Network):
    """A hierarchical network of images: a stem, stages of blocks with a step down before each, but the
    first where the stem goes down far enough, and a head.

        x_0 = stem(image),   x_s = block … block(down(x_{s−1})),   logits = head(x_S)
        block: x ← x + step(norm(x)) for each of its steps

    Shapes: ``images (b, channels, y, x)`` -> ``(b, classes)``, of any height and width.

    Args:
        design: what it is made of, a `Design` or its text. classes: to tell apart. channels: of the images. seed: of
            the weights.

    Raises:
        ValueError, LookupError, TypeError: a design that names what there is not.
    """

    def __init__(self, design: Design | str, classes: int = 1000, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.design = design = Design.of(design) if isinstance(design, str) else design
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = end_of("stem", design.stem, inside=channels, width=design.widths[0], norm=design.norm)
            self.stages = nn.ModuleList(self.made())
            self.head = end_of("head", design.head, width=design.widths[-1], classes=classes, norm=design.norm)
            started(self, design.start)

    def made(self) -> list[Stage]:
        """The stages."""
        design, blocks = self.design, self.design.blocks
        rates = iter(torch.linspace(0, design.drop, sum(map(len, blocks)), device="cpu").tolist())
        found, before = [], self.stem.out if isinstance(self.stem, Pair) else design.widths[0]
        for place, (width, heads, texts) in enumerate(zip(design.widths, design.heads, blocks, strict=True)):
            down = nn.Identity()
            if place or isinstance(self.stem, Pair):  # which halves the resolution once alone
                down = end_of("down", design.down, inside=before, width=width, norm=design.norm)
            sizes = {"width": width, "heads": heads, "norm": design.norm, "bias": design.bias}
            parts = [nn.Sequential(*self.steps(steps, sizes, next(rates))) for steps in texts]
            found.append(Stage(down, parts))
            before = width
        return found

    def steps(self, texts: Sequence[str], sizes: dict[str, Any], drop: float) -> list[nn.Module]:
        """The steps of one block."""
        found: list[nn.Module] = []
        for text in texts:
            step = step_of(text, sizes)
            norm = norm_of(sizes["norm"], sizes["width"]) if step.normed else nn.Identity()
            scale = self.design.scale if step.normed else None
            found.append(step if step.alone else Added(step, norm, sizes["width"], scale, drop))
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images)[-1])

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps ``(b, width, y, x)`` of each stage, fine to coarse: what `regard.neck` takes."""
        x, found = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A ``(b, h, n, m)`` of each attention, and ``(b, …, y, x)`` of what else its steps weigh the map by."""
        steps = modules_of(self, Step)
        with attention_maps(self) as maps, told_by(steps, lambda step, given, out: step.maps(given[0])) as told:
            self(images)
        found = {f"{name}.{what}": values for name, shown in told.items() for what, values in shown.items()}
        return {**maps, **found}

    def folded(self) -> Stages:
        """A copy for evaluation whose batch norms behind convolutions are part of these."""
        made = copy.deepcopy(self).eval()
        for module in list(made.modules()):
            for name, child in module.named_children():
                if isinstance(child, ConvNorm):
                    setattr(module, name, child.folded())
        return made

    def extra_repr(self) -> str:
        return str(self.design)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        design = Design((6, 8), ("windows(side=3) + mlp(ratio=2)", "cpe + softmax + mlp"), (2, 4), "patch(side=2)")
        return [image_sample("stages", cls(design, 7), (13, 9))]


def started(network: nn.Module, how: str) -> None:
    """Begins weights as a design's ``start`` says, their biases with zeros.

    Matrices begin with normal numbers of a deviation of 0.02, cut at two; ``all`` convolutions too; or by ``fan_out``
    these with a deviation of √(2 / f), f the outputs that a weight has a part in. Else convolutions begin as PyTorch's.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and how == "fan_out":
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and how == "all"):
            nn.init.trunc_normal_(module.weight, std=0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
