"""Bigram-Backcopy: the mark first, copies behind triggers, else the table; its law is what it is drawn from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from regard.tasks import Task
from regard.tasks.backcopy import BigramBackcopy


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def drawn(tokens: int, triggers: tuple[int, ...], seed: int = 0) -> BigramBackcopy:
    table = torch.rand(tokens, tokens, generator=seeded(seed), dtype=torch.float64).pow(3)
    return BigramBackcopy(table / table.sum(1, keepdim=True), triggers)


@given(seed=st.integers(0, 99), length=st.integers(3, 41), triggers=st.sets(st.integers(0, 8), max_size=5))
@settings(max_examples=40, deadline=None)
def test_behind_a_trigger_the_token_before_it_is_copied(seed, length, triggers):
    ids, answers = drawn(9, tuple(triggers)).batch(seeded(seed), 7, length)
    assert ids.shape == answers.shape == (7, length)
    for sequence, asked in zip(ids.tolist(), answers.tolist(), strict=True):
        assert sequence[0] == 9
        assert 9 not in sequence[1:]
        assert sequence[1] not in triggers
        assert asked == [place > 0 and sequence[place - 1] in triggers for place in range(length)]
        copies = [place for place in range(length) if asked[place]]
        assert all(sequence[place] == sequence[place - 2] not in triggers for place in copies)


@pytest.mark.parametrize("triggers", [(1, 4), ()])
def test_elsewhere_the_table_says_how_often_a_token_follows(triggers):
    task = drawn(6, triggers)
    ids, answers = task.batch(seeded(), 4000, 31)
    last, following = ids[:, 1:-1][~answers[:, 2:]], ids[:, 2:][~answers[:, 2:]]
    for token in set(range(6)) - set(triggers):
        counts = torch.bincount(following[last == token], minlength=7)
        wanted, total = task.table[token], counts.sum()
        error = (wanted * (1 - wanted) / total).sqrt()
        assert (counts[:6] / total - wanted).abs().lt(4 * error).all()
    firsts = torch.bincount(ids[:, 1], minlength=7) / len(ids)
    often = torch.tensor([0 if token in triggers else 1 / (6 - len(triggers)) for token in range(6)])
    torch.testing.assert_close(firsts[:6], often, atol=0.03, rtol=0)


def test_the_law_is_what_sequences_are_drawn_from():
    task = drawn(5, (0, 2))
    ids, answers = task.batch(seeded(), 300, 23)
    law = task.law(ids)
    assert law.shape == (300, 22, 6)
    torch.testing.assert_close(law.sum(2), torch.ones(300, 22, dtype=torch.float64))
    told = law.gather(2, ids[:, 1:, None])[..., 0]
    assert (told[answers[:, 1:]] == 1).all()
    torch.testing.assert_close(told[:, 0], torch.full((300,), 1 / 3, dtype=torch.float64))
    by_table = ~answers[:, 2:]
    rows = task.table[ids[:, 1:-1][by_table], ids[:, 2:][by_table]]
    assert torch.equal(told[:, 1:][by_table], rows)


def test_a_sample_is_a_batch_of_one():
    task = drawn(7, (3,))
    assert isinstance(task, Task)
    example = task.sample(seeded(4), 19)
    ids, answers = task.batch(seeded(4), 1, 19)
    assert torch.equal(example.ids, ids[0])
    assert torch.equal(example.answers, answers[0])
    assert not torch.equal(example.ids, task.sample(seeded(5), 19).ids)


@pytest.mark.parametrize(
    ("table", "triggers", "message"),
    [
        (torch.ones(2, 3), (0,), r"table: got \(2, 3\), want \(tokens, tokens\)"),
        (torch.ones(3, 3), (0,), "table: got other numbers, want probabilities"),
        (torch.eye(3) * 2 - torch.ones(3, 3) / 3, (0,), "table: got other numbers, want probabilities"),
        (torch.eye(3), (0, 3), r"triggers: got \(0, 3\), want some of the 3 ids"),
        (torch.eye(3), (0, 1, 2), r"triggers: got \(0, 1, 2\), want some of the 3 ids"),
    ],
)
def test_bad_input_is_named(table, triggers, message):
    with pytest.raises(ValueError, match=message):
        BigramBackcopy(table, triggers)


def test_a_length_without_room_is_named():
    with pytest.raises(ValueError, match="BigramBackcopy: length: got 2 tokens, want at least 3"):
        drawn(4, (0,)).sample(seeded(), 2)
