"""The law about masks of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch
from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.laws.mechanism.equation import gradients_of
from regard.laws.mechanism.subject import BATCH, SHORT, Broken, Subject, Unclaimed, batch_of, real_rows, same

BEYOND = 277  # more than a tile of rows, and more pairs than the kernels take at once


def mask(subject: Subject) -> str:
    """A mask hides what it says and nothing else: one that hides nothing changes nothing, a triangle is causality,
    what is hidden has no weight, no influence and no gradient, and forward stays the definition."""
    if not subject.traits.masked:
        raise Unclaimed("single pairs cannot be hidden")
    worst, mechanism = 0.0, subject.cast(torch.float64)
    for n, m in ((SHORT, SHORT), (SHORT, 17), (BEYOND, BEYOND)):
        layouts = [(name, layout) for name, layout in subject.layouts(n, m) if n < BEYOND or layout.plain]
        for (name, layout), given in zip(layouts, cycle(masks(subject, n, m)), strict=False):
            where = f"{name}, n={n}, m={m}, mask of {tuple(given.shape)}"
            worst = max(worst, hidden(subject, mechanism, replace(layout, mask=given), n, m, where))
    for causal in subject.directions():
        idle(subject, mechanism, Layout(causal=causal))
        apart(subject, mechanism, Layout(causal=causal))
    return f"{worst:.0e}"


def masks(subject: Subject, n: int, m: int) -> Iterator[Tensor]:
    """Masks of every shape that a layout takes, each with rows that see nothing."""
    heads, sequences = subject.example.heads, batch_of(n, m)
    generator = torch.Generator().manual_seed(13)
    for batch, rows in ((sequences, heads), (1, heads), (sequences, 1), (1, 1)):
        drawn = torch.rand(batch, rows, n, m, generator=generator) < 0.6
        drawn[:, :, 3 :: max(n // 3, 1)] = False
        yield drawn.to(subject.device)


def hidden(subject: Subject, mechanism: Mechanism, layout: Layout, n: int, m: int, where: str) -> float:
    """The worst difference of forward and its gradients from the definition; Broken if a hidden entry has weight."""
    assert layout.mask is not None
    inputs, rows = subject.draw(n, m), real_rows(layout, n, m, batch_of(n, m))
    a = mechanism.weights(inputs.q, inputs.k, layout, **inputs.signals)
    if a.masked_fill(layout.mask, 0).abs().max() > 0:
        raise Broken(f"{where}: a hidden entry of A is not zero")
    worst = same(subject.call(inputs, layout, mechanism), subject.define(inputs, layout, mechanism), 1e-9, where, rows)
    if layout.causal or layout.segments is None:
        part = mechanism.rows(inputs.q, inputs.k, layout, slice(2, 7), **inputs.signals)
        same(part, a[:, :, 2:7], 1e-9, f"rows 2:7, {where}")
    kept = rows.to(subject.device)
    wanted = gradients_of(subject.define, subject, inputs, layout, mechanism, kept)
    found = gradients_of(subject.call, subject, inputs, layout, mechanism, kept)
    for label, want in wanted.items():
        worst = max(worst, same(found[label], want, 1e-8, f"d {label}, {where}"))
    blind = ~layout.mask.any(-1).expand(inputs.q.shape[:3])
    if found["q"][blind].abs().sum() > 0:
        raise Broken(f"{where}: a query that sees nothing has a gradient")
    return worst


def idle(subject: Subject, mechanism: Mechanism, layout: Layout) -> None:
    """Broken if a mask that hides nothing, or no more than causality does, changes anything."""
    n = SHORT
    m = 17 if layout.causal or subject.traits.cross else n
    inputs, nothing = subject.draw(n, m), torch.ones(1, 1, n, m, dtype=torch.bool, device=subject.device)
    plain = subject.call(inputs, layout, mechanism)
    everything = subject.call(inputs, replace(layout, mask=nothing), mechanism)
    same(everything, plain, 1e-9, f"causal={layout.causal}, a mask that hides nothing")
    triangle = nothing.tril(m - n)
    if layout.causal:
        cut = subject.call(inputs, replace(layout, mask=triangle), mechanism)
        same(cut, plain, 1e-9, "causal, a triangle")
        # Where order does not matter, the causal form is the bidirectional one under a triangle.
        if subject.traits.bidirectional and subject.traits.equivariant:
            same(subject.call(inputs, Layout(mask=triangle), mechanism), plain, 1e-9, "bidirectional, a triangle")


def apart(subject: Subject, mechanism: Mechanism, layout: Layout) -> None:
    """Broken if keys that are hidden from some queries of some heads have a part in those rows."""
    n = m = SHORT
    generator = torch.Generator().manual_seed(17)
    queries, keys = (torch.rand(BATCH, subject.example.heads, size, generator=generator) < 0.5 for size in (n, m))
    keys = keys[:, 0]
    shut = queries[..., :, None] & keys[:, None, None, :]
    given = replace(layout, mask=(~shut).to(subject.device))
    old, new, there = subject.draw(n), subject.draw(n, seed=1), keys.to(subject.device)

    def changed(name: str, tensor: Tensor) -> Tensor:
        if name not in ("k", "v"):  # a hidden token is still one, and its signals may be about others
            return tensor
        where = there[:, None, :].view(BATCH, 1, m, *[1] * (tensor.dim() - 3))
        return torch.where(where, new.tensors[name], tensor)

    before = subject.call(old, given, mechanism)
    after = subject.call(old.map(changed), given, mechanism)
    unmoved = queries.to(subject.device)[..., None]
    same(after * unmoved, before * unmoved, 1e-9, f"causal={layout.causal}, other hidden keys")
    if torch.equal(after, before):
        raise Broken(f"causal={layout.causal}: a mask of some queries hides keys from all")
