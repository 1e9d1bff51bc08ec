"""Chunks averaged by gates under softmax attention: limits, entries of the cache, speed."""

from __future__ import annotations

import torch
from torch import Tensor

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.experiments.timing import interleaved
from regard.projections.rotary import Rotary

CAUSAL, CPU = Layout(causal=True), torch.device("cpu")


def draw(n: int, d: int, heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k, v and the gate."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, gate = torch.randn(4, 1, heads, n, d, generator=generator, dtype=dtype).unbind()
    return q, k, v, gate.sigmoid()


@measured()
def single() -> dict[str, float]:
    """How far chunks of one token with open gates are from softmax attention with rotary positions."""
    q, k, v, gate = draw(83, 6)
    turn, places = Rotary(6), torch.arange(83)[None]
    want = regard.build("softmax")(turn(q, places), turn(k, places), v, CAUSAL)
    return {"apart": (regard.build("rat", chunk=1)(q, k, v, CAUSAL, gate=0 * gate) - want).abs().max().item()}


@measured(chunk=(4, 16))
def entries(chunk: int) -> dict[str, float]:
    """Numbers in the state after 4,096 tokens over those of a cache of all keys and values."""
    q, k, v, gate = draw(4096, 8, dtype=torch.float32)
    mechanism = regard.build("rat", chunk=chunk)
    _, state = mechanism.extend(q, k, v, mechanism.start(1), gate=gate)
    return {"share": state.bytes / (2 * k.numel() * k.element_size())}


def one_a_chunk(found: Figures) -> Finding:
    """As many as there are chunks, and one more."""
    shares = found("share", chunk=4) + found("share", chunk=16)
    figure = f"after 4,096 tokens {listed(shares, '.2%')} of a whole cache with chunks of 4 and 16"
    return Finding.of(figure, all(abs(s - (4096 // c + 1) / 4096) < 1e-5 for s, c in zip(shares, (4, 16), strict=True)))


@measured()
def speed() -> dict[str, float]:
    """The median time of chunks of 16 over that of softmax attention, one head of 64 channels, 16,384 tokens."""
    q, k, v, gate = draw(16_384, 64, 1, torch.float32)
    softmax, rat = regard.build("softmax"), regard.build("rat", chunk=16)
    with torch.no_grad():
        own = interleaved(lambda: rat(q, k, v, CAUSAL, gate=gate), lambda: softmax(q, k, v, CAUSAL), CPU, seconds=4)
    return {"ratio": 1 / own.median}


def is_faster(found: Figures) -> Finding:
    """At all, and by how much."""
    ratio = found.one("ratio")
    return Finding.of(f"{ratio:.1f} times as fast as softmax attention at 16,384 tokens, one thread", ratio > 1)
