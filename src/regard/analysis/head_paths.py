"""Path patching into other heads: which earlier heads speak to their queries, keys or values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from regard.analysis.base import Head
from regard.analysis.path_patching import PathPatching
from regard.analysis.sweep import Pair, Site, SiteEdit, by_layer, heads_of, last_logits, prefix, read, repeated
from regard.core.edit import Edit, Place, Where
from regard.core.errors import wrong
from regard.edits.trace import Trace
from regard.hosts.attach import attach

Into = Literal["q", "k", "v"]


class PathsToHeads(PathPatching):
    """Effect of each head on the output by its direct path into the queries, keys or values of some later heads.

        effect = (m(received) − m(base)) / (m(donor) − m(base))

    In a first run the sender has the donor's output at one position, and every other head keeps its base output there;
    what the receivers' queries (or keys, or values) become at that position is noted. In a second run on the base text
    the receivers alone are given these, and everything after them is computed anew. MLPs are frozen in neither. What
    stands before the position is computed once and kept as a cache.

    Args:
        receivers: heads, ``(layer, head)``. into: ``q``, ``k`` or ``v``. slot: the position, -1 for the last. rows:
            interventions in a batch.

    Raises:
        ValueError: no receivers, some of the first layer, which no head speaks to, or another ``into``.

    Paper: Merullo et al., arXiv 2310.08744; both runs as in the authors' code, which stops at the first
    receiver's layer where this goes through all senders below the last one's.
    """

    name = "paths_to_heads"

    def __init__(self, receivers: Sequence[Head], into: Into = "q", slot: int = -1, rows: int = 32) -> None:
        super().__init__(rows)
        if into not in get_args(Into):
            raise wrong("into", repr(into), "q, k or v")
        if not receivers or min(layer for layer, _ in receivers) < 1:
            raise wrong("receivers", f"{list(receivers)}", "heads of the second layer or of later ones")
        self.receivers, self.slot = sorted(set(receivers)), slot
        self.into: Into = into

    def sites(self, model: Any) -> list[Site]:
        last = max(layer for layer, _ in self.receivers)
        return [Site(layer, "z", head, self.slot) for layer, head in heads_of(model) if layer < last]

    def edit(self, sites: Sequence[Sequence[Site]], donor: Trace, base: Trace) -> Edit:
        every = {(at, h) for kind, at in base.kept if kind == "z" for h in range(base.get("z", at).shape[1])}
        rows = [[*some, *frozen(every, some, some[0].slot)] for some in sites]
        sent = [set(some) for some in sites]

        def change(row: int, site: Site, x: Tensor) -> Tensor:
            return read(donor if site in sent[row] else base, site)

        return SiteEdit(rows, change)

    @torch.no_grad()
    def patched(self, model: Any, groups: Sequence[Sequence[Site]], pair: Pair, donor: Trace, base: Trace) -> Tensor:
        n, found = len(pair.base), []
        at = self.slot if self.slot < 0 else self.slot - n  # counted from the end, so that it holds behind a cache
        cache = prefix(model, pair.base[None, :at]) if at > -n else None
        for first in range(0, len(groups), self.rows):
            some = [[replace(site, slot=at) for site in group] for group in groups[first : first + self.rows]]
            ids, trace = pair.base[None, at:].expand(len(some), -1), Trace(self.into)
            with attach(model, edits=[self.edit(some, donor, base), trace]):
                last_logits(model, ids, None if cache is None else repeated(cache, len(some)))
            told = {layer: trace.get(self.into, layer) for layer, _ in self.receivers}
            with attach(model, edits=[Received(by_layer(self.receivers), self.into, at, told)]):
                ends = last_logits(model, ids, None if cache is None else repeated(cache, len(some)))
            found.append(pair.metric(ends).double())
        return torch.cat(found)


def frozen(every: set[Head], senders: Sequence[Site], slot: int | None) -> list[Site]:
    """The sites of all heads but the senders."""
    spoken = {(site.layer, site.head) for site in senders}
    return [Site(layer, "z", head, slot) for layer, head in sorted(every) if (layer, head) not in spoken]


class Received(Edit):
    """Gives some heads other queries, keys or values at one position, a row of the batch each.

    Args:
        heads: by layer. into: ``q``, ``k`` or ``v``. slot: the position. told: by layer, all of them, of which those of
            the position are taken.
    """

    def __init__(self, heads: Mapping[int, Sequence[int]], into: Into, slot: int, told: Mapping[int, Tensor]) -> None:
        super().__init__(Where(heads=heads))
        self.into, self.slot, self.told = into, slot, told

    def queries(self, q: Tensor, k: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        if self.into == "v":
            return None
        return (self.put(q, place), k) if self.into == "q" else (q, self.put(k, place))

    def values(self, v: Tensor, place: Place) -> Tensor | None:
        return self.put(v, place) if self.into == "v" else None

    def put(self, x: Tensor, place: Place) -> Tensor:
        """``x`` with what was told at the position."""
        x = x.clone()
        x[:, :, self.slot] = self.told[place.layer][:, :, self.slot].to(x.dtype)
        return x


def into_every(model: Any, pairs: Sequence[Pair], receivers: Sequence[Head], slot: int = -1) -> dict[Into, Any]:
    """The effects into queries, keys and values, one after the other."""
    ways: tuple[Into, ...] = get_args(Into)
    return {way: replace(PathsToHeads(receivers, way, slot).run(model, pairs), name=f"into {way}") for way in ways}
