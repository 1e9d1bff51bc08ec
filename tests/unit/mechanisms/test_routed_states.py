"""Routed attention that goes on from its state: sequences with padding of their own, and batches that change."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regard.core.layout import Layout
from regard.mechanisms.sparse import routed
from regard.mechanisms.sparse.moba import MoBA
from regard.mechanisms.sparse.routed import RoutedBlocks

MADE = [MoBA(3, 2), RoutedBlocks("bound", 2, 4), RoutedBlocks("oracle", 4, 3)]


def padded(lengths, total, front, generator):
    """``(b, total)`` bool: as many real tokens, behind the padding or anywhere."""
    if front:
        return torch.arange(total) >= total - torch.tensor(lengths)[:, None]
    places = torch.stack([torch.randperm(total, generator=generator) for _ in lengths])
    return places < torch.tensor(lengths)[:, None]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(MADE), st.lists(st.integers(0, 30), min_size=1, max_size=4), st.booleans(),
    st.lists(st.integers(1, 16), min_size=1, max_size=6), st.integers(0, 10**6),
)  # fmt: skip
@example(MADE[0], [30, 4], True, [16, 1, 1, 1, 1, 1], 0)
def test_each_sequence_of_a_padded_batch_goes_on_as_if_alone(made, lengths, front, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, before = len(lengths), max(lengths)
    first = padded(lengths, before, front, generator)
    steps = [16] * (before // 16) + [before % 16] * bool(before % 16) + steps
    real = torch.cat([first, torch.ones(batch, sum(steps) - before, dtype=torch.bool)], 1)
    q = torch.randn(batch, 4, sum(steps), 5, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, batch, 2, sum(steps), 5, generator=generator, dtype=torch.float64)
    if front:  # is not read then
        k, v = (x.masked_fill(~real[:, None, :, None], torch.nan) for x in (k, v))
    state, outs = made.start(batch, dtype=torch.float64), []
    for part in torch.arange(sum(steps)).split(steps):
        some = slice(int(part[0]), int(part[-1]) + 1)
        out, state = made.extend(q[:, :, some], k[:, :, some], v[:, :, some], state, real[:, some])
        outs.append(out)
    for row in range(batch):
        alone = (x[row : row + 1, :, real[row]] for x in (q, k, v))
        torch.testing.assert_close(torch.cat(outs, 2)[row, :, real[row]], made(*alone, Layout(causal=True))[0])


@pytest.mark.parametrize("made", MADE, ids=repr)
def test_shorter_sequences_go_on_when_the_longest_has_left(made):
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 2, 2, 41, 5, generator=generator, dtype=torch.float64)
    real = torch.arange(41) >= torch.tensor([[0], [22]])
    _, state = made.extend(q[:, :, :40], k[:, :, :40], v[:, :, :40], made.start(2, dtype=torch.float64), real[:, :40])
    last = (x[1:, :, 40:] for x in (q, k, v))
    out, _ = made.extend(*last, state.select(torch.tensor([1])), real[1:, 40:])
    whole = made(*(x[1:, :, 22:] for x in (q, k, v)), Layout(causal=True))
    torch.testing.assert_close(out, whole[:, :, -1:])


def test_a_step_behind_padding_copies_no_keys(monkeypatch):
    made, generator = MADE[0], torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 2, 2, 31, 5, generator=generator)
    real = torch.arange(31) >= torch.tensor([[0], [3]])
    _, state = made.extend(q[:, :, :30], k[:, :, :30], v[:, :, :30], made.start(2), real[:, :30])
    asked = []
    monkeypatch.setattr(routed, "ordered", lambda x, order: asked.append(order.shape[1]) or x[:, :, : order.shape[1]])
    made.extend(q[:, :, 30:], k[:, :, 30:], v[:, :, 30:], state, real[:, 30:])
    assert sum(asked) <= made.router.block
