"""A training loop for any model and any loss: Accelerate around PyTorch, stopped and resumed at any step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.core.files import write_whole
from regard.train.checkpoint import load_checkpoint, save_checkpoint

Loss = Callable[[nn.Module, Generator], Tensor]
"""The loss of one step; everything random in it comes from the generator, which is seeded by run and step."""


@dataclass(frozen=True)
class Step:
    """A finished step of training: its number from 1, its loss, and the gradient's norm before it was clipped."""

    number: int
    loss: float
    norm: float


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Args:
        steps: optimiser steps. rate: of learning, at its highest. warm_up: share of the steps over which it rises from
            zero; then it falls along a half cosine to a tenth. decay: of the matrices. clip: of the gradient, at most.
        seed: of the data. precision: "no", "bf16" or "fp16", as Accelerate takes it.

    Raises:
        ValueError: no steps, or a rate that is not positive.
    """

    steps: int
    rate: float = 3e-3
    warm_up: float = 0.1
    decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    precision: str = "no"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise wrong("steps", str(self.steps), "at least 1")
        if not self.rate > 0:
            raise wrong("rate", str(self.rate), "above 0")

    def rate_at(self, step: int) -> float:
        """The learning rate of the step, counted from 0."""
        rising = max(1, round(self.warm_up * self.steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        part = (step - rising) / max(1, self.steps - rising)
        return self.rate * (0.55 + 0.45 * math.cos(math.pi * part))

    def generator(self, step: int) -> Generator:
        """What draws the data of a step: so that a resumed run sees what an unbroken one does."""
        return Generator().manual_seed(self.seed * 1_000_003 + step)


def fit(
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    folder: Path | None = None,
    device: str = "cpu",
    every: float = 30.0,
    report: Callable[[int, float], None] = lambda step, value: None,
    until: Callable[[Step], bool] = lambda step: False,
) -> nn.Module:
    """Trains the model in place by AdamW and returns it.

    With a folder, a checkpoint is kept there and ``log.jsonl`` grows by a line each step; a run that was killed goes
    on from the checkpoint and ends, on a CPU, with the same weights bit for bit.

    Args:
        folder: of checkpoint and log, None for none. device: "cpu" or "cuda"; several GPUs by ``accelerate launch``.
        every: seconds between checkpoints. report: told the step (from 1) and its loss. until: given each finished
            step; training ends where it says so.

    Raises:
        ValueError: a checkpoint of another recipe or model. RuntimeError: a loss or a gradient that is not finite;
            the model is as it was before that step.
    """
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=recipe.precision)
    optimiser = torch.optim.AdamW(groups(model, recipe.decay), lr=recipe.rate, betas=(0.9, 0.95))
    identity = repr((recipe, sum(parameter.numel() for parameter in model.parameters())))
    begun = 0
    if folder is not None:
        begun = resume(model, optimiser, folder, identity)
    ready, optimiser = accelerator.prepare(model, optimiser)
    ready.train()
    saved = time.monotonic()
    for step in range(begun, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        with accelerator.autocast():
            value = loss(ready, recipe.generator(step))
        if not torch.isfinite(value):
            came = f"{recipe.rate}, with which the loss of step {step + 1} is {value.item()}"
            raise wrong("rate", came, "a lower one", RuntimeError)
        accelerator.backward(value)
        norm = float(accelerator.clip_grad_norm_(ready.parameters(), recipe.clip) or 0.0)
        if not math.isfinite(norm) and accelerator.scaler is None:  # which leaves such steps out and goes on
            came = f"{recipe.rate}, with which the gradient of step {step + 1} has the norm {norm}"
            raise wrong("rate", came, "a lower one", RuntimeError)
        optimiser.step()
        optimiser.zero_grad()
        report(step + 1, value.item())
        if folder is not None and accelerator.is_main_process:
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 1, "loss": value.item(), "rate": recipe.rate_at(step)}) + "\n")
            if time.monotonic() - saved > every or step + 1 == recipe.steps:
                keep(accelerator.unwrap_model(ready), optimiser, folder, identity, step + 1)
                saved = time.monotonic()
        if until(Step(step + 1, value.item(), norm)):
            break
    return model.eval()


def groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def keep(model: nn.Module, optimiser: Any, folder: Path, identity: str, step: int) -> None:
    """Writes everything that the rest of the run depends on."""
    state = {"recipe": identity, "model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
    save_checkpoint(folder / "checkpoint.pt", state)


def resume(model: nn.Module, optimiser: Any, folder: Path, identity: str) -> int:
    """The step to go on from, 0 without a checkpoint; lines of the log that come after it are dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    log, state = folder / "log.jsonl", load_checkpoint(folder / "checkpoint.pt", identity)
    if state is None:
        log.unlink(missing_ok=True)
        return 0
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state["step"]]
    write_whole(log, lambda draft: draft.write_text("".join(whole)))
    return state["step"]
