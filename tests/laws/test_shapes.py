"""Every registered mechanism at drawn shapes: lengths, heads over groups, padding anywhere, documents, branches."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.atlas import entries
from regard.core.layout import Layout
from regard.laws.mechanism.subject import Subject, real_rows, same

MECHANISMS = {entry.name: entry.thing for entry in entries() if entry.kind == "mechanism"}
EVERY = pytest.mark.parametrize("name", MECHANISMS)


def drawn(data, name) -> Subject:
    """An example of the mechanism; with other heads where nothing in it is made for so many, over any groups."""
    example = data.draw(st.sampled_from(MECHANISMS[name].examples()))
    heads = data.draw(st.sampled_from((example.heads, 1, 5, 6, 12)))
    heads = heads if takes(example, heads) else example.heads
    groups = [g for g in range(1, heads + 1) if heads % g == 0] if example.mechanism.traits.grouped else [heads]
    return Subject(replace(example, heads=heads, kv_heads=data.draw(st.sampled_from(groups))))


def takes(example, heads) -> bool:
    """Whether the mechanism takes so many heads, and says what it wants if it does not."""
    subject = Subject(replace(example, heads=heads, kv_heads=heads))
    try:
        subject.call(subject.draw(3, dtype=torch.float32), Layout(causal=subject.directions()[0]))
    except ValueError as error:
        if "heads" not in str(error):
            raise
        return False
    return True


def takes_values(subject, d, e) -> bool:
    """Whether values may have so many numbers, where the mechanism says what it wants if they may not."""
    try:
        subject.call(subject.draw(3, d=d, e=e, dtype=torch.float32), Layout(causal=subject.directions()[0]))
    except ValueError as error:
        if not str(error).startswith("v: "):
            raise
        return False
    return True


def layout_of(data, subject, n, m) -> Layout | None:
    """A layout that the mechanism takes for n queries and m keys, None if there is none."""
    causal = data.draw(st.sampled_from(subject.directions()))
    if not subject.fits(n, m, causal):
        return None
    kinds = ["plain", "keys"] + ["segments"] * (subject.traits.packed and n <= m)
    kind = data.draw(st.sampled_from(kinds))
    flags = torch.tensor(data.draw(st.lists(st.booleans(), min_size=2 * m, max_size=2 * m))).view(2, m)
    if kind == "keys":
        return Layout(causal=causal, key_mask=flags)
    return Layout(causal=causal, segments=flags.cumsum(1) if kind == "segments" else None)


@EVERY
@settings(max_examples=6, deadline=None)
@given(data=st.data(), n=st.integers(1, 23), m=st.integers(1, 23), equal=st.booleans(), e=st.integers(1, 9))
def test_forward_is_the_definition(name, data, n, m, equal, e):
    subject = drawn(data, name)
    n = m if equal else n
    layout = layout_of(data, subject, n, m)
    if layout is None:
        return
    mechanism = subject.cast(torch.float64)
    fixed = bool([*mechanism.parameters(), *mechanism.buffers()])
    d = subject.example.head_dim if fixed else data.draw(st.sampled_from((2, 5, 8)))
    e = e if takes_values(subject, d, e) else subject.example.value_dim if fixed else d
    inputs = subject.draw(n, m, batch=2, d=d, e=e)
    rows = real_rows(layout, n, m, 2)
    same(subject.call(inputs, layout, mechanism), subject.define(inputs, layout, mechanism), 1e-8, name, rows)


@EVERY
@settings(max_examples=4, deadline=None)
@given(data=st.data(), n=st.integers(2, 23))
def test_a_state_can_be_continued_in_two_ways_from_any_token(name, data, n):
    """What is continued first leaves no trace in what is continued from the same state next."""
    subject = drawn(data, name)
    if not subject.traits.causal or not subject.traits.resumable:
        return
    mechanism, cut = subject.cast(torch.float64), data.draw(st.integers(1, n - 1))
    one, two = subject.draw(n, batch=2), subject.draw(n, batch=2, seed=1)
    head = one.map(lambda _, x: x[:, :, :cut])
    _, state = mechanism.extend(head.q, head.k, head.v, mechanism.start(2, dtype=torch.float64), **head.signals)
    for other in (one, two, one):
        tail = other.map(lambda _, x: x[:, :, cut:])
        whole = head.map(lambda name, x, tail=tail: torch.cat([x, tail.tensors[name]], 2))
        want = subject.call(whole, Layout(causal=True), mechanism)[:, :, cut:]
        got, _ = mechanism.extend(tail.q, tail.k, tail.v, state, **tail.signals)
        same(got, want, 1e-9, name)
