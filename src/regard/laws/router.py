"""The laws of routers: what a choice of blocks must be, and what every way to the kernel makes of it.

What examples are ``given``: ``heads``, ``kv_heads`` and ``head_dim`` of the queries and keys that they choose among.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.core.mechanism import masked_softmax, repeat_heads
from regard.kernels import chosen
from regard.laws.finding import Broken, Unclaimed, same
from regard.patterns.choice import Choice, Rows
from regard.routers.base import Router

LENGTHS = ((1, 1), (43, 43), (5, 43), (67, 67), (1, 67))
"""Queries and keys; no multiple of any block in use."""


class Chosen:
    """A router under examination.

    Args:
        sample: the router. device: where it chooses.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.router: Router = copy.deepcopy(sample.thing).to(device)
        if any(True for _ in self.router.parameters()):
            self.router.double()
        self.device = device
        given = {"heads": 4, "kv_heads": 2, "head_dim": 5, **sample.given}
        self.heads, self.groups, self.dim = given["heads"], given["kv_heads"], given["head_dim"]

    def draw(self, n: int, m: int, seed: int = 0, batch: int = 2) -> tuple[Tensor, Tensor]:
        """Random queries and keys."""
        generator = torch.Generator().manual_seed(seed)
        shapes = (batch, self.heads, n, self.dim), (batch, self.groups, m, self.dim)
        q, k = (torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device) for shape in shapes)
        return q, k

    def rows(self, n: int, m: int, causal: bool = True) -> Rows:
        return self.router.rows(torch.arange(m - n, m, device=self.device)[None], m, causal)

    def choose(self, q: Tensor, k: Tensor, causal: bool | None = None) -> Choice:
        causal = self.router.directions[0] if causal is None else causal
        return self.router(q, k, self.rows(q.shape[2], k.shape[2], causal))


def budget(subject: Chosen) -> str:
    """At most as many blocks as the budget has, each once, in order; the forced ones among them; none out of reach."""
    most, router = 0, subject.router
    for n, m in LENGTHS:
        for causal in router.directions:
            found, where = subject.choose(*subject.draw(n, m), causal), f"{n} over {m}, causal={causal}"
            index, rows = found.index, found.rows
            if index.shape[:3] != (2, subject.heads, rows.count) or index.max() >= rows.blocks:
                raise Broken(f"{where}: index of {tuple(index.shape)}, up to {int(index.max())} of {rows.blocks}")
            real, follows = index >= 0, index[..., 1:] > index[..., :-1]
            if not (follows | ~real[..., 1:]).all() or (real[..., 1:] & ~real[..., :-1]).any():
                raise Broken(f"{where}: a block twice, out of order, or behind one that is none")
            most = max(most, int(real.sum(-1).max()))
            if most > router.budget:
                raise Broken(f"{where}: {most} blocks, a budget of {router.budget}")
            if (router.forced_on(rows)[:, None] & ~found.mask).any():
                raise Broken(f"{where}: a forced block is not chosen")
            own = rows.own() & (not router.past)
            if (found.mask & ~(rows.routable() | router.forced_on(rows) | own)[:, None]).any():
                raise Broken(f"{where}: a block that is not complete and past")
    return f"up to {most} blocks"


def causal(subject: Chosen) -> str:
    """What comes after a query leaves its choice as it is; where a router says that it leaks, it does."""
    if True not in subject.router.directions:
        raise Unclaimed("bidirectional only")
    n, leaked = 43, False
    (q, k), (new_q, new_k) = subject.draw(n, n), subject.draw(n, n, seed=1)
    before = subject.choose(q, k).spread()
    for i in (0, 1, 7, 20, 41):
        changed_q, changed_k = (torch.cat([x[:, :, : i + 1], y[:, :, i + 1 :]], 2) for x, y in ((q, new_q), (k, new_k)))
        after = subject.choose(changed_q, changed_k)
        if not torch.equal(after.spread()[:, :, : i + 1], before[:, :, : i + 1]):
            leaked = True
            if subject.router.causal:
                raise Broken(f"tokens after {i} change the choice of queries up to it")
    if leaked == subject.router.causal:
        raise Broken("the choice reads no later token, declared otherwise")
    return "reads later tokens, as declared" if leaked else "of the past alone"


def dense(subject: Chosen) -> str:
    """With an unlimited budget it is softmax attention, output and gradients."""
    other, worst = copy.copy(subject), 0.0
    other.router = subject.router.unlimited()
    for n, m in LENGTHS:
        for causal in subject.router.directions:
            rows = subject.rows(n, m, causal)
            seen = torch.ones(n, m, dtype=torch.bool, device=subject.device)
            seen = seen.tril(m - n) if causal else seen
            found = other.choose(*subject.draw(n, m), causal)
            if not torch.equal(found.spread(), seen.expand(2, subject.heads, n, m)):
                raise Broken(f"{n} over {m}, causal={causal}: some visible pair of {rows.blocks} blocks is left out")
            worst = max(worst, agree(subject, found, n, m, None, "unlimited"))
    return f"{worst:.0e}"


def routes(subject: Chosen) -> str:
    """Every way to the kernel is softmax attention under the map of all pairs, with its gradients."""
    worst = 0.0
    for n, m in LENGTHS:
        for causal in subject.router.directions:
            found = subject.choose(*subject.draw(n, m), causal)
            for way in chosen.WAYS:
                if way != "queries" or found.rows.size == 1:
                    where = f"{way}, {n} over {m}, causal={causal}"
                    worst = max(worst, agree(subject, found, n, m, way, where))
    return f"{worst:.0e}"


def agree(subject: Chosen, choice: Choice, n: int, m: int, way, where: str) -> float:
    """The worst difference of a way from the map, in the output and the gradients of q, k and v."""
    (q, k), v = subject.draw(n, m), torch.cos(subject.draw(n, m, seed=2)[1])[..., :3]
    found, wanted = [], []
    for results, run in ((found, by_kernel), (wanted, by_map)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = run(leaves[0], leaves[1], leaves[2], choice, way)
        weighting = torch.sin(torch.arange(out.numel(), device=out.device, dtype=out.dtype)).view_as(out)
        results += [out, *torch.autograd.grad((out * weighting).sum(), leaves)]
    names = ("output", "d q", "d k", "d v")
    return max(same(got, want, 1e-9, f"{where}, {name}") for name, got, want in zip(names, found, wanted, strict=True))


def by_kernel(q: Tensor, k: Tensor, v: Tensor, choice: Choice, way) -> Tensor:
    return chosen.attend(q, k, v, choice, way=way).out


def by_map(q: Tensor, k: Tensor, v: Tensor, choice: Choice, way) -> Tensor:
    scores = q @ repeat_heads(k, q.shape[1]).mT * q.shape[3] ** -0.5
    return masked_softmax(scores, choice.spread()) @ repeat_heads(v, q.shape[1])


def ties(subject: Chosen) -> str:
    """Of blocks that score alike the first are taken, in every precision and of the shortest texts."""
    router = subject.router
    for n, dtype in ((1, torch.float32), (67, torch.float32), (67, torch.bfloat16), (67, torch.float64)):
        rows = subject.rows(n, n, router.directions[0])
        scores = torch.zeros(1, subject.heads, rows.count, rows.blocks, dtype=dtype, device=subject.device)
        found = router.choose(scores, rows).mask
        free = found & ~router.forced_on(rows)[:, None]
        open_to = (router.reach(rows) & ~router.forced_on(rows))[:, None].expand_as(free)
        missed = (open_to & ~free).cumsum(-1) > 0
        if (missed & free).any():
            raise Broken(f"{dtype}: a later block is taken before an earlier one that scores alike")
    return f"{rows.blocks} blocks"


def summary(subject: Chosen) -> str:
    """What is summed up of a block depends on its keys alone, so it can be kept; a kept one gives the same choice."""
    router, m = subject.router, 43
    q, k = subject.draw(m, m)
    whole, worst = router.summary(k), 0.0
    for blocks in range(1, m // router.block + 1):
        part = router.summary(k[:, :, : blocks * router.block])
        for got, want in zip(part, whole, strict=True):
            worst = max(worst, same(got, want[:, :, :blocks], 1e-12, f"the first {blocks} blocks alone"))
    numbers = sum(x[0, 0, 0].numel() for x in whole)
    if numbers != router.width(subject.dim):
        raise Broken(f"{numbers} numbers a block, told {router.width(subject.dim)}")
    if True not in router.directions or not router.past:
        return f"{worst:.0e}, {numbers} numbers a block"
    kept = router.summary(k[:, :, : m // router.block * router.block])
    if not torch.equal(router(q, k, subject.rows(m, m), kept).mask, subject.choose(q, k).mask):
        raise Broken("the summary of complete blocks alone gives another choice")
    return f"{worst:.0e}, {numbers} numbers a block"


def alone(subject: Chosen) -> str:
    """A batch is its sequences; grouped heads are heads with keys repeated, or choose together where they say so."""
    n = 43
    q, k = subject.draw(n, n, batch=3)
    found = subject.choose(q, k).mask
    for row in range(3):
        single = subject.choose(q[row : row + 1], k[row : row + 1]).mask
        if not torch.equal(single[0], found[row]):
            raise Broken(f"sequence {row} alone chooses otherwise")
    if subject.router.shared:
        together = found.unflatten(1, (subject.groups, -1))
        if not torch.equal(together, together[:, :, :1].expand_as(together)):
            raise Broken("heads of a group choose apart, declared shared")
    elif not torch.equal(subject.choose(q, repeat_heads(k, subject.heads)).mask, found):
        raise Broken("keys repeated for every head give another choice")
    return "3 sequences"


LAWS: dict[str, Callable[[Chosen], str]] = {
    law.__name__: law for law in (budget, causal, dense, routes, ties, summary, alone)
}
subject = Chosen


def example(thing: Router, heads: int = 4, kv_heads: int = 2, head_dim: int = 5) -> Sample:
    """A router as it is, choosing for so many heads."""
    return Sample(type(thing).__name__, thing, {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim})
