"""Queries that wait: two memories worked out by hand, and the same as loops over plain lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.core.layout import Layout
from regard.mechanisms.sparse.waiting import WaitToAttend


def chosen(mechanism, q, k):
    """The keys that each query retrieves, by numbers per token."""
    q, k = (torch.tensor(x, dtype=torch.float64)[None, None, :, None] for x in (q, k))
    return [row.nonzero()[:, 0].tolist() for row in mechanism.weights(q, k)[0, 0]]


@pytest.mark.parametrize(
    ("order", "want"),
    [
        # With the second chunk, queries 0 and 1 leave and retrieve the largest key, 3, and the least, 1.
        ("lra", [[3], [1], [3], [1], [3], [1]]),  # which are retrieved last: 1 and 3 stay, beside 4 and 5
        ("lfa", [[3], [1], [3], [1], [3], [1]]),
        ("fifo", [[3], [1], [3], [2], [3], [2]]),  # 2 and 3 stay
    ],
)
def test_two_memories_by_hand(order, want):
    mechanism = WaitToAttend(memory=2, wait=2, chunk=2, top=1, order=order)
    assert chosen(mechanism, [1, -1, 1, -1, 1, -1], [5, 1, 2, 9, 3, 4]) == want


def test_what_is_retrieved_often_outlives_what_was_retrieved_last():
    """Key 0 is retrieved twice with the first chunk, and once with the second, as key 2: one of them has to go."""
    q, k = [1, 1, -1, 0.1, 1, 1], [9, 5, -9, 1, 2, 3]
    assert chosen(WaitToAttend(1, 0, 2, 1, "lfa"), q, k) == [[0], [0], [2], [0], [0], [0]]
    assert chosen(WaitToAttend(1, 0, 2, 1, "lra"), q, k) == [[0], [0], [2], [0], [5], [5]]  # 2 stays, as the newer
    assert chosen(WaitToAttend(1, 0, 2, 1, "fifo"), q, k) == [[0], [0], [2], [1], [5], [5]]  # 1 stays, and then 3


def plain(mechanism, q, k, v):
    """One head of one sequence: everything that is remembered stands in lists."""
    n, keys, waiting, outs = len(q), [], [], [None] * len(q)
    for start in range(0, n, mechanism.chunk):
        stop = min(start + mechanism.chunk, n)
        keys += [{"place": j, "last": j, "times": 0} for j in range(start, stop)]
        waiting += range(start, stop)
        leaving = waiting if stop == n else waiting[: max(len(waiting) - mechanism.wait, 0)]
        waiting = waiting[len(leaving) :]
        hits = []
        for i in leaving:
            found = sorted(keys, key=lambda key: -float(q[i] @ k[key["place"]]))[: mechanism.top]
            shares = torch.stack([q[i] @ k[key["place"]] for key in found]).mul(q.shape[1] ** -0.5).softmax(0)
            outs[i] = sum(share * v[key["place"]] for share, key in zip(shares, found, strict=True))
            hits += found
        for key in hits:
            key["last"], key["times"] = stop, key["times"] + 1
        name = {"lra": "last", "lfa": "times"}.get(mechanism.order, "place")
        keys = sorted(keys, key=lambda key: (key[name], key["place"]))[-mechanism.memory :]
    return torch.stack(outs)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 31),
    st.integers(1, 9),
    st.integers(0, 7),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["lra", "lfa", "fifo"]),
)
def test_the_mechanism_is_that_of_plain_lists(n, memory, wait, chunk, top, order):
    mechanism = WaitToAttend(memory, wait, chunk, top, order)
    draw = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(2, 2, n, d, generator=draw, dtype=torch.float64) for d in (3, 3, 5))
    want = torch.stack([torch.stack([plain(mechanism, q[b, h], k[b, h], v[b, h]) for h in (0, 1)]) for b in (0, 1)])
    torch.testing.assert_close(mechanism(q, k, v), want)
    torch.testing.assert_close(mechanism.weights(q, k) @ v, want)


def test_with_room_for_all_it_is_bidirectional_softmax():
    q, k, v = (torch.randn(2, 3, 11, d, dtype=torch.float64) for d in (5, 5, 7))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(WaitToAttend(11, 11, 4, 11)(q, k, v), want)


def test_a_query_sees_what_came_while_it_waited_and_no_more():
    q, k = torch.randn(1, 1, 40, 5), torch.randn(1, 1, 40, 5)
    a = WaitToAttend(memory=40, wait=8, chunk=4, top=40).weights(q, k)[0, 0]
    for i in range(40):
        turn = min(-(-(i + 1 + 8) // 4) * 4, 40)  # the chunk with whose end more than 8 have come behind it
        assert a[i].nonzero()[-1].item() == turn - 1


def test_what_it_cannot_do_is_named():
    x = torch.randn(1, 1, 5, 3)
    with pytest.raises(ValueError, match="order: got 'lru'"):
        regard.build("wait_to_attend", order="lru")
    with pytest.raises(ValueError, match="memory, wait, chunk, top: got 3, -1, 2, 1"):
        WaitToAttend(3, -1, 2, 1)
    with pytest.raises(ValueError, match="bidirectional only"):
        WaitToAttend()(x, x, x, Layout(causal=True))
