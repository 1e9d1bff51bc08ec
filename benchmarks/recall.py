"""How many pairs a state of so many numbers recalls: models trained alike, with states of several sizes.

    python benchmarks/recall.py FOLDER     # goes on where it was stopped; writes the table of docs/recall.md

Two layers of width 64 and two heads of values of 32, a short convolution over the embeddings (`PatternNetwork`), the
inner width such that all have the parameters of the model with softmax; associative recall of 8 pairs in 64 tokens;
1,000 steps of 32 sequences; three seeds each.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
import typer

from regard.core.cost import Shape
from regard.core.layout import Layout
from regard.networks import BenchmarkNetwork, Config
from regard.tasks.associative import AssociativeRecall
from regard.train.fit import Recipe, fit
from regard.train.lm import accuracy_of, predicted

PAGE = Path(__file__).parents[1] / "docs" / "recall.md"
MARKS = "<!-- table -->", "<!-- end of table -->"
TASK, LENGTH, STEPS, BATCH, SEEDS = AssociativeRecall(8, 64), 64, 1000, 32, 3
STUDENT = 4.303
"""Half width of a 95% interval in standard errors, for three seeds."""


def cells() -> dict[str, Config]:
    """Name → sizes of the model."""

    def sized(layers: str, size: int) -> Config:
        return Config(64, 64, layers, 2, head_dim=size, value_dim=32)

    sizes = {"linear": (4, 16), "deltanet": (4, 8, 16)}
    found = {f"`{kind}`, d = {d}": sized(f"{kind}*2", d) for kind, several in sizes.items() for d in several}
    for d in (2, 8):
        for window in (2, 16):
            found[f"`based`, d = {d}, with windows of {window}"] = sized(f"based, window(size={window})", d)
    return found | {"`softmax`": sized("softmax*2", 32)}


def made(config: Config, seed: int) -> BenchmarkNetwork:
    return BenchmarkNetwork(config, "causal self", seed=seed)


def state_of(model: BenchmarkNetwork) -> int:
    """Numbers that all layers' mechanisms keep after the sequence."""
    total = 0
    for layer in model.layers:
        p = layer.attention.projection
        shape = Shape(LENGTH, LENGTH, 1, p.heads, p.kv_heads, p.head_dim, p.value_dim)
        total += layer.attention.mechanism.cost(shape, Layout(causal=True)).state_bytes // 4
    return total


def measure(config: Config, seed: int) -> dict[str, float]:
    """Accuracy on held-out sequences, and the size of the state."""
    plain = made(Config(64, 64, "softmax*2", 2, head_dim=32, value_dim=32), 0).parameter_count
    model = made(config.fitted(plain, lambda sizes: made(sizes, 0).parameter_count), seed)

    def loss(ready: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        logits, targets = predicted(ready, TASK, LENGTH, BATCH, generator)
        return F.cross_entropy(logits, targets)

    fit(model, loss, Recipe(STEPS, 3e-3, seed=seed))
    return {"accuracy": accuracy_of(model, TASK, LENGTH, 256)[0], "state": state_of(model)}


def main(folder: Path, threads: int = 1) -> None:
    """Trains what is missing, then writes the table."""
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["| mechanism | numbers in the state | recalled | 95% interval over 3 seeds |", "| --- | --- | --- | --- |"]
    for name, config in cells().items():
        found = []
        for seed in range(SEEDS):
            file = folder / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(measure(config, seed)))
            found.append(json.loads(file.read_text()))
            print(name, seed, found[-1], flush=True)
        values = [one["accuracy"] for one in found]
        half = STUDENT * stdev(values) / SEEDS**0.5
        low, high = max(0.0, mean(values) - half), min(1.0, mean(values) + half)
        lines.append(f"| {name} | {found[0]['state']:,} | {mean(values):.1%} | {low:.1%} to {high:.1%} |")
    block = "\n".join([MARKS[0], *lines, MARKS[1]])
    PAGE.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: block, PAGE.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    typer.run(main)
