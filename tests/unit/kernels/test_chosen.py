"""Attention to chosen blocks: ties, positions of their own, half precision, and what is refused."""

from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regard.core.mechanism import masked_softmax, repeat_heads
from regard.kernels import chosen
from regard.patterns.choice import Choice, Rows, best
from regard.routers.blocks import Mean


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(0, 11), st.integers(0, 10**6))
def test_best_are_those_of_a_stable_sort(size, count, seed):
    scores = torch.randint(0, 3, (2, size), generator=torch.Generator().manual_seed(seed)).float()
    scores = scores.masked_fill(scores == 2, -torch.inf)
    order = scores.sort(dim=-1, descending=True, stable=True)
    for row in range(2):
        want = [int(i) for i, x in zip(order.indices[row], order.values[row], strict=True) if x > -torch.inf][:count]
        assert [i for i in best(scores, count)[row].tolist() if i >= 0] == sorted(want)


def test_nan_is_chosen_in_its_row_alone():
    row = torch.tensor([1.0, 2, 1, torch.nan, 1])
    for others in ([3.0, 3, 3, 3, 3], [1.0, 2, 3, 4, 5]):  # with and without equal ones
        assert best(torch.stack([row, torch.tensor(others)]), 3)[0].tolist() == [0, 1, 3]
    assert best(torch.tensor([[torch.nan, -torch.inf]]), 5).tolist() == [[0, -1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("n", "block", "budget", "slopes", "way"),
    [
        (4096, 8, 32, False, "queries"), (4096, 16, 16, False, "queries"), (4096, 16, 16, True, "queries"),
        (4096, 4, 16, False, "keys"), (4096, 1, 64, False, "keys"), (4096, 4, 64, False, "keys"),
        (2048, 8, 32, False, "mask"), (2048, 4, 16, True, "mask"),
    ],
)  # fmt: skip
def test_small_blocks_take_the_way_that_was_measured_fastest(n, block, budget, slopes, way):
    assert chosen.finely(n, n, block, budget, slopes) == way
    assert (chosen.cells(n, n, block, 1, budget) == n * n) == (chosen.finely(n, n, block, budget) == "mask")
    assert chosen.finely(n, n, block, budget, slopes, aligned=False) != "queries"


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 23), st.integers(0, 19), st.sampled_from(["keys", "mask", "queries"]),
    st.sampled_from([torch.float64, torch.float16, torch.bfloat16]), st.integers(0, 10**6),
)  # fmt: skip
def test_sequences_that_stand_elsewhere(block, n, past, way, dtype, seed):
    """Every sequence of a batch has positions of its own, as padded caches do."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, n, 5, generator=generator).to(dtype)
    k, v = (torch.randn(2, 2, n + past, size, generator=generator).to(dtype) for size in (5, 7))
    here = torch.stack([torch.arange(n), torch.arange(past, past + n)])
    rows = Rows(here, n + past, block)
    choice = Mean(block, 4)(q, k, rows)
    got = chosen.attend(q, k, v, choice, way=way).out
    exact = (x.double() for x in (q, repeat_heads(k, 4), repeat_heads(v, 4)))
    queries, keys, values = exact
    want = masked_softmax(queries @ keys.mT * 5**-0.5, choice.spread()) @ values
    tolerance = 1e-9 if dtype == torch.float64 else 3e-2
    torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


KINDS = "with room", "alone", "tokens apart", "wider"


def stored(kind, size, generator):
    """``(b, g, m, d)`` of normal numbers in storage whose other places are NaN."""
    batch, groups, m, d = size
    if kind == "with room":  # as a cache that grows
        x = torch.full((batch + 1, groups, 2 * m, d), torch.nan, dtype=torch.float64)[1:, :, :m]
    elif kind == "alone":
        x = torch.empty(size, dtype=torch.float64)
    elif kind == "tokens apart":  # as a projection leaves them
        x = torch.full((batch, m, groups, d), torch.nan, dtype=torch.float64).transpose(1, 2)
    else:
        x = torch.full((batch, groups, m, d + 2), torch.nan, dtype=torch.float64)[..., :d]
    return x.copy_(torch.randn(size, generator=generator, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2), st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.integers(1, 5), st.integers(0, 40),
    st.integers(1, 50), st.tuples(*[st.sampled_from(KINDS)] * 2), st.booleans(),
    st.sampled_from([1, chosen.NEAR]), st.integers(0, 10**6),
)  # fmt: skip
@example(2, (4, 2), 3, 20, 4, ("with room", "alone"), True, 1, 0)
def test_tokens_that_follow_one_another_are_read_where_they_stand(
    batch, heads, n, past, block, kinds, causal, near, seed
):
    generator = torch.Generator().manual_seed(seed)
    m, (heads, groups) = n + past, heads
    q = torch.randn(batch, heads, n, 5, generator=generator, dtype=torch.float64)
    k, v = (stored(kind, (batch, groups, m, d), generator) for kind, d in zip(kinds, (5, 3), strict=True))
    here = torch.randint(-2, m, (batch, n), generator=generator).sort(dim=1).values  # before the first key too
    choice = Mean(block, 4)(q, k, Rows(here, m, block, causal=causal))
    fits = chosen.fits_lines(q, k, v, choice.rows)
    assert fits if set(kinds) <= {"with room", "alone"} else m == 1 or "wider" not in kinds or not fits
    with mock.patch.object(chosen, "NEAR", near):
        got = chosen.attend(q, k, v, choice, way="keys")
    want = chosen.attend(q, k, v, choice, way="mask")
    torch.testing.assert_close(got.out, want.out)
    torch.testing.assert_close(got.lse, want.lse)
    learned = chosen.attend(q.requires_grad_(), k, v, choice, way="keys")
    assert learned.out.requires_grad
    torch.testing.assert_close(learned.out, want.out)


def test_long_inputs_take_other_ways_and_agree():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 701, 8, generator=generator, dtype=torch.float64)
    for router, way in (
        (Mean(64, 3), "queries"),
        (Mean(16, 12, size=48), "blocks"),
        (Mean(16, 9), "mask"),
        (Mean(4, 5), "keys"),
    ):
        choice = router(q, k, router.rows(torch.arange(701)[None], 701, True))
        assert chosen.cheapest(choice) == way
        want = chosen.attend(q, k, v, choice, way="mask")
        torch.testing.assert_close(chosen.attend(q, k, v, choice).out, want.out)
        torch.testing.assert_close(chosen.attend(q, k, v, choice).lse, want.lse)


@pytest.mark.parametrize("pairs", [chosen.PAIRS, 60])
@pytest.mark.parametrize("own", [True, False])
def test_queries_gathered_for_blocks(pairs, own, monkeypatch):
    """Groups of heads, a last block that is short, blocks that some queries of them do not see, few pairs at a time."""
    monkeypatch.setattr(chosen, "PAIRS", pairs)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 6, 53, 5, generator=generator, dtype=torch.float64).requires_grad_()
    k, v = (torch.randn(2, 2, 53, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in "kv")
    router = Mean(8, 3, forced=("own",) if own else ())
    choice = router(q, k, router.rows(torch.arange(53)[None], 53, True))
    found, wanted = (chosen.attend(q, k, v, choice, way=way) for way in ("queries", "mask"))
    torch.testing.assert_close(found.out, wanted.out)
    torch.testing.assert_close(found.lse, wanted.lse)
    weighing = torch.cos(torch.arange(found.out.numel(), dtype=torch.float64)).view_as(found.out)
    slopes = [torch.autograd.grad((part.out * weighing).sum(), (q, k, v)) for part in (found, wanted)]
    for got, want in zip(*slopes, strict=True):
        torch.testing.assert_close(got, want)


def test_queries_with_no_blocks_get_zeros():
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 40, 4)
    found = chosen.attend(q, k, k, Choice(torch.zeros(1, 2, 3, 0, dtype=torch.int64), Rows.last(3, 40, 4, 1, True)))
    assert not found.out.any()
    assert (found.lse == -torch.inf).all()


def test_what_does_not_fit_is_named():
    q, k = torch.randn(2, 1, 2, 9, 4)
    choice = Mean(3, 3)(q, k, Rows.last(9, 9, 3, 1, True))
    with pytest.raises(ValueError, match=r"^choice: got"):
        chosen.attend(q[:, :, :5], k, k, choice)
    pairs = Mean(3, 5, size=2)(q, k, Rows.last(9, 9, 3, 2, True))
    with pytest.raises(ValueError, match=r"^choice: got rows of 2 queries, want rows of one query each"):
        chosen.attend(q, k, k, pairs, way="queries")
    with pytest.raises(ValueError, match=r"^budget: got 2, want at least the 3 blocks that are forced"):
        Mean(3, 2)
    with pytest.raises(ValueError, match=r"^index: got shape"):
        Choice(torch.zeros(1, 2, 8, 3, dtype=torch.int64), Rows.last(9, 9, 3, 1, True))
