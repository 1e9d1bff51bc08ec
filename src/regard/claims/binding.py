"""A small vision transformer that fills in patches of drawn scenes: whether it knows which are of the same object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.analysis.object_binding import object_binding, projected_out
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.networks.lm import Config
from regard.networks.vision.vit import ViT
from regard.train.fit import Recipe, fit

SIDE, PATCH, GRID, OBJECTS = 24, 3, 8, 4
COLOURS = torch.tensor([[1.0, 0.1, 0.1], [0.2, 0.3, 1.0]])
HIDDEN, WIDTH, LAYERS, DIRECTIONS, DRAWS = 0.5, 48, 3, 6, range(5)


@dataclass(frozen=True)
class Boxes:
    """Images that are cut into four boxes of one colour each with dark edges, and what each patch shows.

    Args:
        images: ``(b, 3, 24, 24)``. objects: ``(b, 64)``, 0 to 3. classes: ``(b, 64)``, colours.
    """

    images: Tensor
    objects: Tensor
    classes: Tensor


def boxes(count: int, generator: Generator) -> Boxes:
    """Images that are cut once across, and both halves once more, somewhere between patches; half of them are turned.

    Two boxes are of one colour as often as not, so that a hidden patch can only be told by what box it is in.
    """
    cuts = torch.randint(2, GRID - 1, (count, 3, 1, 1), generator=generator)
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    right = x >= cuts[:, 0]
    objects = 2 * right.long() + (y >= torch.where(right, cuts[:, 1], cuts[:, 2])).long()
    turned = torch.rand(count, 1, 1, generator=generator) < 0.5
    objects = torch.where(turned, objects.mT, objects).flatten(1)
    classes = torch.randint(len(COLOURS), (count, OBJECTS), generator=generator).gather(1, objects)
    wide = objects.view(count, 1, GRID, GRID).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    images = COLOURS[classes].view(count, GRID, GRID, 3).permute(0, 3, 1, 2)
    images = images.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    edges = F.pad((wide[:, :, 1:] != wide[:, :, :-1]), (0, 0, 1, 0)) | F.pad(wide[..., 1:] != wide[..., :-1], (1, 0))
    return Boxes(images * ~edges + 0.1 * torch.randn(images.shape, generator=generator), objects, classes)


class Filler(nn.Module):
    """A vision transformer that tells the pixels of patches that are hidden from it, as SimMIM does (arXiv 2111.09886).

    Shapes: ``images (b, 3, 24, 24)``, ``hidden (b, 64)`` -> pixels ``(b, 64, 27)``.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        config = Config(3 * PATCH**2, WIDTH, f"softmax*{LAYERS}", heads=4, inner=96)
        self.vit = ViT(config, (SIDE, SIDE), PATCH, 3, seed=seed)
        self.blank = nn.Parameter(torch.zeros(WIDTH))

    def states(self, images: Tensor, hidden: Tensor | None = None, without: tuple[int, Tensor] | None = None):
        """Hidden states ``(b, 64, 48)`` before the first layer and after each, of some without what `projected_out`
        takes: ``(how many layers in, directions)``."""
        x = self.vit.embed(images)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.blank + self.vit.positions, x)
        found = [x]
        for layer in self.vit.layers:
            x = layer(x, Layout(), None)
            if without is not None and without[0] == len(found):
                x = projected_out(x, without[1])
            found.append(x)
        return found

    def forward(self, images: Tensor, hidden: Tensor, without: tuple[int, Tensor] | None = None) -> Tensor:
        return self.vit.classes(self.vit.norm(self.states(images, hidden, without)[-1]))


def filling_loss(model: Filler, images: Tensor, generator: Generator, without: tuple[int, Tensor] | None = None):
    """The mean square of what hidden patches are told wrongly by."""
    hidden = torch.rand(len(images), GRID**2, generator=generator) < HIDDEN
    wanted = F.unfold(images, PATCH, stride=PATCH).mT
    return (model(images, hidden, without) - wanted)[hidden].square().mean()


def probed(model: Filler, known: Boxes, asked: Boxes, forms: Sequence[str]):
    """What probes tell of all layers."""
    with torch.no_grad():
        states = list(zip(model.states(known.images), model.states(asked.images), strict=True))
    classes = (known.classes, asked.classes)
    return object_binding(states, (known.objects, asked.objects), classes, forms, batch=16, rate=3e-3)


@measured(seed=range(3), steps=[3000])
def of_scenes(seed: int, steps: int) -> dict[str, float]:
    """The share of pairs told rightly in the best layer by each probe and by the classes as they are, untrained too;
    and the loss of filling in, whole, without the quadratic probe's first directions, and without random ones."""
    generator = Generator().manual_seed(100 + seed)
    seen, known, asked = (boxes(count, generator) for count in (2048, 768, 256))
    model = Filler(seed)
    before = probed(model, known, asked, ["quadratic"]).best("quadratic")[1]

    def loss(ready: Filler, drawn: Generator) -> Tensor:
        rows = torch.randint(len(seen.images), (32,), generator=drawn)
        return filling_loss(ready, seen.images[rows], drawn)

    fit(model, loss, Recipe(steps, 2e-3, seed=seed))  # pyright: ignore
    found = probed(model, known, asked, ("quadratic", "diagonal", "linear"))
    same = (asked.objects[:, :, None] == asked.objects[:, None]) == (
        asked.classes[:, :, None] == asked.classes[:, None]
    )
    layer, most = found.best("quadratic")
    figures: dict[str, float] = {"layer": layer, "quadratic": most, "untrained": before}
    figures |= {form: found.best(form)[1] for form in ("diagonal", "linear", "class")}
    figures["true classes"] = float(same[:, torch.ones(GRID**2, GRID**2, dtype=torch.bool).triu()].double().mean())
    probe = found.probes[layer][0]
    draws = [
        torch.linalg.qr(torch.randn(WIDTH, DIRECTIONS, generator=Generator().manual_seed(draw))).Q.T for draw in DRAWS
    ]
    with torch.no_grad():
        whole, own, *random = (
            filling_loss(model, asked.images, Generator().manual_seed(5), without).item()
            for without in (None, *((layer, some) for some in (probe.directions(DIRECTIONS), *draws)))  # pyright: ignore
        )
    return figures | {"whole": whole, "without": own, "random": max(random)}


def is_told(found: Figures) -> Finding:
    """85% of held-out pairs or more, and 10 points more than the class probe, in every seed."""
    most, by_class = found("quadratic"), found("class")
    others = ", ".join(f"{form} {listed(found(form), '.1%')}" for form in ("diagonal", "linear", "true classes"))
    figure = f"pairs told by the quadratic probe {listed(most, '.1%')}, by classes {listed(by_class, '.1%')} ({others})"
    return Finding.of(figure, min(most) >= 0.85, all(a >= b + 0.1 for a, b in zip(most, by_class, strict=True)))


def is_learned(found: Figures) -> Finding:
    """By 5 points at least, in every seed."""
    most, before = found("quadratic"), found("untrained")
    figure = f"{listed(most, '.1%')} of the pairs (after layer {listed(found('layer'), 'd')}), untrained at most "
    figure += listed(before, ".1%")
    return Finding.of(figure, all(a >= b + 0.05 for a, b in zip(most, before, strict=True)))


def is_used(found: Figures) -> Finding:
    """In every seed the loss rises, and more than by the worst of five random choices."""
    whole, own, random = (found(name) for name in ("whole", "without", "random"))
    figure = (
        f"loss of filling in {listed(whole, '.4f')}, without {DIRECTIONS} of {WIDTH} directions {listed(own, '.4f')}, "
        f"without random ones at most {listed(random, '.4f')}"
    )
    return Finding.of(figure, all(a < b for a, b in zip(whole, own, strict=True)),
                      all(r < o for r, o in zip(random, own, strict=True)))  # fmt: skip
