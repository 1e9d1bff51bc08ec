"""Which head-queries need far keys: told from the keys' moments, and what is lost where they go without."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.routed import planted
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.aha import AllOrHere
from regard.mechanisms.sparse.qada import QueryAdaptive, Sums, near_share

WINDOW, SINKS = 128, 4


class Told(Softmax):
    """Softmax attention that notes for each query the share of near keys, as it is and as their moments tell."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.real, self.noted = real, list[tuple[Tensor, Tensor]]()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.note(q, k)
        return super().forward(q, k, v, layout, **signals)

    def extend(self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor):
        out, state = super().extend(q, k, v, state, key_mask, **signals)
        self.note(q, state.k)
        return out, state

    def note(self, q: Tensor, k: Tensor) -> None:
        """Both shares ``(h, n)`` of a call."""
        told, m = QueryAdaptive(WINDOW, SINKS), k.shape[2]
        mean, spread, count, _ = Sums.none(k, torch.zeros((), dtype=torch.int64)).moments(q, k, SINKS, WINDOW)
        share = near_share(told.local(q, k, slice(0, q.shape[2])), count, mean, spread)[0]
        real = share
        if self.real:
            i, j = torch.arange(m - q.shape[2], m)[:, None], torch.arange(m)
            near = (i - j < WINDOW) | (j < SINKS)
            real = (super().weights(q, k, Layout(causal=True)) * near).sum(3)[0]
        self.noted.append((share.float(), real.float()))


class Some(Softmax):
    """Softmax attention of some heads, the window of the others; of every query its own, where so given.

    Args:
        route: ``(h, n)``, 1 for all keys.
    """

    def __init__(self, route: Tensor) -> None:
        super().__init__()
        self.route, self.either = route, AllOrHere(f"window(size={WINDOW}, sinks={SINKS})")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        near = self.either.local(q, k, v, layout)
        return self.either.mix(near, q, k, v, layout, self.route[None].to(q.dtype))


@cache
def asked(seed: int) -> tuple[Any, Any, Tensor, Tensor]:
    """SmolLM2, its cache of a context with planted codes, the questions, and which of their tokens are answers."""
    from regard.hosts import small

    model, words = small.load("smollm2")
    context, questions, answers = planted(words, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        held = model(input_ids=context[None], use_cache=True, logits_to_keep=1).past_key_values
    return model, held, questions, answers


@torch.no_grad()
def recalled(seed: int, chosen: dict[int, Mechanism]) -> float:
    """The share of answer tokens that are right."""
    from regard.hosts.swap import swap

    model, held, questions, answers = asked(seed)
    with swap(model, chosen):
        logits = model(input_ids=questions[None], past_key_values=copy.deepcopy(held)).logits
    return (logits[0, :-1].argmax(-1) == questions[1:])[answers[1:]].float().mean().item()


def noted(seed: int, real: bool) -> tuple[float, list[Tensor], list[Tensor]]:
    """Recall with all keys, and for each layer the shares of near keys ``(h, n)``, as told and as they are."""
    told: dict[int, Mechanism] = {layer: Told(real) for layer in range(30)}
    recall = recalled(seed, told)
    shares = [mechanism.noted[0] for mechanism in told.values() if isinstance(mechanism, Told)]
    return recall, [x for x, _ in shares], [x for _, x in shares]


@measured(seed=range(2))
def told(seed: int) -> dict[str, float]:
    """How well the told share ranks the head-queries of the questions by whether near keys have 90% of attention."""
    _, guessed, real = noted(seed, True)
    scores, local = torch.cat([x.flatten() for x in guessed]), torch.cat([x.flatten() for x in real]) > 0.9
    ranks = scores.argsort().argsort().double()
    ones, zeros = int(local.sum()), int((~local).sum())
    area = (ranks[local].sum() - ones * (ones - 1) / 2) / (ones * zeros)
    return {"area": area.item(), "local": ones / len(local)}


def tells(found: Figures) -> Finding:
    """At 0.9 or more."""
    area, local = found.mean("area"), found.mean("local")
    return Finding.of(f"area {area:.3f}; {local:.0%} of head-queries are local", area >= 0.9)


@measured(seed=range(2))
def recalls(seed: int) -> dict[str, float]:
    """Recall with all keys, with half of the head-queries local by their moments, and with half of the heads."""
    dense, guessed, _ = noted(seed, False)
    middle = torch.cat([x.flatten() for x in guessed]).median()
    heads = torch.stack([x.mean(1) for x in guessed])
    static = heads < heads.flatten().median()
    adaptive: dict[int, Mechanism] = {layer: Some(share < middle) for layer, share in enumerate(guessed)}
    fixed: dict[int, Mechanism] = {
        layer: Some(static[layer][:, None].expand_as(share)) for layer, share in enumerate(guessed)
    }
    return {"dense": dense, "adaptive": recalled(seed, adaptive), "static": recalled(seed, fixed)}


def keeps_recall(found: Figures) -> Finding:
    """A point less at most; whole heads lose more."""
    dense, adaptive, static = (found.mean(name) for name in ("dense", "adaptive", "static"))
    figure = f"recall {dense:.1%}, with half of the head-queries local {adaptive:.1%}, half of the heads {static:.1%}"
    return Finding.of(figure, adaptive >= dense - 0.01, static < adaptive)
