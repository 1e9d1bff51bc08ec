"""The law about biases: what a call adds to the scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch
from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.laws.mechanism.equation import gradients_of
from regard.laws.mechanism.subject import SHORT, Broken, Inputs, Subject, Unclaimed, batch_of, real_rows, same

BEYOND = 277  # more than a tile of rows
LOUD = 3.0


def bias(subject: Subject) -> str:
    """A bias is added to the scores: zeros change nothing; where rows are shares, weights change by its exponential and
    the rest of the row; rows without it stay; forward is the definition, with the gradient of the bias."""
    if not subject.traits.biased:
        raise Unclaimed("nothing can be added to the scores")
    worst, mechanism = 0.0, subject.cast(torch.float64)
    for n, m in ((SHORT, SHORT), (SHORT, 17), (BEYOND, BEYOND)):
        layouts = [(name, layout) for name, layout in subject.layouts(n, m) if n < BEYOND or layout.plain]
        for (name, layout), given in zip(layouts, cycle(drawn(subject, n, m)), strict=False):
            where = f"{name}, n={n}, m={m}, bias of {tuple(given.shape)}"
            worst = max(worst, added(subject, mechanism, replace(layout, bias=given), n, m, where))
    for causal in subject.directions():
        inputs, layout = subject.draw(SHORT), Layout(causal=causal)
        plain = subject.call(inputs, layout, mechanism)
        nothing = torch.zeros(1, 1, SHORT, SHORT, dtype=torch.float64, device=subject.device)
        same(subject.call(inputs, replace(layout, bias=nothing), mechanism), plain, 1e-9, "a bias of zeros")
        shown(subject, mechanism, inputs, layout)
    return f"{worst:.0e}"


def drawn(subject: Subject, n: int, m: int) -> Iterator[Tensor]:
    """Biases of every shape that a layout takes."""
    heads, sequences, generator = subject.example.heads, batch_of(n, m), torch.Generator().manual_seed(19)
    for batch, rows in ((sequences, heads), (1, heads), (sequences, 1), (1, 1)):
        yield (LOUD * torch.randn(batch, rows, n, m, generator=generator, dtype=torch.float64)).to(subject.device)


def added(subject: Subject, mechanism: Mechanism, layout: Layout, n: int, m: int, where: str) -> float:
    """The worst difference of forward from the definition, of the gradients too, those of the bias among them."""
    assert layout.bias is not None
    inputs, rows = subject.draw(n, m), real_rows(layout, n, m, batch_of(n, m))
    worst = same(subject.call(inputs, layout, mechanism), subject.define(inputs, layout, mechanism), 1e-9, where, rows)
    a = mechanism.weights(inputs.q, inputs.k, layout, **inputs.signals)
    if layout.causal or layout.segments is None:
        part = mechanism.rows(inputs.q, inputs.k, layout, slice(2, 7), **inputs.signals)
        same(part, a[:, :, 2:7], 1e-9, f"rows 2:7, {where}")
    kept, slopes = rows.to(subject.device), []
    for function in (subject.define, subject.call):
        leaf = layout.bias.clone().requires_grad_()
        given = replace(layout, bias=leaf)
        out = function(inputs, given, mechanism) * kept[:, None, :, None]
        weighting = torch.sin(torch.arange(out.numel(), device=out.device, dtype=out.dtype)).view_as(out)
        slopes.append(torch.autograd.grad((out * weighting).sum(), leaf)[0])
    worst = max(worst, same(slopes[1], slopes[0], 1e-8, f"d bias, {where}"))
    wanted = gradients_of(subject.define, subject, inputs, layout, mechanism, kept)
    found = gradients_of(subject.call, subject, inputs, layout, mechanism, kept)
    return max(worst, *(same(found[label], want, 1e-8, f"d {label}, {where}") for label, want in wanted.items()))


def shown(subject: Subject, mechanism: Mechanism, inputs: Inputs, layout: Layout) -> None:
    """Broken unless A changes in the rows that have a bias, as it must, and in no other."""
    given = next(drawn(subject, SHORT, SHORT))
    bare = torch.arange(SHORT, device=given.device) % 3 == 1
    given = given.masked_fill(bare[:, None], 0)
    before = mechanism.weights(inputs.q, inputs.k, layout, **inputs.signals)
    after = mechanism.weights(inputs.q, inputs.k, replace(layout, bias=given), **inputs.signals)
    where = f"causal={layout.causal}"
    same(after[:, :, bare], before[:, :, bare], 1e-9, f"{where}: rows without a bias")
    seen = mechanism.support(SHORT, SHORT, layout, given.device).expand_as(before)
    if torch.equal(after, before):
        raise Broken(f"{where}: a bias changes nothing")
    if subject.traits.rows is None or subject.traits.sign != "nonnegative":
        return
    sums = after.sum(-1)
    if sums.max() > 1 + 1e-9 or (subject.traits.rows == "one" and (sums[seen.any(-1)] - 1).abs().max() > 1e-9):
        raise Broken(f"{where}: a row sums to {sums.max().item():.6f} under a bias")
    apart = (after.log() - before.log() - given).masked_fill(~seen, torch.nan)
    spread = apart - apart.nanmean(-1, keepdim=True)
    error = spread.nan_to_num(0).abs().max().item()
    if not error <= 1e-6:
        raise Broken(f"{where}: weights do not change by the exponential of the bias, but by {error:.1e} more or less")
