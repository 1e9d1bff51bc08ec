"""The contract of an objective: a loss for a language model's batch, and what is done to model and batch for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

from regard.core.dial import Dialled
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.networks import LM
from regard.train.fit import Recipe, fit


@dataclass(frozen=True)
class Batch:
    """Texts that a causal language model learns.

    Args:
        ids: ``(b, n)``. learned: ``(b, n)`` bool, the tokens that are predicted, None for all but the first.
        mask: ``(b, n)`` bool, False = padding, on either side; None for none. marks: ``(b, n)`` by name: which tokens
            an objective has to know of, such as those of a user, or numbers of them.
    """

    ids: Tensor
    learned: Tensor | None = None
    mask: Tensor | None = None
    marks: dict[str, Tensor] | None = None

    @property
    def real(self) -> Tensor:
        """``(b, n)`` bool: which tokens are no padding."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def targets(self) -> Tensor:
        """``(b, n)`` bool: the tokens that are predicted; none is the first of its text."""
        later = self.real & (self.real.cumsum(1) > 1)
        return later if self.learned is None else self.learned & later

    def marked(self, name: str) -> Tensor:
        """The tokens of one of the marks.

        Raises:
            ValueError: it has none of this name.
        """
        if name not in (self.marks or {}):
            raise wrong("batch", f"no marks {name!r}", f"marks={{{name!r}: (b, n) bool}}")
        return (self.marks or {})[name]

    def rows(self, rows: Tensor) -> Batch:
        """Some of the texts."""
        picked = {name: held[rows] for name, held in (self.marks or {}).items()}
        learned, mask = (None if held is None else held[rows] for held in (self.learned, self.mask))
        return replace(self, ids=self.ids[rows], learned=learned, mask=mask, marks=picked or None)


class Objective(Dialled):
    """The base of every objective: what `tune` makes smaller, step by step.

    A subclass writes `loss`, of which the plain one is `cross_entropy`. All that is random in it comes from the
    generator, what it attaches to the model is gone when it returns, and nothing is remembered from step to step: so
    that a run which was stopped goes on to the same weights. Idle it is plain training.
    """

    called: ClassVar[str] = "an objective"

    def loss(self, model: PreTrainedModel, batch: Batch, generator: Generator) -> Tensor:
        """What is to become smaller, a number with gradients."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list[Sample]:
        """Small instances that the laws examine: see `laws.objective`."""
        raise NotImplementedError

    def __call__(self, model: PreTrainedModel, batch: Batch, generator: Generator) -> Tensor:
        """The loss, and the plain one where it is idle."""
        return cross_entropy(model, batch) if self.idle else self.loss(model, batch, generator)


def run(model: PreTrainedModel | LM, batch: Batch, **options: Any) -> Any:
    """What the model says of a batch, positions counted without padding; of an `LM` the logits alone."""
    if isinstance(model, LM):
        return SimpleNamespace(logits=model(batch.ids, batch.mask, **options))
    given: dict[str, Any] = {"input_ids": batch.ids, "use_cache": False}
    if batch.mask is not None:
        given["attention_mask"] = batch.mask.long()
        given["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
    return model(**given, **options)


def cross_entropy(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The plain loss: the mean over the targets of −log p, each from the tokens before it."""
    return entropy_of(run(model, batch).logits, batch)


def entropy_of(logits: Tensor, batch: Batch) -> Tensor:
    """The same of logits ``(b, n, vocabulary)`` that are at hand.

    Raises:
        ValueError: nothing is to be learned.
    """
    targets = batch.targets[:, 1:]
    if not bool(targets.any()):
        raise wrong("batch", "no token that is to be predicted", "at least one, behind the first of its text")
    return F.cross_entropy(logits[:, :-1][targets].to(accumulate_dtype(logits.dtype)), batch.ids[:, 1:][targets])


def tune(
    model: Any,
    objective: Objective,
    batches: Callable[[Generator], Batch],
    recipe: Recipe,
    folder: Path | None = None,
    device: str = "cpu",
    report: Callable[[int, float], None] = lambda step, value: None,
) -> Any:
    """Trains a Transformers model, or an `LM` where the objective takes one, in place on an objective; returns it.

    Args:
        batches: gives the batch of a step, drawn by its generator. recipe, folder, device, report: see `train.fit.fit`;
            from a folder a run that was stopped goes on.

    Raises:
        ValueError, RuntimeError: as `train.fit.fit`, and what the objective refuses.
    """

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        batch = batches(generator)
        return objective(getattr(ready, "module", ready), batch, generator)  # pyright: ignore[reportArgumentType]

    return fit(model.to(device), loss, recipe, folder, device, report=report)
