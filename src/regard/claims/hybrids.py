"""Networks of recurrences and attention, small: their forms are one, and what they gain beside their parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.source import VOCABULARY, held_out_loss, trained
from regard.core.layout import Layout
from regard.networks.hymba import HymbaLM
from regard.networks.lm import LM, Config
from regard.networks.mega import MegaBlock, MegaLM, MovingAverage
from regard.networks.sha_rnn import ShaRNN
from regard.networks.simba import EinFFT, Simba
from regard.tasks.associative import AssociativeRecall
from regard.train.fit import Recipe, Step, fit
from regard.train.lm import accuracy_of, predicted

CAUSAL = Layout(causal=True)


def in_turn(work: Callable[[], Any], baseline: Callable[[], Any], pairs: int = 15) -> float:
    """The median of the processor time of ``work`` over that of ``baseline``, one after the other, once to warm up."""
    ratios = []
    for _ in range(pairs + 1):
        times = []
        for run in (work, baseline):
            begun = time.process_time()
            run()
            times.append(time.process_time() - begun)
        ratios.append(times[0] / times[1])
    return median(ratios[1:])


@measured()
def mega_average() -> dict[str, float]:
    """How far the moving average by Fourier transforms in float32 is from its recurrence, over 1,024 tokens."""
    torch.manual_seed(0)
    average, x = MovingAverage(8, 16), torch.randn(2, 1024, 8)
    written, kept, read = average.rates
    h, outs = torch.zeros(2, 8, 16), []
    with torch.no_grad():
        for t in range(1024):
            h = kept * h + written * x[:, t, :, None]
            outs.append(F.silu((read * h).sum(-1) + average.omega * x[:, t]))
        return {"apart": (average(x, CAUSAL) - torch.stack(outs, 1)).abs().max().item()}


@measured()
def mega_whole() -> dict[str, float]:
    """How far a block whose chunk is as long as the text is from one with attention to all of it, by its equations."""
    torch.manual_seed(0)
    block, x = MegaBlock(12, 20, 8, 24, 4, 96), torch.randn(2, 96, 12)
    a, n = block.attention, 96
    with torch.no_grad():
        normed = block.norms[0](x)
        u, q, k, v, r, own = a.parts(normed, a.average(normed, CAUSAL))
        apart = torch.arange(n)[:, None] - torch.arange(n)
        scores = (q @ k.mT * a.shared**-0.5 + a.bias[apart.clamp(min=0)]).masked_fill(apart < 0, -torch.inf)
        h = F.silu(own + a.out((scores.softmax(-1) @ v) * r))
        want = x + u * (h - x)
        want = want + block.network(block.norms[1](want))
        return {"apart": (block(x, CAUSAL) - want).abs().max().item()}


@measured()
def mega_doubling() -> dict[str, float]:
    """How many times as long 8,192 tokens take as 4,096, in chunks of 128, and 4,096 as 2,048."""
    torch.manual_seed(0)
    block, texts = MegaBlock(64, 128, 32, 128, 16, 128), {n: torch.randn(1, n, 64) for n in (2048, 4096, 8192)}
    with torch.no_grad():
        found = [
            in_turn(lambda n=n: block(texts[2 * n], CAUSAL), lambda n=n: block(texts[n], CAUSAL)) for n in (2048, 4096)
        ]
    return {"first": found[0], "second": found[1]}


def is_linear(found: Figures) -> Finding:
    """At most 2.2 times."""
    ratios = [found.one("first"), found.one("second")]
    return Finding.of(f"twice the tokens take {listed(ratios, '.2f')} times as long", max(ratios) <= 2.2)


@measured(kind=("mega", "transformer"), seed=range(2), steps=[400])
def mega_loss(kind: str, seed: int, steps: int) -> dict[str, float]:
    """Held-out nats a character of two layers after training, at equal parameters."""
    config = Config(VOCABULARY, 64, "softmax*2", heads=4)
    plain = LM(config, 0).parameter_count

    def made(sizes: Config, seed: int) -> LM:
        return MegaLM(sizes, 64, 32, 64, 16, seed) if kind == "mega" else LM(sizes, seed)

    model = made(config.fitted(plain, lambda sizes: made(sizes, 0).parameter_count), seed)
    return {"loss": held_out_loss(trained(model, seed, steps))}


def is_no_worse(found: Figures) -> Finding:
    """At most the transformer's."""
    mega, transformer = (found("loss", kind=kind) for kind in ("mega", "transformer"))
    figure = f"{listed(mega, '.3f')} nats a character, a transformer of as many parameters {listed(transformer, '.3f')}"
    return Finding.of(figure, mean(mega) <= mean(transformer))


@measured(attends=(True, False), seed=range(3), steps=[3000])
def sha_bits(attends: bool, seed: int, steps: int) -> dict[str, float]:
    """Held-out bits a character of four LSTM layers after training on windows of 128, with attention or without."""
    model = ShaRNN(Config(VOCABULARY, 64, "softmax*4", heads=1), memory=128, attends=attends, seed=seed)
    return {"bits": held_out_loss(trained(model, seed, steps, 128), 128, 256) / math.log(2)}


def attention_helps(found: Figures) -> Finding:
    """By at least 0.02 bits a character, on average."""
    attending, alone = (found("bits", attends=attends) for attends in (True, False))
    figure = f"{listed(attending, '.3f')} bits a character, without attention {listed(alone, '.3f')}"
    return Finding.of(figure, mean(attending) <= mean(alone) - 0.02)


@measured()
def sha_carried() -> dict[str, float]:
    """How far segments with a carried state are from the whole, in float64, and a token's time after 4,096 tokens over
    that after 512, with a memory of 256."""
    model: Any = ShaRNN(Config(31, 32, "softmax*4", heads=1), memory=256, seed=0).double().eval()
    ids = torch.randint(31, (1, 4096), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, outs, state = model(ids[:, :700]), [], model.start(1)
        for part in ids[:, :700].split(97, 1):
            out, state = model.extend(part, state)
            outs.append(out)
        states: list[Any] = [model.extend(ids[:, :n], model.start(1))[1] for n in (512, 4096)]
        one: Tensor = ids[:, :1]
        ratio = in_turn(lambda: model.extend(one, states[1]), lambda: model.extend(one, states[0]))
    return {"apart": (torch.cat(outs, 1) - whole).abs().max().item(), "ratio": ratio}


def is_exact(found: Figures) -> Finding:
    """To 1e-9, and within a quarter of the time."""
    apart, ratio = found.one("apart"), found.one("ratio")
    figure = f"segments equal to {apart:.0e}; a token after 4,096 takes {ratio:.2f} times as long as after 512"
    return Finding.of(figure, apart <= 1e-9, 0.75 < ratio < 1.25)


@measured()
def hymba_cache() -> dict[str, float]:
    """Bytes of the state after 8,192 tokens over those of softmax attention in as many layers, 32, by the formula."""
    config = Config(64, 64, "softmax*32", heads=4, kv_heads=1, inner=8)
    hymba, plain = HymbaLM(config, 1024, 128, 0), LM(config, 0)
    return {"share": hymba.state_bytes(8192) / plain.state_bytes(8192)}


def is_a_fifth(found: Figures) -> Finding:
    """At most."""
    share = found.one("share")
    return Finding.of(f"{share:.1%} of softmax attention's bytes after 8,192 tokens in 32 layers", share <= 0.2)


@measured(kind=("hymba", "mamba"), seed=range(2), steps=[2000])
def hymba_recall(kind: str, seed: int, steps: int) -> dict[str, float]:
    """The share of 8 pairs that three layers recall after 64 tokens: attention and state space, or state space
    alone. After 600 steps it was 26 and 29% against 9%, and still rising."""
    task = AssociativeRecall(8, 64)
    config = Config(64, 64, "softmax*3", heads=2, inner=64)
    model = HymbaLM(config, 16, 8, seed) if kind == "hymba" else LM(replace(config, layers="mamba*3"), seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(*predicted(ready, task, 64, 32, generator))

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    return {"recalled": accuracy_of(model, task, 64, 256)[0]}


def recalls_20_more(found: Figures) -> Finding:
    """20 points more, on average."""
    hymba, mamba = (found("recalled", kind=kind) for kind in ("hymba", "mamba"))
    figure = f"recall of 8 pairs {listed(hymba, '.1%')}, by state-space heads alone {listed(mamba, '.1%')}"
    return Finding.of(figure, mean(hymba) >= mean(mamba) + 0.2)


@measured()
def simba_product() -> dict[str, float]:
    """How far a layer by real and imaginary parts is from PyTorch's complex product."""
    torch.manual_seed(0)
    mixer = EinFFT(12, 4)
    x = torch.randn(2, 7, 4, 3, dtype=torch.complex64)
    weight, bias = (torch.complex(*part.detach()) for part in (mixer.weights[0], mixer.biases[0]))
    with torch.no_grad():
        got = torch.complex(*mixer.layer(0, x.real, x.imag))
    return {"apart": (got - (torch.einsum("bnkd,kde->bnke", x, weight) + bias)).abs().max().item()}


def waves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``(64 steps, the 8 behind them)`` of three series of two waves each, shared between them, under noise of 0.1."""
    steps = torch.arange(72.0)[:, None]
    periods, phases, sizes = (torch.rand(count, 1, 2, generator=generator) for _ in range(3))
    base = (0.5 + sizes) * torch.sin(2 * math.pi * (steps / (6 + 30 * periods) + phases))
    mixed = base @ torch.tensor([[1.0, 0.5, -0.7], [-0.4, 0.8, 0.6]])
    mixed = mixed + 0.1 * torch.randn(mixed.shape, generator=generator)
    return mixed[:, :64], mixed[:, 64:]


@measured(steps=[60])
def simba_deep(steps: int) -> dict[str, float]:
    """The loss of twelve layers after so many steps, and the largest norm of a gradient on the way."""
    model, norms = Simba(3, 8, 32, 12, 16, seed=0), []

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        x, y = waves(8, generator)
        return (ready(x) - y).square().mean()

    def noted(step: Step) -> bool:
        norms.append((step.loss, step.norm))
        return False

    fit(model, loss, Recipe(steps, 3e-3), until=noted)
    return {"loss": norms[-1][0], "norm": max(norm for _, norm in norms)}


def stays_finite(found: Figures) -> Finding:
    """Loss and gradients are."""
    loss, norm = found.one("loss"), found.one("norm")
    figure = f"a loss of {loss:.3f} after 60 steps, gradients of at most {norm:.1f}"
    return Finding.of(figure, math.isfinite(loss), math.isfinite(norm))


@measured(kind=("simba", "plain"), seed=range(2), steps=[400])
def simba_series(kind: str, seed: int, steps: int) -> dict[str, float]:
    """The squared error of 8 steps ahead on series that were not trained on, of two layers."""
    model = Simba(3, 8, 32, 2, 16, 4 if kind == "simba" else None, seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        x, y = waves(32, generator)
        return (ready(x) - y).square().mean()

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    x, y = waves(512, torch.Generator().manual_seed(7_919))
    with torch.no_grad():
        return {"error": (model.eval()(x) - y).square().mean().item()}


def forecasts_as_well(found: Figures) -> Finding:
    """At most 2% more."""
    simba, plain = (found("error", kind=kind) for kind in ("simba", "plain"))
    figure = f"squared error {listed(simba, '.3f')}, with a plain network {listed(plain, '.3f')}"
    return Finding.of(figure, mean(simba) <= 1.02 * mean(plain))
