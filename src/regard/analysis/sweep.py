"""Activation patching: what each site of a model causes, one intervention a batch row, with intervals and controls."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regard.analysis.base import Analysis, Head, Result
from regard.core.edit import Edit, Place, Where
from regard.core.errors import wrong
from regard.edits.trace import Trace
from regard.experiments.bootstrap import bootstrap
from regard.experiments.cell import Cell, Report, Scalar
from regard.experiments.run import run as run_cells
from regard.experiments.store import Store
from regard.hosts import caches
from regard.hosts.attach import attach

Metric = Callable[[Tensor], Tensor]
"""From the logits of the last position ``(b, vocabulary)`` to a number each, ``(b,)``."""
SiteKind = Literal["z", "resid", "attn", "mlp"]
KINDS: tuple[SiteKind, ...] = ("z", "resid", "attn", "mlp")


@dataclass(frozen=True, order=True)
class Site:
    """One activation of a model.

    Args:
        layer: of the attention. part: ``z``, a head's output; ``resid``, what comes into the block; ``attn``, ``mlp``,
            what its parts add. head: of ``z``. slot: the position, -1 for the last, None for all of them.
    """

    layer: int
    part: SiteKind = "z"
    head: int | None = None
    slot: int | None = -1

    @property
    def label(self) -> str:
        """``L3H2``, ``L3 mlp``, with the position where it is not the last."""
        name = f"L{self.layer}H{self.head}" if self.part == "z" else f"L{self.layer} {self.part}"
        return name if self.slot == -1 else f"{name} at {'all' if self.slot is None else self.slot}"


@dataclass(frozen=True)
class Pair:
    """Two texts of the same length: the run that is changed, and the one that the activations come from.

    Args:
        base, donor: ``(n,)`` int64. metric: what is measured on the last position of either; what its ``repr`` says
            tells kept results apart.
    """

    base: Tensor
    donor: Tensor
    metric: Metric

    def __post_init__(self) -> None:
        if self.base.shape != self.donor.shape or self.base.dim() != 1:
            what = f"shapes {tuple(self.base.shape)} and {tuple(self.donor.shape)}"
            raise wrong("pair", what, "two texts of the same number of tokens, (n,)")


@dataclass(frozen=True)
class LogitDifference:
    """The metric logit(right) − logit(other)."""

    right: int
    other: int

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, self.right] - logits[:, self.other]


@dataclass(frozen=True)
class Probability:
    """The metric of one token's probability."""

    token: int

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.double().softmax(1)[:, self.token]


class SiteEdit(Edit):
    """Puts other activations in: row i of the batch is changed at site i, and nowhere else.

    Args:
        sites: one, or a group that is changed together, for each row of the batch. past: slots before this pass.
        change: from a site and what stands there, ``(rows, channels)``, to what is to stand there.
    """

    def __init__(self, sites: Sequence[Sequence[Site]], change: Callable[[int, Site, Tensor], Tensor]) -> None:
        super().__init__(Where())
        self.change = change
        self.at: dict[tuple[str, int], list[tuple[int, Site]]] = {}
        for row, group in enumerate(sites):
            for site in group:
                self.at.setdefault((site.part, site.layer), []).append((row, site))
        self.parts = tuple(part for part in ("resid", "attn", "mlp") if any(part == of for of, _ in self.at))

    def heads(self, z: Tensor, place: Place) -> Tensor | None:
        if ("z", place.layer) not in self.at:
            return None
        z = z.clone()
        for row, site in self.at["z", place.layer]:
            z[row, site.head, slots_of(site)] = self.change(row, site, z[row, site.head, slots_of(site)]).to(z.dtype)
        return z

    def hidden(self, x: Tensor, place: Place) -> Tensor | None:
        if (place.part, place.layer) not in self.at:
            return None
        x = x.clone()
        for row, site in self.at[place.part, place.layer]:
            x[row, slots_of(site)] = self.change(row, site, x[row, slots_of(site)]).to(x.dtype)
        return x


def slots_of(site: Site) -> slice:
    """Where in the pass the site is; the last position is also that of a pass of one token."""
    if site.slot is None:
        return slice(None)
    return slice(-1, None) if site.slot == -1 else slice(site.slot, site.slot + 1)


def read(trace: Trace, site: Site) -> Tensor:
    """What a traced pass of one text has at a site, ``(rows, channels)``."""
    if site.part == "z":
        return trace.get("z", site.layer)[0, site.head, slots_of(site)]
    return trace.get(site.part, site.layer)[0, slots_of(site)]


@dataclass(frozen=True)
class Effects(Result):
    """The effect of every site in every pair, ``(pairs, sites)`` float64.

    Args:
        name: of the sweep. sites: what was changed. values: effects. base, donor: the metric of the unchanged runs.
    """

    name: str
    sites: tuple[Site, ...]
    values: Tensor
    base: Tensor
    donor: Tensor

    def merge(self, other: Effects) -> Effects:
        """The pairs of both.

        Raises:
            ValueError: another sweep, or other sites.
        """
        if (self.name, self.sites) != (other.name, other.sites):
            raise wrong("other", f"{other.name} of {len(other.sites)} sites", f"{self.name} of the same sites")
        parts = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ("values", "base", "donor")}
        return replace(self, **parts)

    @property
    def mean(self) -> Tensor:
        """``(sites,)``."""
        return self.values.mean(0)

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Ends of the bootstrap's percentile interval of each mean, over pairs drawn with replacement."""
        return bootstrap(self.values, level, seed)

    def ranked(self) -> list[tuple[Site, float]]:
        """Sites by their mean effect, the largest first."""
        order = self.mean.argsort(descending=True, stable=True).tolist()
        return [(self.sites[i], float(self.mean[i])) for i in order]

    def table(self) -> list[dict[str, Any]]:
        low, high = self.interval()
        return [
            {"layer": s.layer, "part": s.part, "head": s.head, "slot": s.slot, "effect": float(self.mean[i])}
            | {"low": float(low[i]), "high": float(high[i]), "pairs": len(self.values)}
            for i, s in enumerate(self.sites)
        ]


class Sweep(Analysis[Pair, Effects]):
    """The base of patching: every site of a model is changed by itself, and a metric of the last position is read.

        effect = (m(patched) − m(base)) / (m(donor) − m(base))

    The interventions stand in one batch, a site a row. Where all sites are of the last position alone, everything
    before it is computed once and kept as a cache, so that a site costs a row of one token.

    Args:
        rows: interventions in a batch.
    """

    name = "patching"

    def __init__(self, rows: int = 32) -> None:
        if rows < 1:
            raise wrong("rows", str(rows), "at least one intervention in a batch")
        self.rows = rows

    @abstractmethod
    def sites(self, model: Any) -> Sequence[Site]:
        """What is changed, each by itself."""

    def edit(self, sites: Sequence[Sequence[Site]], donor: Trace, base: Trace) -> Edit:
        """The intervention of each row of a batch: the donor's activations, if not said otherwise."""
        return SiteEdit(sites, lambda row, site, x: read(donor, site))

    def effect(self, patched: Tensor, base: Tensor, donor: Tensor) -> Tensor:
        """The effect from the metric of three runs."""
        return (patched - base) / (donor - base)

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on, beside model and texts."""
        return {"sweep": type(self).__name__} | {k: v for k, v in vars(self).items() if k != "rows"}

    def run(self, subject: Any, data: Iterable[Pair], store: str | Path | None = None) -> Effects:
        """The effects in all pairs.

        Args:
            subject: a Transformers model that gives logits. store: a folder that keeps each pair's effects, so that a
                run that was stopped goes on where it was.

        Raises:
            ValueError: no pairs.
        """
        sites, found = tuple(self.sites(subject)), None
        for values, base, donor in self.measured(subject, sites, list(data), store):
            one = Effects(self.name, sites, values[None], base[None], donor[None])
            found = one if found is None else found.merge(one)
        if found is None:
            raise wrong("data", "no pairs", "at least one")
        return found

    def measured(
        self, model: Any, sites: Sequence[Site], pairs: Sequence[Pair], store: str | Path | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """``(effects (sites,), metric of base, of donor)`` of each pair, from the store where they are in it."""
        if store is None:
            yield from (self.one(model, sites, pair) for pair in pairs)
            return
        about = json.dumps([self.settings, [site.label for site in sites], fingerprint(model)], default=str)
        kept = Store(store)
        for pair in pairs:
            cell = PairCell(
                digest(about), digest(json.dumps([pair.base.tolist(), pair.donor.tolist(), repr(pair.metric)]))
            )
            object.__setattr__(cell, "work", lambda pair=pair: self.one(model, sites, pair))
            (outcome,) = run_cells([cell], kept, "regard.patch")
            if outcome.error is not None:
                raise wrong("pair", outcome.error, "one that can be patched", RuntimeError)
            row = outcome.figures or next(row for row in kept.rows() if row["key"] == cell.key)
            values, base, donor = (torch.tensor(x, dtype=torch.float64) for x in json.loads(str(row["effects"])))
            yield values, base, donor

    @torch.no_grad()
    def one(self, model: Any, sites: Sequence[Site], pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """One pair."""
        kinds: list[SiteKind] = sorted({site.part for site in sites})
        donor, base = Trace(*kinds), Trace(*kinds)
        ends = {}
        for trace, ids in ((donor, pair.donor), (base, pair.base)):
            with attach(model, edits=[trace]):
                ends[trace] = pair.metric(last_logits(model, ids[None]))
        patched = self.patched(model, [[site] for site in sites], pair, donor, base)
        values = self.effect(patched, ends[base].double(), ends[donor].double())
        return values.cpu(), ends[base][0].double().cpu(), ends[donor][0].double().cpu()

    @torch.no_grad()
    def patched(self, model: Any, groups: Sequence[Sequence[Site]], pair: Pair, donor: Trace, base: Trace) -> Tensor:
        """The metric with each group of sites changed together, ``(groups,)`` float64."""
        short = all(site.slot == -1 for group in groups for site in group) and len(pair.base) > 1
        cache = prefix(model, pair.base[None, :-1]) if short else None
        found = []
        for first in range(0, len(groups), self.rows):
            some = groups[first : first + self.rows]
            ids = (pair.base[-1:] if short else pair.base)[None].expand(len(some), -1)
            own = None if cache is None else repeated(cache, len(some))
            with attach(model, edits=[self.edit(some, donor, base)]):
                found.append(pair.metric(last_logits(model, ids, own)).double())
        return torch.cat(found)


def last_logits(model: Any, ids: Tensor, cache: Any = None) -> Tensor:
    """``(b, vocabulary)``: the logits of the last position."""
    more = {"use_cache": False} if cache is None else {"use_cache": True, **caches.given(model, cache)}
    return model(input_ids=ids.to(model.device), logits_to_keep=1, **more).logits[:, -1]


def prefix(model: Any, ids: Tensor) -> Any:
    """The cache of a text."""
    out = model(input_ids=ids.to(model.device), use_cache=True, logits_to_keep=1)
    return next(value for value in out.values() if caches.is_cache(value))


def repeated(cache: Any, rows: int) -> Any:
    """The same cache for so many rows, apart from the one it was."""
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(rows)
    return own


@dataclass(frozen=True)
class PairCell(Cell):
    """The effects of one pair, by what they depend on.

    Args:
        sweep: digest of the sweep, its sites and the model. pair: digest of the texts and the metric.
    """

    kind = "patching"
    sweep: str
    pair: str
    work: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = field(default=None, compare=False, repr=False)

    @property
    def fields(self) -> dict[str, Scalar]:
        return {"sweep": self.sweep, "pair": self.pair}

    def run(self, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        assert self.work is not None
        return {"effects": json.dumps([part.tolist() for part in self.work()])}


def digest(text: str) -> str:
    """16 hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """What tells a model's weights from others: its class and sums of its parameters."""
    sums = [f"{float(p.double().sum()):.9e} {float(p.double().abs().sum()):.9e}" for p in model.parameters()]
    return digest(type(model).__name__ + " ".join(sums))


def heads_of(model: Any) -> list[Head]:
    """Every head of a Transformers model of text."""
    text = model.config.get_text_config()
    return [(layer, head) for layer in range(text.num_hidden_layers) for head in range(text.num_attention_heads)]


def by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    """Heads as `core.edit.Where` takes them."""
    found: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        found.setdefault(layer, []).append(head)
    return found


def random_like(heads: Sequence[Head], every: Sequence[Head], seed: int) -> list[Head]:
    """As many other heads from the same layers, drawn at random: the control that a claim about ``heads`` needs.

    Raises:
        ValueError: a layer has too few others.
    """
    draw, found = random.Random(seed), []
    for layer, chosen in by_layer(heads).items():
        others = sorted(head for at, head in every if at == layer and head not in chosen)
        if len(others) < len(chosen):
            raise wrong("heads", f"{len(chosen)} of layer {layer}", f"at most {len(others)}, so that others are left")
        found += [(layer, head) for head in sorted(draw.sample(others, len(chosen)))]
    return found
