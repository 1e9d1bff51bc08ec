"""The contract of kernels that ranks compute together, each of them holding a part of the tokens."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.mechanism import accumulate_dtype, check_tensors
from regard.core.state import State
from regard.kernels.base import Kernel, KernelTraits
from regard.kernels.dense import Piece
from regard.parallel.group import Group
from regard.parallel.local import query_parts, visible
from regard.parallel.plan import Plan

CHECK = 16
"""Bytes that a rank tells each other one of a call before it."""


@dataclass(frozen=True)
class Call:
    """One call, as every rank knows it.

    Args:
        keys: who holds which keys. queries: who holds which queries, the same plan in self-attention.
        causal: query i sees keys up to ``i + (m − n)``. scale: of the scores, None for ``1 / sqrt(d)``.
        group: the ranks. check: whether they tell each other first that the call fits.
    """

    keys: Plan
    queries: Plan
    group: Group
    causal: bool = False
    scale: float | None = None
    check: bool = True

    @property
    def rank(self) -> int:
        return self.group.rank

    @property
    def ranks(self) -> int:
        """P."""
        return self.group.size

    def pieces(self, queries: int, keys: int) -> list[Piece]:
        """What the queries of one rank see of the keys of another."""
        return visible(query_parts(self.queries, self.keys, queries), self.keys.pieces(keys), self.causal)

    def scaling(self, q: Tensor) -> float:
        """The scale as a number."""
        return q.shape[-1] ** -0.5 if self.scale is None else self.scale


class Sharded(Kernel):
    """The base of kernels whose ranks hold a part of the tokens each.

    A subclass writes `run`, which is differentiable, and `traffic`.

    Shapes on rank r: ``q (b, h, n_r, d)``, ``k (b, g, m_r, d)``, ``v (b, g, m_r, e)`` -> ``(b, h, n_r, e)``.
    """

    how: ClassVar[str]
    traits = KernelTraits(sharded=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call, **signals: Tensor) -> Tensor:
        """This rank's rows of ``A v``.

        Raises:
            ValueError, TypeError: what does not fit the plan, on the rank where it does not.
            RuntimeError: on the others; or a rank that fails or does not answer within the group's limit.
        """
        error = None
        try:
            self.check(q, k, v, call, signals)
        except (ValueError, TypeError) as found:
            error = found
        if call.check:
            agree(call, error, self.signature(q, k, v, call, signals), q.device)
        if error is not None:
            raise error
        return self.run(q, k, v, call, **signals)

    def run(self, q: Tensor, k: Tensor, v: Tensor, call: Call, **signals: Tensor) -> Tensor:
        """`attend`, of a call that fits."""
        raise NotImplementedError

    def decode(self, q: Tensor, k: Tensor, v: Tensor, state: Shards, group: Group, scale: float | None = None) -> Any:
        """``(A v, the state after them)`` of new tokens, causally; all ranks are given the same ones and keep some."""
        raise wrong("how", repr(self.how), "one that decodes on growing shards: 'tree'")

    def check(self, q: Tensor, k: Tensor, v: Tensor, call: Call, signals: dict[str, Tensor]) -> None:
        """Raises an error that names what does not fit the plan or the kernel."""
        check_tensors(q, k, v)
        for name, plan, tokens in (("q", call.queries, q.shape[2]), ("k", call.keys, k.shape[2])):
            if plan.ranks != call.ranks:
                raise wrong("plan", f"{plan.ranks} ranks", f"the {call.ranks} of the group")
            if plan.size(call.rank) != tokens:
                raise wrong(
                    name, f"{tokens} tokens", f"the {plan.size(call.rank)} that rank {call.rank} holds by the plan"
                )
        if call.queries.everywhere != self.traits.everywhere:
            wanted = "queries that every rank holds: Plan.replicated(n, ranks)" if self.traits.everywhere else "shards"
            raise wrong("queries", "shards" if self.traits.everywhere else "all of them on every rank", wanted)
        if call.keys.everywhere:
            raise wrong("plan", "all keys on every rank", "each key on one rank")
        if len(call.keys.borders) > 1 and call.queries.length > call.keys.length:
            raise wrong("queries", f"{call.queries.length} over {call.keys.length} keys", "no more queries than keys")
        if not (self.traits.causal if call.causal else self.traits.bidirectional):
            raise wrong("causal", str(call.causal), f"{not call.causal}: {type(self).__name__} takes no other")
        if not self.traits.cross and call.queries != call.keys:
            raise wrong("queries", "a plan of their own", f"that of the keys: {type(self).__name__} is self-attention")
        for name in signals.keys() ^ self.signals.keys():
            wanted = f"the signals {', '.join(self.signals)}" if self.signals else "no signals"
            raise wrong(name, "given" if name in signals else "nothing", wanted, TypeError)

    def signature(self, q: Tensor, k: Tensor, v: Tensor, call: Call, signals: dict[str, Tensor]) -> str:
        """What all ranks must say alike of a call."""
        given = {"q": q, "k": k, "v": v, **signals}
        sizes = {
            name: (x.shape[:2], x.shape[3:], x.dtype, x.requires_grad and torch.is_grad_enabled())
            for name, x in sorted(given.items())
        }
        return repr((type(self).__name__, sizes, call.keys, call.queries, call.causal, call.scale))


def agree(call: Call, error: Exception | None, signature: str, device: torch.device) -> None:
    """Raises a RuntimeError on every rank where one of them cannot take part, or is in another call.

    The rank with the ``error`` returns, to raise it itself. What is told is on the ``device`` of the queries, since not
    every backend sends what is elsewhere.
    """
    told = torch.tensor([error is not None, zlib.crc32(signature.encode())], dtype=torch.int64, device=device)
    every = torch.stack(call.group.gather(told, [(2,)] * call.ranks)).tolist()
    failed = [rank for rank, (fault, _) in enumerate(every) if fault]
    if error is not None:
        return
    if failed:
        raise RuntimeError(f"rank {failed[0]} cannot take part in this call; its own error says why")
    if len({said for _, said in every}) > 1:
        raise RuntimeError(f"ranks are in different calls; that of rank {call.rank} is {signature}")


@dataclass(frozen=True)
class Shards(State):
    """The part of a growing cache that this rank holds.

    Args:
        k: ``(b, g, m_r, d)``. v: ``(b, g, m_r, e)``. plan: who holds which tokens.
    """

    k: Tensor
    v: Tensor
    plan: Plan

    def append(self, k: Tensor, v: Tensor, rank: int) -> Shards:
        """With new tokens, which all ranks are given, on those ranks that hold the fewest."""
        sizes = self.plan.fill(k.shape[2])
        start = sum(sizes[:rank])
        own = slice(start, start + sizes[rank])
        first = self.k.shape[1] == 0
        k, v = (x[:, :, own] if first else torch.cat([old, x[:, :, own]], 2) for old, x in ((self.k, k), (self.v, v)))
        return Shards(self.seen + sum(sizes), k, v, self.plan.grown(sizes))


class SoftmaxShards(Sharded):
    """The base of exact softmax attention over shards, whose backward pass sends keys and values again, and gradients.

    A subclass writes `forward_pass` and `backward_pass`, neither of which autograd records. Outputs and log-sum-exps
    are merged in the precision of sums, whatever the number of ranks.
    """

    def run(self, q: Tensor, k: Tensor, v: Tensor, call: Call, **signals: Tensor) -> Tensor:
        return cast(Any, Passes.apply)(q, k, v, self, call)

    def forward_pass(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``(out in the precision of sums, what the backward pass needs of it)``."""
        raise NotImplementedError

    def backward_pass(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: tuple[Tensor, ...], call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v."""
        raise NotImplementedError


class Passes(torch.autograd.Function):
    """A call of `SoftmaxShards`; between its passes are kept the rank's own tensors and what the kernel says."""

    @staticmethod
    def forward(ctx, q, k, v, kernel, call):
        out, saved = kernel.forward_pass(q, k, v, call)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.kernel, ctx.call = kernel, call
        return out.to(q.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v, *saved = ctx.saved_tensors
        found = ctx.kernel.backward_pass(grad, q, k, v, tuple(saved), ctx.call)
        return *(x.to(q.dtype) for x in found), None, None


def itemsize(x: Tensor) -> int:
    """Bytes of a number of the sums of ``x``."""
    return torch.empty(0, dtype=accumulate_dtype(x.dtype)).element_size()
