"""Tokens that attend inside of clusters of their content: the limit that is attention, the growth, a language model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.source import VOCABULARY, characters, held_out_loss, windows
from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.content_routing import SHARE, ContentRouting, learning
from regard.networks.lm import LM, Config
from regard.train.fit import Recipe, fit

LENGTH = 256
ARMS = {
    "clusters": "window(size=32), routing_transformer(clusters=8, window=32)",
    "windows": "window(size=32)*2",
}


@measured()
def one_cluster() -> dict[str, float]:
    """How far one cluster of all 83 tokens is from softmax attention of normed queries and keys, over 1.01."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 83, 8, dtype=torch.float64)
    mechanism = ContentRouting(4, 8, 1, 83).double()
    plain = [F.layer_norm(x, (8,), eps=1e-6) for x in (q, k)]
    want = Softmax()(plain[0] * 8**0.5, plain[1], v, Layout(causal=True)) / (1 + SHARE)
    return {"apart": (mechanism(q, k, v, Layout(causal=True)) - want).abs().max().item()}


@measured(tokens=(1024, 4096, 16_384))
def products(tokens: int) -> dict[str, float]:
    """Counted FLOPs of one head of 16 channels with √n clusters."""
    q, k, v = torch.randn(3, 1, 1, tokens, 16, generator=torch.Generator().manual_seed(0))
    mechanism = ContentRouting(1, 16, math.isqrt(tokens))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mechanism(q, k, v, Layout(causal=True))
    return {"flops": float(counter.get_total_flops())}


def grows_so(found: Figures) -> Finding:
    """To a tenth."""
    flops = [found.one("flops", tokens=n) for n in (1024, 4096, 16_384)]
    power = math.log(flops[-1] / flops[0], 16)
    return Finding.of(f"n^{power:.2f} from 1,024 to 16,384 tokens", abs(power - 1.5) <= 0.1)


@measured(arm=tuple(ARMS), seed=range(2), steps=[400])
def language(arm: str, seed: int, steps: int) -> dict[str, float]:
    """Held-out nats a character of two layers at 256 characters, keys by window or the second layer's by clusters."""
    model, codes = LM(Config(VOCABULARY, 64, ARMS[arm], heads=4), seed), characters(False)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        with learning(ready) as found:
            told = model.loss(windows(codes, 8, LENGTH, generator))
            return told + sum((x.loss for x in found if x.loss is not None), told.new_zeros(()))

    fit(model, loss, Recipe(steps, seed=seed))
    return {"loss": held_out_loss(model, LENGTH, 128)}


def loses_less(found: Figures) -> Finding:
    """On average."""
    own, near = (found("loss", arm=arm) for arm in ARMS)
    figure = f"{listed(own, '.3f')} nats a character, which later characters inform; windows {listed(near, '.3f')}"
    return Finding.of(figure, sum(own) < sum(near))
