"""A step of SmolLM2-135M under `regard.compress` beside the model as it is: `python benchmarks/decoding.py --markdown`.

Whole steps of one token with a cache of random keys and values, in turn, one thread, by the processor's time: with room
for all of 126, 512 and 4,096 tokens, and with kv heads that hold 126, 512 and 4,096 of 4,096; then attention alone, of
a model that is little else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Annotated, Any

import torch
import typer
from transformers.cache_utils import DynamicCache

from regard.claims.cache_time import FULL, LENGTHS, Shares, decoding
from regard.experiments.timing import Ratio
from regard.hosts import caches
from regard.hosts.compress import compress
from regard.hosts.load import load
from regard.policies import Full

Step = Callable[[], object]


def filled(model: Any, n: int) -> DynamicCache:
    """A cache of so many random tokens."""
    config, draw = model.config, torch.Generator().manual_seed(1)
    cache, shape = DynamicCache(config=config), (1, config.num_key_value_heads, n, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, generator=draw, dtype=model.dtype) for _ in range(2)), layer)
    return cache


def stepping(model: Any, n: int) -> Step:
    """One more token after ``n`` random ones."""
    cache = filled(model, n)
    model(input_ids=torch.tensor([[5, 6]]), **caches.given(model, cache))
    return lambda: model(input_ids=torch.tensor([[5]]), **caches.given(model, cache))


def seconds(step: Step) -> float:
    """Of the processor."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def interleaved(work: Step, baseline: Step, rounds: int) -> Ratio:
    """Both in turn, after three to warm up."""
    pairs = [(seconds(work), seconds(baseline)) for _ in range(rounds + 3)][3:]
    return Ratio.of(*zip(*pairs, strict=True))


def main(
    rounds: Annotated[int, typer.Option(help="Pairs of steps.")] = 25,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table.")] = False,
) -> None:
    """Whole steps with a cache that may forget, beside those without."""
    torch.set_num_threads(1)
    plain, _ = load("smollm2")
    policies = {n: (Full(), n, 2 * FULL) for n in LENGTHS} | {"heads of their own": (Shares(), FULL, sum(LENGTHS) // 3)}
    if markdown:
        print("| cache | ms a step | ms without | ratio | quartiles |\n|---|---|---|---|---|")
    with torch.no_grad():
        for name, (policy, n, budget) in policies.items():
            with compress(deepcopy(plain), policy, budget) as session:
                found = interleaved(stepping(session.model, n), stepping(plain, n), rounds)
            label = f"all of {name:,} tokens" if isinstance(name, int) else f"{name}: {', '.join(map(str, LENGTHS))}"
            row = f"{1e3 * found.seconds:.1f}", f"{1e3 * found.baseline:.1f}", f"{found.median:.2f}"
            print("|" if markdown else "", " | ".join([label, *row, f"{found.low:.2f}–{found.high:.2f}"]), "|")
    found = decoding.measure()
    for name, kept in (("ragged", "heads of their own"), ("full", "all of 4,096 tokens")):
        print(f"\nAttention alone, {kept}: {found[name]:.2f} ({found[f'{name}_low']:.2f}–{found[f'{name}_high']:.2f})")


if __name__ == "__main__":
    typer.run(main)
