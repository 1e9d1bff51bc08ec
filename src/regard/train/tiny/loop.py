"""The training loop: stages in order, every step logged, stopped and resumed at any step with the same result.

The clock of a run goes from 0 to 1: the larger of tokens seen over `budget` and, where `minutes` is given, minutes
used over `minutes`. With a budget in tokens alone, a run that was killed and resumed equals one that was not, bit for
bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.core.files import write_whole
from regard.tasks import Task
from regard.train.checkpoint import load_checkpoint, save_checkpoint
from regard.train.tiny.stages import Stage

Sources = Callable[[Stage], Mapping[str, Task]]
"""The sources a stage's mixture names, set up for that stage."""

WARM_UP = 50  # steps from a rate of nothing to the stage's, once, at the beginning of the run
HORIZON = 0.9  # the running accuracy forgets with this factor a step


@dataclass(frozen=True)
class Budget:
    """How long to train: `tokens` seen or `minutes` used, whichever comes first (None: no such limit)."""

    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [limit for limit in (self.tokens, self.minutes) if limit is not None]
        if not given or min(given) <= 0:
            raise wrong("budget", f"tokens {self.tokens} and minutes {self.minutes}", "at least one of them, above 0")

    def clock(self, tokens: int, seconds: float) -> float:
        """How much of the budget is used, from 0 to 1."""
        by_tokens = tokens / self.tokens if self.tokens else 0.0
        by_time = seconds / 60 / self.minutes if self.minutes else 0.0
        return min(1.0, max(by_tokens, by_time))


@dataclass
class Progress:
    """Where a run stands. `began` and `ends` are the current stage's part of the clock."""

    stage: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    began: float = 0.0
    ends: float = 0.0
    accuracy: float = 0.0


@dataclass
class Trainer:
    """Trains a causal language model through stages.

    model: Hugging Face causal model; stages, sources: what to train on; budget: how long.
    folder: where `checkpoint.pt` and `log.jsonl` are kept; a run with a checkpoint there goes on from it.
    every: seconds between checkpoints; report: called after each step with the progress and that step's figures.
    """

    model: Any
    stages: Sequence[Stage]
    sources: Sources
    budget: Budget
    folder: Path
    seed: int = 0
    every: float = 60.0
    report: Callable[[Progress, dict[str, Any]], None] = lambda progress, figures: None
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.generator = Generator().manual_seed(self.seed)
        self.optimisers = make_optimisers(self.model)
        self.recipe = repr((tuple(self.stages), self.seed, sum(p.numel() for p in self.model.parameters())))
        self.checkpoint, self.log = self.folder / "checkpoint.pt", self.folder / "log.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(self, steps: int | None = None) -> Progress:
        """Trains to the end of the budget, or for so many `steps`; writes a checkpoint whenever it returns."""
        started = saved = time.monotonic()
        used = self.progress.seconds
        done = 0
        while self._enter_stage() and (steps is None or done < steps):
            self._step()
            done += 1
            self.progress.seconds = used + time.monotonic() - started
            if time.monotonic() - saved > self.every:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.progress

    def save(self) -> None:
        """Writes everything that the rest of the run depends on."""
        state = {
            "recipe": self.recipe,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(),
            "progress": asdict(self.progress),
        }
        save_checkpoint(self.checkpoint, state)

    def _resume(self) -> None:
        if (state := load_checkpoint(self.checkpoint, self.recipe)) is None:
            self.log.unlink(missing_ok=True)
            return
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.generator.set_state(state["generator"])
        self.progress = Progress(**state["progress"])
        self._cut_log()
        if self.progress.stage < len(self.stages):
            self._set_up_stage()

    def _cut_log(self) -> None:
        """Drops the lines of steps after the checkpoint: they will be taken again."""
        lines = self.log.read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= self.progress.step]
        write_whole(self.log, lambda draft: draft.write_text("".join(kept)))

    def _clock(self) -> float:
        return self.budget.clock(self.progress.tokens, self.progress.seconds)

    def _enter_stage(self) -> bool:
        """Goes to the stage that the next step belongs to; False when the run is over."""
        now = self._clock()
        if self.progress.ends == 0.0:
            self._begin(0)
        while self.progress.stage < len(self.stages) and self._stage_is_over(now):
            self._begin(self.progress.stage + 1)
        return self.progress.stage < len(self.stages) and now < 1.0

    def _stage_is_over(self, now: float) -> bool:
        until = self.stages[self.progress.stage].until
        return now >= self.progress.ends or (until is not None and self.progress.accuracy >= until)

    def _begin(self, index: int) -> None:
        """Gives the stage its share of what is left of the clock."""
        now = self._clock()
        self.progress.stage, self.progress.accuracy, self.progress.began = index, 0.0, now
        if index < len(self.stages):
            rest = sum(stage.share for stage in self.stages[index:])
            self.progress.ends = now + (1.0 - now) * self.stages[index].share / rest
            self._set_up_stage()

    def _set_up_stage(self) -> None:
        self.stage = self.stages[self.progress.stage]
        self.tasks = self.sources(self.stage)
        if missing := set(self.stage.mixture) - set(self.tasks):
            raise wrong(f"Stage {self.stage.name!r}: mixture", f"{sorted(missing)}", f"names of {sorted(self.tasks)}")

    def _step(self) -> None:
        ids, answers = self._batch()
        rate = self._set_rate()
        loss, accuracy = self._learn(ids.to(self.device), answers.to(self.device))
        progress = self.progress
        progress.step += 1
        progress.tokens += ids.numel()
        progress.accuracy = HORIZON * progress.accuracy + (1 - HORIZON) * accuracy
        self._log({"length": ids.shape[1], "loss": loss, "accuracy": accuracy, "rate": rate})

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Rows of one length, each drawn from a source of the mixture."""
        length = self._draw(self.stage.lengths)
        examples = [
            self.tasks[self._draw(self.stage.mixture)].sample(self.generator, length)
            for _ in range(self.stage.tokens // length)
        ]
        return torch.stack([e.ids for e in examples]), torch.stack([e.answers for e in examples])

    def _draw(self, shares: Mapping[Any, float]) -> Any:
        weights = torch.tensor(list(shares.values()), dtype=torch.float64)
        return list(shares)[int(torch.multinomial(weights, 1, generator=self.generator))]

    def _set_rate(self) -> float:
        start, end = self.stage.rate
        part = (self._clock() - self.progress.began) / max(self.progress.ends - self.progress.began, 1e-9)
        rate = (start + (end - start) * min(part, 1.0)) * min(1.0, (self.progress.step + 1) / WARM_UP)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        return rate

    def _learn(self, ids: Tensor, answers: Tensor) -> tuple[float, float]:
        """One step on the answers alone; logits are computed for them only."""
        targets = ids[:, 1:][answers[:, 1:]]
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            logits = self.model.lm_head(hidden[answers[:, 1:]]).float()
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, error_if_nonfinite=True)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return loss.item(), (logits.argmax(-1) == targets).float().mean().item()

    def _log(self, figures: dict[str, Any]) -> None:
        progress = self.progress
        where = {"stage": self.stage.name, "step": progress.step, "tokens": progress.tokens}
        line = where | {"seconds": round(progress.seconds, 1), "running accuracy": progress.accuracy} | figures
        with self.log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        self.report(progress, line)


def make_optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms (Jordan et al. 2024; Liu et al. 2025).

    Muon's steps have AdamW's size here, so one learning rate serves both.
    """
    if not hasattr(torch.optim, "Muon"):
        raise wrong("torch", torch.__version__, "2.9 or later, for torch.optim.Muon")
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(inside, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)]
