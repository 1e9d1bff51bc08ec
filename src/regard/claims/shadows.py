"""Shadows on drawn textures: how close to the lit image they are brought, and what shadowed cells attend to."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, interval
from regard.networks.vision.rasm import RASM
from regard.tasks.scenes import SHAPES, Scenes
from regard.train.fit import Recipe, fit

SIDE = 48
ARMS = {"region": "nat(axes=2, window=3, dilation=2)", "windows": "windows(side=3, bias=True)"}
"""Attention to the nine cells of a dilated region, or of a window."""


def shadowed(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``(images, masks, lit images)``: a soft disc of shade over a texture with a shape upon it."""
    scenes = Scenes(SIDE, noise=0)
    kinds = torch.randint(len(SHAPES), (count,), generator=generator)
    half, middle = 5 + 8 * torch.rand(count, generator=generator), SIDE * torch.rand(count, 2, generator=generator)
    lit = scenes.over(scenes.ground(count, generator), kinds, middle, half, generator)
    centre = SIDE * torch.rand(count, 1, 1, 2, generator=generator)
    reach = 9 + 9 * torch.rand(count, 1, 1, generator=generator)
    shade = torch.sigmoid(reach - (scenes.cells() - centre).norm(dim=-1))[:, None]
    dark = 0.35 + 0.3 * torch.rand(count, 3, 1, 1, generator=generator)
    return lit * (1 - (1 - dark) * shade), (shade > 0.5).float(), lit


def trained(arm: str, seed: int, steps: int) -> Any:
    """A small network that has learned to remove shadows, by the loss of the paper's code."""
    model = RASM(8, 1, (2, 4, 2), ARMS[arm], drop=0.0, seed=seed)

    def loss(ready: Any, generator: Generator) -> Tensor:
        images, mask, lit = shadowed(8, generator)
        return ((ready(images, mask) - lit).square() + 1e-6).sqrt().mean()

    return fit(model, loss, Recipe(steps, 3e-3, seed=seed))


def unseen() -> tuple[Tensor, Tensor, Tensor]:
    return shadowed(64, Generator().manual_seed(10_000))


@quick(seed=[0], steps=[20])
@measured(arm=tuple(ARMS), seed=range(3), steps=[1200])
def removed(arm: str, seed: int, steps: int) -> dict[str, float]:
    """The mean signal to noise ratio in dB of unseen images' shadowed pixels, before and after."""
    model, (images, mask, lit) = trained(arm, seed, steps), unseen()

    def ratio(found: Tensor) -> float:
        return (-10 * (((found - lit).square() * mask).sum() / (3 * mask.sum())).log10()).item()

    with torch.no_grad():
        return {"before": ratio(images), "after": ratio(model(images, mask))}


def is_above_windows(found: Figures) -> Finding:
    """In the mean of the seeds 0.3 dB above windows, and both above the shadow."""
    own, windows = (found("after", arm=arm) for arm in ARMS)
    before = found.mean("before")
    told = f"{interval(own, '.2f')} dB in the shadow, with windows {interval(windows, '.2f')}"
    figure = f"{told}, with the shadow {before:.2f}"
    return Finding.of(figure, mean(own) >= mean(windows) + 0.3, min(own) > before)


@quick(seed=[0], steps=[20])
@measured(seed=range(3), steps=[1200])
def lit(seed: int, steps: int) -> dict[str, float]:
    """What shadowed cells that see both pay to lit cells, and the share of lit cells among those that they see."""
    model, (images, mask, _) = trained("region", seed, steps), unseen()
    paid, seen = [], []
    with torch.no_grad():
        maps = model.intermediates(images, mask)
    for a in maps.values():
        side = round(a.shape[-1] ** 0.5)
        dark = F.max_pool2d(mask, SIDE // side).flatten(1)
        visible = (a > 0).double().mean(1)
        light = (visible * (1 - dark)[:, None]).sum(-1) / visible.sum(-1)
        border = (dark > 0) & (light > 0) & (light < 1)
        paid.append((a.mean(1) * (1 - dark)[:, None]).sum(-1)[border])
        seen.append(light[border])
    return {"paid": torch.cat(paid).mean().item(), "seen": torch.cat(seen).mean().item()}


def looks_at_light(found: Figures) -> Finding:
    """Half of the attention or more in each seed, and more than the share of lit cells."""
    paid, seen = found("paid"), found("seen")
    figure = f"{interval(paid, '.1%')} of the attention, where {mean(seen):.1%} of the cells are lit"
    return Finding.of(figure, min(paid) >= 0.5, mean(paid) > mean(seen))
