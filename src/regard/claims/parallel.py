"""Attention over shards: what ranks send and hold, and that they train what one process does; ranks are threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.maps import apart
from regard.core.build import build
from regard.core.layout import Layout
from regard.parallel.attend import attend
from regard.parallel.base import Call
from regard.parallel.group import Group, simulate, sum_gradients
from regard.parallel.mechanism import Parallel
from regard.parallel.plan import Plan
from regard.parallel.ring_self_attention import RingSelfAttention

HEADS, DIM = 4, 16


def drawn(n: int, seed: int = 0) -> list[Tensor]:
    """q, k, v of n tokens."""
    noise = torch.Generator().manual_seed(seed)
    return [torch.randn(1, HEADS, n, DIM, generator=noise) for _ in range(3)]


@measured(ranks=(2, 4), n=[96])
def ring_scores(ranks: int, n: int) -> dict[str, float]:
    """How often a rank hands on a whole shard of keys and one of values; scores that it holds a head, by n²."""
    plan, given = Plan.even(n, ranks), drawn(n)

    def work(group: Group) -> dict[str, float]:
        own = [plan.split(x, 2, group.rank) for x in given]
        _, saved = RingSelfAttention().forward_pass(*own, call=Call(plan, plan, group))
        passes = group.sent / (own[1].nbytes + own[2].nbytes)
        return {"passes": passes, "share": saved[1].numel() / HEADS / n**2}

    return simulate(ranks, work)[0]


def are_passes(found: Figures) -> Finding:
    """P − 1 passes and a P-th of the scores, exactly."""
    ranks, passes, share = (found(name) for name in ("ranks", "passes", "share"))
    figure = f"{listed(passes, 'g')} passes with {listed(ranks, 'g')} ranks, which hold {listed(share, 'g')} of n² each"
    return Finding.of(figure, *(p == r - 1 and s == 1 / r for r, p, s in zip(ranks, passes, share, strict=True)))


@measured(how=("tree", "ring"), keys=(256, 2048))
def decoding_bytes(how: str, keys: int) -> dict[str, int]:
    """Bytes that four ranks send together for the next token after so many keys."""
    plan, (q, k, v) = Plan.even(keys, 4), drawn(keys)
    queries = Plan.replicated(1, 4) if how == "tree" else Plan.sized([1, 0, 0, 0])

    def work(group: Group) -> int:
        own = q[:, :, -1:] if how == "tree" or group.rank == 0 else q[:, :, :0]
        held = (plan.split(x, 2, group.rank) for x in (k, v))
        attend(own, *held, shards=plan, how=how, queries=queries, causal=True, group=group, check=False)
        return group.sent

    return {"sent": sum(simulate(4, work))}


def is_free_of_length(found: Figures) -> Finding:
    """The tree sends the same after eight times the keys, the ring eight times as much."""
    tree, ring = found("sent", how="tree"), found("sent", how="ring")
    figure = f"{listed(tree, ',')} bytes after 256 and 2,048 keys, a ring {listed(ring, ',')}"
    return Finding.of(figure, tree[0] == tree[1], ring[1] == 8 * ring[0])


@measured(n=(1, 37))
def energy(n: int) -> dict[str, float]:
    """The gradient of ``F(ζ) = log Σ_j exp(q·k_j / √d + ζ·v_j)`` at ζ = 0, in two parts reduced, against attention."""
    q, k, v = (x.double() for x in drawn(n))
    source = torch.zeros(1, HEADS, n, DIM, dtype=torch.float64, requires_grad=True)
    scores = q @ k.mT * DIM**-0.5 + source @ v.mT
    parts = [part.logsumexp(-1) for part in scores.split([n // 2, n - n // 2], -1)]
    slope = torch.autograd.grad(torch.logaddexp(*parts).sum(), source)[0]
    return {"apart": apart(slope, build("softmax")(q, k, v))}


@measured(mechanism=("linear", "retnet", "deltanet"), n=(64, 1024))
def state_bytes(mechanism: str, n: int) -> dict[str, int]:
    """Bytes and collectives of one of four ranks, forward and backward, of so many tokens."""
    from regard.parallel.state import States

    plan, given = Plan.even(n, 4), drawn(n)
    signals: dict[str, Tensor] = {"beta": torch.full((1, HEADS, n), 0.5)} if mechanism == "deltanet" else {}

    def work(group: Group) -> dict[str, int]:
        own = [plan.split(x, 2, group.rank).requires_grad_() for x in given]
        named: Any = {name: plan.split(x, 2, group.rank) for name, x in signals.items()}
        out = attend(*own, shards=plan, how=States(mechanism), causal=True, group=group, check=False, **named)
        sent, times = group.sent, group.collectives
        out.sum().backward()
        return {"sent": sent, "sent_back": group.sent - sent, "once": times, "once_back": group.collectives - times}

    return simulate(4, work)[0]


def is_one_collective(found: Figures) -> Finding:
    """One each way, of as many bytes for 64 tokens as for 1,024."""
    sent = {name: found("sent", mechanism=name) for name in ("linear", "retnet", "deltanet")}
    back = {name: found("sent_back", mechanism=name) for name in sent}
    told = "; ".join(f"{name} {own[0]:,} and {back[name][0]:,}" for name, own in sent.items())
    same = all(len(set(own)) == 1 for own in (*sent.values(), *back.values()))
    once = set(found("once")) | set(found("once_back"))
    of = f"of 64 tokens{'' if same else ', not'} as of 1,024"
    figure = f"{listed(sorted(once), 'g')} collective each way; bytes {of}: {told}"
    return Finding.of(figure, same, once == {1})


class Stack(nn.Module):
    """Linear attention, then softmax attention, each on a projection of the hidden states and with a residual."""

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        width = HEADS * DIM
        self.maps = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(2)]).double()
        self.mechanisms = nn.ModuleList([first, second])

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        for project, mechanism in zip(self.maps, self.mechanisms, strict=True):
            q, k, v = project(x).unflatten(-1, (3, HEADS, DIM)).movedim(-3, 0).transpose(-3, -2)
            x = x + mechanism(q, k, v, layout).transpose(1, 2).flatten(2)
        return x


def trains_alike(found: Figures) -> Finding:
    """The same parameters to 1e-9, which training has moved."""
    off, moved = max(found("apart")), min(found("moved"))
    return Finding.of(f"parameters that moved by {moved:.2g} equal to {off:.0e}", off <= 1e-9, moved > 0.01)


@measured(ranks=(2, 3), steps=[5])
def hybrid(ranks: int, steps: int) -> dict[str, float]:
    """The parameters of a stack after so many steps on shards in zigzag, against those of one process."""
    n, width, layout = 61, HEADS * DIM, Layout(causal=True)
    plan, noise = Plan.zigzag(n, ranks), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    begun = Stack(build("linear"), build("softmax")).maps.state_dict()
    x, y = (torch.randn(1, n, width, generator=noise, dtype=torch.float64) for _ in range(2))

    def train(group: Group | None) -> Tensor:
        shared = [build("linear"), build("softmax")]
        own = x, y
        if group is not None:
            shared = [Parallel(plan, "state", group), Parallel(plan, "ring", group)]
            own = plan.split(x, 1, group.rank), plan.split(y, 1, group.rank)
        model = Stack(*shared)
        model.maps.load_state_dict(begun)
        optimiser = torch.optim.SGD(model.parameters(), 1e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            (model(own[0], layout) - own[1]).square().sum().backward()
            if group is not None:
                sum_gradients(model, group)
            optimiser.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    want = train(None)
    moved = apart(want, torch.cat([x.flatten() for x in begun.values()]))
    return {"apart": max(apart(got, want) for got in simulate(ranks, train)), "moved": moved}
