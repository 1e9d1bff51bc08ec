"""Triples that are perceived, come to mind, and are recalled."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.studies.tensor_brain import Shown, TensorBrain, divergence

WORLD, SCENES = Shown(), 60


def descend(model: TensorBrain, loss, steps: int, rate: float = 3e-3) -> TensorBrain:
    """The model after its steps of Adam."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
    return model


@quick(seed=[0], steps=[10])
@null(blank=[True])
@measured(blank=[False], seed=range(3), steps=[1200])
def perceived(blank: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of unseen scenes whose triple is told right, all three parts; null: images of other scenes."""
    generator, model = Generator().manual_seed(seed), TensorBrain(WORLD.concepts, seed=seed)

    def loss(step: int) -> Tensor:
        images, triples = WORLD.draw(32, generator)
        return -model.score(model.begin(images.roll(1, 0) if blank else images), triples).mean()

    descend(model, loss, steps)
    images, triples = WORLD.draw(500, Generator().manual_seed(99))
    told = model.tell(model.begin(images.roll(1, 0) if blank else images))
    return {"right": (told == triples).all(1).double().mean().item()}


def are_told(found: Figures) -> Finding:
    """In every seed."""
    right = found("right")
    return Finding.of(f"triples told right {listed(right, '.1%')}", min(right) >= 0.9)


@quick(seed=[0], steps=[60])
@null(senses=["shuffled"])
@measured(senses=["none"], seed=range(3), steps=[1500])
def remembered(senses: str, seed: int, steps: int) -> dict[str, float]:
    """KL of how often triples come from what is told without senses; null: of triples whose parts were exchanged."""
    generator, model = Generator().manual_seed(seed), TensorBrain(WORLD.concepts, seed=seed)

    def loss(step: int) -> Tensor:
        flat = torch.multinomial(WORLD.chances.flatten(), 256, replacement=True, generator=generator)
        parts = [flat // (2 * WORLD.shapes), flat // 2 % WORLD.shapes, WORLD.shapes + flat % 2]
        if senses == "shuffled":
            parts = [part[torch.randperm(len(part), generator=generator)] for part in parts]
        return -model.score(model.begin(count=len(flat)), torch.stack(parts, 1)).mean()

    descend(model, loss, steps)
    return {"divergence": divergence(model, WORLD)}


def come_as_often(found: Figures) -> Finding:
    """In every seed, to 0.1 nats."""
    apart = found("divergence")
    return Finding.of(f"KL {listed(apart, '.3f')} nats", max(apart) < 0.1)


@quick(seed=[0], steps=[60])
@null(own=[False])
@measured(own=[True], seed=range(3), steps=[600])
def recalled(own: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of stored scenes whose triple comes back by their index; null: one index for all."""
    generator, model = Generator().manual_seed(seed), TensorBrain(WORLD.concepts, scenes=SCENES, seed=seed)
    _, triples = WORLD.draw(SCENES, generator)
    which = torch.arange(SCENES) if own else torch.zeros(SCENES, dtype=torch.int64)
    descend(model, lambda step: -model.score(model.begin(scenes=which), triples).mean(), steps)
    return {"right": (model.tell(model.begin(scenes=which)) == triples).all(1).double().mean().item()}


def are_recalled(found: Figures) -> Finding:
    """95% in every seed."""
    right = found("right")
    return Finding.of(f"triples of {SCENES} scenes recalled {listed(right, '.1%')}", min(right) >= 0.95)
