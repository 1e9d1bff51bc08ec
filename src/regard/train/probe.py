"""Probing: what a frozen model's features tell, by a pool of them and a linear map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.networks.latents.base import Latents
from regard.train.fit import Recipe, fit


class Probe(nn.Module):
    """A pool of features, normalised over the batch, then a linear map to classes.

    Shapes: features ``(b, n, channels)`` -> scores ``(b, classes)``.

    Args:
        pool: of the features; None for their mean. channels: of the features. classes: how many.
    """

    def __init__(self, pool: Latents | None, channels: int, classes: int) -> None:
        super().__init__()
        if pool is not None and pool.channels != channels:
            raise wrong("pool", f"one of {pool.channels} channels", f"one of the features' {channels}")
        self.pool = pool
        size = channels if pool is None else pool.latents * pool.width
        self.norm = nn.BatchNorm1d(size, eps=1e-6, affine=False)
        self.classes = nn.Linear(size, classes)

    def forward(self, features: Tensor, key_mask: Tensor | None = None) -> Tensor:
        if self.pool is not None:
            pooled = self.pool(features, key_mask).flatten(1)
        elif key_mask is None:
            pooled = features.mean(1)
        else:
            pooled = (features * key_mask[..., None]).sum(1) / key_mask.sum(1, keepdim=True).clamp(min=1)
        return self.classes(self.norm(pooled))


def probe(
    pool: Latents | None,
    features: Tensor,
    labels: Tensor,
    recipe: Recipe | None = None,
    key_mask: Tensor | None = None,
    size: int = 64,
) -> Probe:
    """A probe trained on frozen features: ``probe(regard.pool("ep", channels=384), features, labels)``.

    Args:
        pool: of the features, trained with the map; None for their mean. features: ``(examples, n, channels)``.
            labels: ``(examples,)`` int64. recipe: of the training. key_mask: ``(examples, n)`` bool, False = padding.
        size: examples in a step.

    Raises:
        ValueError: as many labels as examples are wanted, or a pool of other channels.
    """
    if labels.shape != features.shape[:1]:
        raise wrong("labels", f"shape {tuple(labels.shape)}", f"({features.shape[0]},): one for each example")
    made = Probe(pool, features.shape[2], int(labels.max()) + 1)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(labels), (size,), generator=generator)
        return F.cross_entropy(ready(features[rows], None if key_mask is None else key_mask[rows]), labels[rows])

    fit(made, loss, recipe or Recipe(300, rate=3e-3))
    return made
