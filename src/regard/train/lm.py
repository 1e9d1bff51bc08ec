"""A language model of regard's own, trained on a task until its folder can be loaded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.networks import LM, Config
from regard.tasks import Task, batch
from regard.train.fit import Recipe, fit


def train_lm(
    config: Config,
    task: Task,
    length: int,
    size: int,
    recipe: Recipe,
    folder: Path,
    device: str = "cpu",
    report: Callable[[int, float], None] = lambda step, value: None,
) -> LM:
    """Trains a model on batches of ``size`` examples of ``length`` tokens, on their answers alone.

    ``folder`` gets the checkpoint and the log as it goes, from which a second call with the same arguments goes on, and
    at the end what `LM.from_pretrained` reads.

    Raises:
        ValueError: the folder holds a run of another recipe or model. RuntimeError: a loss that is not finite.
    """
    model = LM(config, seed=recipe.seed).to(device)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        logits, targets = predicted(ready, task, length, size, generator, device)
        return F.cross_entropy(logits, targets)

    fit(model, loss, recipe, folder, device, report=report)
    model.save_pretrained(folder)
    return model


def predicted(
    model: nn.Module, task: Task, length: int, size: int, generator: Generator, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """``(logits (answers, vocabulary), targets (answers,))`` of a batch."""
    ids, answers = (x.to(device) for x in batch(task, generator, size, length))
    return model(ids[:, :-1])[answers[:, 1:]], ids[:, 1:][answers[:, 1:]]


@torch.no_grad()
def accuracy_of(model: nn.Module, task: Task, length: int, count: int, seed: int = 7_919) -> tuple[float, float]:
    """``(share of right answers, nats per answer)`` on ``count`` examples from a seed of their own."""
    device = str(next(model.parameters()).device)
    logits, targets = predicted(model.eval(), task, length, count, Generator().manual_seed(seed), device)
    return (logits.argmax(-1) == targets).float().mean().item(), F.cross_entropy(logits, targets).item()
