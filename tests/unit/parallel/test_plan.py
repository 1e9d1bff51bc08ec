"""Plans: every token on one rank, whatever the sizes; what does not fit is named."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.parallel import Plan

FEW = settings(max_examples=30, deadline=None)


@st.composite
def plans(draw):
    """Sequences cut anywhere, the ranges dealt out in any order to up to five ranks; any borders."""
    n = draw(st.integers(1, 40))
    cuts = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=6))})
    shards = [[] for _ in range(draw(st.integers(1, 5)))]
    for span in draw(st.permutations(list(pairwise(cuts)))):
        shards[draw(st.integers(0, len(shards) - 1))].append(span)
    borders = sorted({0, *draw(st.lists(st.integers(0, n - 1), max_size=4))})
    return Plan(tuple(tuple(own) for own in shards), tuple(borders))


@FEW
@given(plan=plans())
def test_split_and_join_are_inverse(plan):
    x = torch.arange(3 * plan.length).view(3, plan.length)
    parts = [plan.split(x, 1, rank) for rank in range(plan.ranks)]
    assert [part.shape[1] for part in parts] == plan.sizes
    assert torch.equal(plan.join(parts, 1), x)


@FEW
@given(plan=plans())
def test_positions_count_from_the_document(plan):
    documents = torch.searchsorted(torch.tensor(plan.borders), torch.arange(plan.length), right=True) - 1
    want = torch.arange(plan.length) - torch.tensor(plan.borders)[documents]
    for rank in range(plan.ranks):
        assert torch.equal(plan.positions(rank), want[plan.tokens(rank)])
        cut = [token for _, _, (first, last) in plan.pieces(rank) for token in range(first, last)]
        assert cut == plan.tokens(rank).tolist()
        assert all(
            plan.document(first) == plan.document(last - 1) == own for own, _, (first, last) in plan.pieces(rank)
        )


@FEW
@given(plan=plans(), new=st.integers(0, 50))
def test_new_tokens_go_where_there_are_fewest(plan, new):
    taken = plan.fill(new)
    grown = plan.grown(taken)
    assert sum(taken) == new
    assert grown.length == plan.length + new
    for rank, more in enumerate(taken):
        assert not more or grown.sizes[rank] <= min(grown.sizes) + 1


def test_even_and_zigzag_hold_nearly_as_much_each():
    assert Plan.even(23, 3).shards == (((0, 8),), ((8, 16),), ((16, 23),))
    assert Plan.zigzag(8, 2).shards == (((0, 2), (6, 8)), ((2, 4), (4, 6)))
    assert Plan.sized([3, 0, 2]).shards == (((0, 3),), (), ((3, 5),))
    assert Plan.replicated(5, 2).shards == (((0, 5),), ((0, 5),))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Plan((((0, 3),), ((4, 5),))), r"^shards: got the range \(4, 5\) where token 3 is next"),
        (lambda: Plan((((0, 3),), ((2, 5),))), r"^shards: got the range \(2, 5\) where token 3 is next"),
        (lambda: Plan((((0, 0),),)), r"^shards: got the range \(0, 0\)"),
        (lambda: Plan(()), "^shards: got no ranks"),
        (lambda: Plan.even(5, 2, (1, 3)), r"^borders: got \(1, 3\), want first tokens of documents"),
        (lambda: Plan.even(5, 2, (0, 5)), r"^borders: got \(0, 5\)"),
        (lambda: Plan.even(5, 2).grown([1]), "^sizes: got 1 numbers, want one for each of the 2 ranks"),
        (lambda: Plan.even(5, 2).split(torch.zeros(3), 0, 0), "^x: got 3 tokens along axis 0, want the 5"),
    ],
)
def test_what_is_no_plan_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
