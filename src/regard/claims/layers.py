"""Whole layers as one matrix: attribution, ranks, and exact attention without a matrix in memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.analysis.implicit_attention import attribution, block_rank, implicit_attention, reproduced
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.kernels import tiled
from regard.networks import LM, Config
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)
KINDS = ("gla", "retnet", "mamba2", "mamba", "rwkv6", "gated_deltanet", "deltanet", "softmax")


@measured(kind=KINDS)
def matrix(kind: str) -> dict[str, float]:
    """How far a layer's matrix, times its values, is from the layer, and the largest number above the diagonal."""
    torch.manual_seed(0)
    layer: Any = Config(vocabulary=8, width=24, heads=4, layers=kind).attention(kind).double()
    x = torch.randn(2, 19, 24, dtype=torch.float64)
    with torch.no_grad():
        apart = (reproduced(layer, x) - layer(x, CAUSAL)).abs().max().item()
        return {"apart": apart, "above": implicit_attention(layer, x).triu(1).abs().max().item()}


def is_the_layer(found: Figures) -> Finding:
    """To 1e-9, nothing above the diagonal."""
    apart, above = max(found("apart")), max(found("above"))
    figure = f"equal to {apart:.0e} for {len(found.rows)} mechanisms with their hosts, {above:.0g} above the diagonal"
    return Finding.of(figure, apart < 1e-9, above == 0)


@measured(kind=("gla", "retnet", "mamba2", "deltanet", "gated_deltanet", "softmax"))
def ranks(kind: str) -> dict[str, int]:
    """The largest rank of what passes from past to future, of states of 6 channels and 48 tokens."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, 2, 48, 6, dtype=torch.float64) for _ in range(2))
    mechanism = regard.build(kind, **({"heads": 2} if kind == "mamba2" else {})).double()
    signals = {}
    for name, spec in mechanism.signals.items():
        noise = torch.randn(1, 2, 48, *spec.size(6, 6), dtype=torch.float64)
        signals[name] = -noise.abs() / 20 if spec.high == 0 else noise.sigmoid()
    weights = mechanism.weights(q, F.normalize(k, dim=-1), CAUSAL, **signals)
    return {"rank": max(int(block_rank(weights, cut).max()) for cut in (12, 24, 36))}


def is_that_of_the_state(found: Figures) -> Finding:
    """At most 6, of softmax attention more."""
    own = {row["kind"]: row["rank"] for row in found.rows}
    softmax = own.pop("softmax")
    figure = f"rank at most {max(own.values())} of states of 6 channels for {len(own)} mechanisms, softmax {softmax}"
    return Finding.of(figure, max(own.values()) <= 6, softmax > 6)


WORDS, LETTERS, LENGTH = ((0, 1), (1, 2), (2, 3), (3, 0)), 8, 24


def texts(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """``(ids (count, 24), which word each holds)``: one of four words of two letters among letters; no other word."""
    ids = torch.randint(LETTERS, (count, LENGTH + 2), generator=generator)
    for first, second in WORDS:
        ids[:, 1:][(ids[:, :-1] == first) & (ids[:, 1:] == second)] = LETTERS - 1
    kinds = torch.randint(len(WORDS), (count,), generator=generator)
    places = torch.randint(LENGTH - 1, (count, 1), generator=generator) + torch.arange(4)
    return ids.scatter(1, places, F.pad(torch.tensor(WORDS), (1, 1), value=LETTERS - 1)[kinds])[:, 1:-1], kinds


def deletion(model: nn.Module, ids: Tensor, kinds: Tensor, order: Tensor, generator: Generator) -> float:
    """The mean probability of the right word while tokens are replaced by letters of no word, in this order."""
    changed, found = ids.clone(), []
    for step in range(LENGTH + 1):
        with torch.no_grad():
            found.append(model(changed)[:, -1, : len(WORDS)].softmax(-1).gather(1, kinds[:, None]).mean().item())
        if step < LENGTH:
            other = torch.randint(len(WORDS), LETTERS, (len(ids), 1), generator=generator)
            changed.scatter_(1, order[:, step : step + 1], other)
    return sum(found) / len(found)


@measured(seed=range(3), steps=[500])
def deletions(seed: int, steps: int) -> dict[str, float]:
    """Areas under deletion of a trained Mamba that finds a word: by whole matrices, the mechanism alone, at random."""

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        ids, kinds = texts(64, generator)
        return F.cross_entropy(ready(ids)[:, -1, : len(WORDS)], kinds)

    model = fit(LM(Config(LETTERS, 48, "mamba*2", heads=4), seed=seed), loss, Recipe(steps, seed=seed))
    ids, kinds = texts(256, torch.Generator().manual_seed(99))

    def score() -> Tensor:
        return model(ids)[:, -1].gather(1, kinds[:, None]).sum()

    relevance = {name: attribution(model, score, name == "whole")[:, -1] for name in ("whole", "mechanism")}
    relevance["random"] = torch.rand(ids.shape, generator=torch.Generator().manual_seed(5))
    return {
        name: deletion(model, ids, kinds, found.argsort(1, descending=True), torch.Generator().manual_seed(6))
        for name, found in relevance.items()
    }


def tells_what_matters(found: Figures) -> Finding:
    """In every seed the whole matrices lose the word sooner than the mechanism alone, and that sooner than chance."""
    whole, mechanism, chance = (found(name) for name in ("whole", "mechanism", "random"))
    shown = "; ".join(listed(row, ".2f") for row in (whole, mechanism, chance))
    figure = f"area under deletion by the whole layer, the mechanism alone, in random order: {shown}"
    return Finding.of(figure, all(a < b < c for a, b, c in zip(whole, mechanism, chance, strict=True)))


@measured(causal=(False, True))
def tiles(causal: bool) -> dict[str, float]:
    """The largest difference of tiled attention, forward and gradients, from the textbook's, 523 tokens, float32."""
    torch.manual_seed(3)
    leaves = [torch.randn(2, 3, 523, 17, requires_grad=True) for _ in range(3)]
    q, k, v = leaves
    upstream, scores = torch.randn(2, 3, 523, 17), q @ k.mT / 17**0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(523, 523, dtype=torch.bool).tril(), -1e30)
    outs = (tiled.attend(q, k, v, Layout(causal=causal)), scores.softmax(-1) @ v)
    found = [[out, *torch.autograd.grad(out, leaves, upstream)] for out in outs]
    return {"apart": max((a - b).abs().max().item() for a, b in zip(*found, strict=True))}


SCRIPT = """
import sys, torch
from pathlib import Path
from regard.kernels import tiled
def inputs(n):
    return [torch.randn(1, 1, n, 64, requires_grad=sys.argv[1] == "step") for _ in range(3)]
def run(leaves):
    out = tiled.attend(*leaves)
    return torch.autograd.grad(out.sum(), leaves) if out.requires_grad else out
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
torch.set_num_threads(1)
run(inputs(700))
leaves = inputs(16384)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
before = resident("VmRSS")
run(leaves)
print(resident("VmHWM") - before)
"""


@measured(what=("forward", "step"))
def peak(what: str) -> dict[str, int]:
    """Bytes beyond the inputs at 16,384 tokens, in a process of its own on Linux, forward or with gradients."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, what], check=True, capture_output=True, text=True)
    return {"bytes": int(done.stdout)}


def is_a_thirtieth(found: Figures) -> Finding:
    """Less than a thirtieth of the dense matrix of one head."""
    forward, step = (found.one("bytes", what=what) for what in ("forward", "step"))
    figure = (
        f"at 16,384 tokens {forward / 2**20:.1f} MiB forward, {step / 2**20:.1f} MiB with gradients; the matrix 1 GiB"
    )
    return Finding.of(figure, 0 < forward < 2**30 / 30, 0 < step < 2**30 / 30)
