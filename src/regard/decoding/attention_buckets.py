"""Attention Buckets: copies of a model with other rotary bases, whose attention peaks at other distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.decoding.base import Mixture

RATES = "inv_freq"
"""How the rates of rotary positions are called in every model of Transformers, alone or behind a layer type."""


@published(
    "attention_buckets",
    family="steering",
    kind="decoding",
    row=58,
    title="Fortify the Shortest Stave in Attention: Enhancing Context Awareness of LLMs for Effective Tool Use",
    arxiv="2312.04455",
    year=2023,
    missing="the search for bases whose peaks fill each other's troughs",
    fidelity="abstract only",
    claim=Claim(
        "on lookups in SmolLM2 the worst place is read better than with its own base, and the mean is not lower",
        cells="decoding.bucketed",
        holds="decoding.fills_the_trough",
    ),
)
class AttentionBuckets(Mixture):
    """Parallel runs that differ in the base of their rotary positions, mixed by how sure each of them is.

        p = Σ_j w_j p_j,   w_j = max p_j / Σ_i max p_i

    Rates of rotary positions are base^(−2i/d); with ``factor`` times the base they are the model's own times
    factor^(−2i/d), so that the attention of a copy peaks and sinks at other distances. Costs as many passes as factors.

    Args:
        factors: of the model's own base, the first 1.0: the model as it is. With 1.0 alone it is plain decoding.

    Raises:
        ValueError: the first factor is not 1, or one is not positive; when it decodes, a model without rotary
            positions, or with some that do not follow their rates.

    Paper: arXiv 2312.04455, whose code was not at hand: the weights w are the abstract's "maximum probability", scaled
    to one.
    """

    def __init__(self, factors: Sequence[float] = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)) -> None:
        if not factors or factors[0] != 1 or not all(factor > 0 for factor in factors):
            raise wrong("factors", str(list(factors)), "positive numbers, the first 1.0: the model's own base")
        self.factors = tuple(factors)

    @property
    def copies(self) -> int:
        return len(self.factors)

    def around(self, model: PreTrainedModel, copies: Sequence[int]) -> AbstractContextManager[Any]:
        return rebased(model, [self.factors[copy] for copy in copies])

    def mixed(self, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        each = logits.softmax(-1)
        sure = each.amax(-1, keepdim=True)
        return (each * sure / sure.sum(1, keepdim=True)).sum(1).log()

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("three bases", cls((1.0, 0.01, 30.0))), Sample("its own", cls((1.0,)), {"plain": True})]


@contextmanager
def rebased(model: nn.Module, factors: Sequence[float]) -> Iterator[None]:
    """Rows of a batch, in turn, with rotary positions of these factors of the base."""
    found = [module for module in model.modules() if any(name.endswith(RATES) for name in rates(module))]
    if not found:
        raise wrong("model", type(model).__name__, "one with rotary positions")
    own = [module.forward for module in found]
    try:
        for module, forward in zip(found, own, strict=True):
            module.forward = Rebased(module, forward, factors)
        yield
    finally:
        for module in found:
            del module.__dict__["forward"]


def rates(module: nn.Module) -> dict[str, Tensor]:
    """The rates that a module keeps, by their names."""
    return {name: value for name, value in module.named_buffers(recurse=False) if name.endswith(RATES)}


class Rebased:
    """The forward of a module of rotary positions, run once for each factor with the rates of its base.

    Args:
        module: which one. forward: its own. factors: of its base, for rows of a batch in turn.
    """

    def __init__(self, module: nn.Module, forward: Any, factors: Sequence[float]) -> None:
        self.module, self.forward, self.factors = module, forward, factors

    def __call__(self, x: Tensor, position_ids: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, ...]:
        count, kept = len(self.factors), rates(self.module)
        every: list[tuple[Tensor, ...]] = []
        try:
            for copy, factor in enumerate(self.factors):
                for name, own in kept.items():
                    powers = torch.linspace(0, 1, len(own) + 1, device=own.device, dtype=own.dtype)[:-1]
                    setattr(self.module, name, own * factor**-powers)
                whose = position_ids if len(position_ids) == 1 else position_ids[copy::count]
                every.append(self.forward(x[copy::count], whose, *arguments, **named))
        finally:
            for name, own in kept.items():
                setattr(self.module, name, own)
        turned = count > 1 and all(torch.equal(one, other) for one, other in zip(every[0], every[-1], strict=True))
        if turned and self.factors[0] != self.factors[-1] and position_ids.any():
            raise wrong("model", type(self.module).__name__, f"rotary positions that follow their {RATES}")
        rows = len(x) // count
        return tuple(
            torch.stack([part.expand(rows, *part.shape[1:]) for part in parts], 1).flatten(0, 1)
            for parts in zip(*every, strict=True)
        )
