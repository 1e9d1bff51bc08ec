"""Networks of recurrences and attention, small: their forms are one, and what they gain beside their parts."""

from __future__ import annotations

import math
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.source import VOCABULARY, held_out_loss, trained
from regard.core.layout import Layout
from regard.experiments.timing import interleaved
from regard.networks.lm import LM, Config
from regard.networks.mega import MegaBlock, MegaLM, MovingAverage
from regard.networks.sha_rnn import ShaRNN

CAUSAL, CPU = Layout(causal=True), torch.device("cpu")


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
            interleaved(lambda n=n: block(texts[2 * n], CAUSAL), lambda n=n: block(texts[n], CAUSAL), CPU).median
            for n in (2048, 4096)
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


@measured(attends=(True, False), seed=range(3), steps=[400])
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
        times = interleaved(lambda: model.extend(one, states[1]), lambda: model.extend(one, states[0]), CPU)
    return {"apart": (torch.cat(outs, 1) - whole).abs().max().item(), "ratio": times.median}


def is_exact(found: Figures) -> Finding:
    """To 1e-9, and within a quarter of the time."""
    apart, ratio = found.one("apart"), found.one("ratio")
    figure = f"segments equal to {apart:.0e}; a token after 4,096 takes {ratio:.2f} times as long as after 512"
    return Finding.of(figure, apart <= 1e-9, 0.75 < ratio < 1.25)
