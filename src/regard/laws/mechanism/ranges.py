"""The law about signals: what is outside of their declared ranges is named, and at the ends of these all is exact."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, Signal
from regard.laws.mechanism.equation import gradients_of
from regard.laws.mechanism.order import in_chunks
from regard.laws.mechanism.subject import Broken, Inputs, Subject, same

LENGTH = 67
STRONG = (-1e4, -3e37, -torch.inf)
"""What a signal without a lower end, and with an upper one, takes beside that: logarithms of gates that shut."""


def ranges(subject: Subject) -> str:
    """A signal that is out of its range somewhere, or NaN, is named. At the ends of ranges, −inf where there is none
    below, `forward` is the definition with its gradients, in float32 too, and one token after another."""
    if not subject.mechanism.signals:
        return "no signals"
    mechanism = subject.cast(torch.float64)
    if subject.device == "cpu":
        refused(subject, mechanism)
    layout = Layout(causal=subject.directions()[0])
    inputs = extreme(subject)
    rows = torch.ones(inputs.q.shape[0], LENGTH, dtype=torch.bool, device=subject.device)
    want, out = subject.define(inputs, layout, mechanism), subject.call(inputs, layout, mechanism)
    worst = same(out, want, 1e-9, "signals at their ends")
    single = inputs.map(lambda _, tensor: tensor.float())
    same(subject.call(single, layout, subject.cast(torch.float32)), want, 1e-4, "signals at their ends, float32")
    if layout.causal and subject.traits.resumable:
        steps = in_chunks(inputs, [1] * LENGTH, None, mechanism, subject.device)
        worst = max(worst, same(steps, out, 1e-9, "signals at their ends, token by token"))
    slopes = [gradients_of(way, subject, inputs, layout, mechanism, rows) for way in (subject.call, subject.define)]
    for label, slope in slopes[1].items():
        worst = max(worst, same(slopes[0][label], slope, 1e-8, f"d {label}, signals at their ends"))
    return f"{worst:.0e}"


def extreme(subject: Subject) -> Inputs:
    """Inputs whose signals are, in a tenth of their entries, at one of their ends."""
    inputs, generator = subject.draw(LENGTH), torch.Generator().manual_seed(13)

    def moved(name: str, tensor: Tensor) -> Tensor:
        ends = limits(subject.mechanism.signals[name]) if name in inputs.signals else []
        if not ends:
            return tensor
        chosen = torch.tensor(ends)[torch.randint(len(ends), tensor.shape, generator=generator)]
        there = torch.rand(tensor.shape, generator=generator) < 0.1
        return torch.where(there.to(tensor.device), chosen.to(tensor), tensor)

    return inputs.map(moved)


def limits(spec: Signal) -> Sequence[float]:
    """The ends of a signal's range, `STRONG` in the place of a missing lower one."""
    below = STRONG if math.isinf(spec.low) and math.isfinite(spec.high) else (spec.low,)
    return [end for end in (*below, spec.high) if math.isfinite(end) or (below is STRONG and end < 0)]


def refused(subject: Subject, mechanism: Mechanism) -> None:
    """Broken unless each signal with one entry outside of its range, or NaN, raises an error that names it."""
    good = subject.draw(LENGTH)
    layout = Layout(causal=subject.directions()[0])
    for name, value in outside(mechanism):
        bad = good.signals[name].clone()
        bad.view(-1)[-1] = value
        try:
            subject.call(replace(good, signals=good.signals | {name: bad}), layout, mechanism)
        except ValueError as error:
            if name not in str(error) or "want" not in str(error):
                raise Broken(f"{name} of {value}: the message does not name it and what is wanted: {error}") from error
        else:
            raise Broken(f"{name} of {value}: accepted without an error")


def outside(mechanism: Mechanism) -> Iterator[tuple[str, float]]:
    """Signals, each with a value that it must not take."""
    for name, spec in mechanism.signals.items():
        yield name, math.nan
        yield from ((name, end) for end in (spec.low - 1, spec.high + 1) if math.isfinite(end))
