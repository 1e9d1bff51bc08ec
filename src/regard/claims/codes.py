"""Codecs: the error of normal vectors, and what a language model loses with coded matrices."""

from __future__ import annotations

import torch

from regard.analysis.prune import loss_of
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import smollm2
from regard.codecs import Integers, PyramidVector
from regard.compare.cache_report import continuations
from regard.core.codec import Codec
from regard.hosts.quantise import quantise

WIDTH = 576
PYRAMID = PyramidVector(group=16, pulses=22, levels=8)
ROUNDED = {"groups of 64": Integers(width=3, group=64), "rows": Integers(width=3), "4 bits": Integers(width=4)}


def error(codec: Codec, x: torch.Tensor) -> float:
    """Squared, over that of the vectors."""
    return ((codec.through(x) - x).square().sum() / x.square().sum()).item()


@measured(seed=range(3))
def normal_error(seed: int) -> dict[str, float]:
    """The relative squared error of 256 normal vectors of 576 numbers, and the bits that each codec takes."""
    x = torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(seed))
    found = {"pvq": error(PYRAMID, x), "pvq bits": PYRAMID.bits(WIDTH)}
    for name, codec in ROUNDED.items():
        found |= {name: error(codec, x), f"{name} bits": codec.bits(WIDTH)}
    return found


def below_rounding(found: Figures) -> Finding:
    """Less than rounding in groups, whose bits are no fewer, with every seed."""
    mine, other = found("pvq"), found("groups of 64")
    bits, more = found("pvq bits")[0], found("groups of 64 bits")[0]
    figure = (
        f"error {sum(mine) / len(mine):.4f} of the square with {bits:.2f} bits, {sum(other) / len(other):.4f} rounded "
        f"with {more:.2f}, {sum(found('4 bits')) / len(mine):.4f} with {found('4 bits bits')[0]:.2f}"
    )
    return Finding.of(figure, bits <= more + 0.05, all(a < b for a, b in zip(mine, other, strict=True)))


@measured()
def perplexity() -> dict[str, float]:
    """Nats a token of text with the matrices of every fifth layer coded: pyramids, and rounding to nearest."""
    model, tokenizer = smollm2()
    texts = [prompt.context for prompt in continuations(tokenizer, 192, 3, seed=21)]
    names = [f"layers.{layer}." for layer in range(0, 30, 5)]
    found = {"whole": loss_of(model, texts)}
    for name, codec in {"pvq": PYRAMID, **ROUNDED}.items():
        with quantise(model, codec, names=names) as quantised:
            found |= {name: loss_of(model, texts), f"{name} bits": quantised.bits}
    return found


def reads_better(found: Figures) -> Finding:
    """The loss is below that of rounding in groups, whose bits are no fewer."""
    whole, mine, other = (found.one(name) for name in ("whole", "pvq", "groups of 64"))
    bits, more = found.one("pvq bits"), found.one("groups of 64 bits")
    figure = (
        f"every fifth layer coded: {mine:.2f} nats a token at {bits:.2f} bits, rounded {other:.2f} at {more:.2f} and "
        f"{found.one('4 bits'):.2f} at {found.one('4 bits bits'):.2f}; whole {whole:.2f}"
    )
    return Finding.of(figure, bits <= more + 0.05, mine < other)


@measured()
def weighing() -> dict[str, float]:
    """Nats a token of text, every fifth layer as pyramids, errors weighed by four other texts or not."""
    model, tokenizer = smollm2()
    texts = [prompt.context for prompt in continuations(tokenizer, 192, 3, seed=21)]
    given = [prompt.context for prompt in continuations(tokenizer, 512, 4, seed=33)]
    names, found = [f"layers.{layer}." for layer in range(0, 30, 5)], {"whole": loss_of(model, texts)}
    for name, some in (("plain", None), ("weighed", given)):
        with quantise(model, PYRAMID, names=names, texts=some):
            found[name] = loss_of(model, texts)
    return found


def weighed_reads_better(found: Figures) -> Finding:
    """The loss is nearer to that of the whole model."""
    whole, plain, weighed = (found.one(name) for name in ("whole", "plain", "weighed"))
    figure = f"{weighed:.3f} nats a token weighed, {plain:.3f} not, {whole:.3f} whole"
    return Finding.of(figure, weighed < plain)
