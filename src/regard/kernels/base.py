"""The contract of kernels: ways to compute ``A v`` of some attention without forming A."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from regard.core.cost import Shape
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Signal, masked_softmax, raised, repeat_heads


@dataclass(frozen=True)
class KernelTraits:
    """What a kernel claims; the laws hold it to every word.

    Args:
        causal, bidirectional: the directions that it takes. cross: also n ≠ m. packed: also packed documents.
        sharded: it is run by ranks that hold a part of the tokens each, by the plan of a call (`regard.parallel`).
        everywhere: every rank holds all queries. growing: it decodes on shards that grow.
    """

    causal: bool = True
    bidirectional: bool = True
    cross: bool = True
    packed: bool = True
    sharded: bool = False
    everywhere: bool = False
    growing: bool = False


class Kernel:
    """The base of every kernel: what it computes is ``weights(q, k) v``, of softmax attention unless it says otherwise.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    """

    traits: KernelTraits = KernelTraits()
    signals: Mapping[str, Signal] = MappingProxyType({})

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        """The definition: A dense, ``(b, h, n, m)``."""
        scores = q @ repeat_heads(k, q.shape[1]).mT * q.shape[-1] ** -0.5
        return masked_softmax(raised(scores, layout), layout.allowed(q.shape[2], k.shape[2], q.device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        """``A v`` of whole tensors; ranks that hold parts of them compute it by a call of their own."""
        raise NotImplementedError

    def traffic(self, plan: Any, shape: Shape, **given: Any) -> list[int]:
        """Bytes that each rank sends to the others, by formula; nothing where there is one rank."""
        return [0]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Small instances that the laws examine."""
        raise NotImplementedError


class Whole(Kernel):
    """A kernel that is a function of whole tensors.

    Args:
        run: ``(q, k, v, layout)`` to ``A v``.
    """

    def __init__(self, run: Callable[[Tensor, Tensor, Tensor, Layout], Tensor]) -> None:
        self.run = run

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return self.run(q, k, v, layout)
