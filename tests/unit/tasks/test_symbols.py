"""Copying, induction and recall: exact lengths, answers that follow from what stands before them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from regard.tasks import Copy, Induction, Recall, Task, batch


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_copy_repeats_a_block_and_asks_for_all_of_it_but_the_first():
    example = Copy(range(1, 30), block=(7, 7), bos=0).sample(seeded(), 23)
    assert example.ids[0] == 0
    assert example.ids[8:].equal(example.ids[1:-7])
    assert example.answers.nonzero().flatten().tolist() == list(range(8, 23))


def test_copy_without_a_block_repeats_half_of_the_sequence():
    example = Copy(range(29)).sample(seeded(), 22)
    assert example.ids[11:].equal(example.ids[:11])
    assert int(example.answers.sum()) == 11


def test_copy_always_leaves_something_to_ask():
    assert Copy(range(5), block=(40, 60), bos=0).sample(seeded(), 7).answers.any()


@given(seed=st.integers(0, 99), length=st.integers(5, 61))
@settings(max_examples=40, deadline=None)
def test_induction_asks_for_what_followed_the_only_other_occurrence(seed, length):
    example = Induction(range(3, 50), bos=1).sample(seeded(seed), length)
    first, second = (example.ids == example.ids[-2]).nonzero().flatten().tolist()
    assert second == length - 2
    assert example.ids[-1] == example.ids[first + 1]
    assert example.answers.tolist() == [False] * (length - 1) + [True]


@given(seed=st.integers(0, 99), length=st.integers(53, 131), filler=st.floats(0, 1), queries=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_recall_asks_for_values_that_stand_behind_their_only_key(seed, length, filler, queries):
    task = Recall(range(10, 400), queries, filler, joint=(1, 2), end=(3,), bos=0)
    example = task.sample(seeded(seed), length)
    ids = example.ids.tolist()
    places = example.answers.nonzero().flatten().tolist()
    context = ids[: length - queries * 5]
    assert len(ids) == length
    assert len(places) == queries
    for place in places:
        key, value = ids[place - 3], ids[place]
        assert context.count(key) == 1
        assert context[context.index(key) :][:5] == [key, 1, 2, value, 3]
    assert len({ids[place - 3] for place in places}) == queries


def test_filler_is_the_share_of_the_context_that_is_no_pair():
    pairs = Recall(range(500), queries=2, filler=0.25).sample(seeded(), 104)
    asked = Recall(range(500), queries=2, filler=1.0).sample(seeded(), 104)
    assert len(pairs.ids) == len(asked.ids) == 104
    assert Recall(range(500), 2, 0.25)._pairs(100, 2, 104) == 37
    assert Recall(range(500), 2, 1.0)._pairs(100, 2, 104) == 2


@pytest.mark.parametrize("task", [Copy(range(31)), Induction(range(31)), Recall(range(97), queries=3)])
def test_the_seed_decides_everything(task):
    assert isinstance(task, Task)
    ids, answers = batch(task, seeded(5), 3, 37)
    again, _ = batch(task, seeded(5), 3, 37)
    other, _ = batch(task, seeded(7), 3, 37)
    assert ids.shape == answers.shape == (3, 37)
    assert ids.dtype == torch.int64
    assert answers.dtype == torch.bool
    assert ids.equal(again)
    assert not ids.equal(other)


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        (Copy(range(7), block=(5, 3)), 17, r"Copy: block: got \(5, 3\), want \(shortest, longest\)"),
        (Copy(range(1)), 17, "Copy: symbols: got 1 ids, want at least 2"),
        (Copy(range(7)), 1, "Copy: length: got 1 tokens, want at least 2"),
        (Induction(range(7)), 3, "Induction: length: got 3 tokens, want at least 4"),
        (Recall(range(7), filler=1.5), 17, "Recall: filler: got 1.5, want a share from 0 to 1"),
        (Recall(range(97), queries=5), 11, "Recall: length: got 11 tokens, want at least 20"),
        (Recall(range(7), filler=0), 97, "Recall: symbols: got 7 ids, want at least 49"),
    ],
)
def test_bad_input_is_named(task, length, message):
    with pytest.raises(ValueError, match=message):
        task.sample(seeded(), length)
