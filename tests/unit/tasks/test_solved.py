"""Every generated task has the answer it gives: a solver that reads the sequence alone finds it."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from regard.tasks import arena, batch
from regard.tasks.arena import BORDER, NO, YES, ByteLM, ByteText, Pathfinder, Retrieval
from regard.tasks.associative import AssociativeRecall
from regard.tasks.listops import CLOSE, EQUALS, OPEN, PAD, ListOps
from regard.tasks.lookup import NOTHING, Lookup
from regard.tasks.needles import ASK, MARK, Needle, VariableTracking, WordCount

SAMPLES = 101


def samples(task, length: int, count: int = SAMPLES):
    generator = Generator().manual_seed(5)
    return [task.sample(generator, length) for _ in range(count)]


def test_associative_recall_returns_the_value_of_its_key():
    for example in samples(AssociativeRecall(5, 34), 53):
        ids = example.ids.tolist()
        values = {ids[2 * i]: ids[2 * i + 1] for i in range(5)}
        places = example.answers.nonzero()[:, 0].tolist()
        assert sorted(ids[p - 1] for p in places) == sorted(values)
        assert all(ids[p] == values[ids[p - 1]] for p in places)
        assert len(ids) == 53


def test_needles_return_the_value_of_their_mark():
    for example in samples(Needle(4, 3, 41), 67):
        ids = example.ids.tolist()
        values = {ids[i + 1]: ids[i + 2] for i in range(len(ids) - 9) if ids[i] == MARK}
        places = example.answers.nonzero()[:, 0].tolist()
        assert len(values) == 4
        assert places == [60, 63, 66]
        assert all(ids[p] == values[ids[p - 1]] and ids[p - 2] == ASK for p in places)


def test_variables_are_followed_to_the_head_of_their_chain():
    for example in samples(VariableTracking(3, 2, 50), 61):
        ids, source = example.ids.tolist(), {}
        for i in range(len(ids) - 3):
            if ids[i] == MARK:
                source[ids[i + 1]] = source.get(ids[i + 2], ids[i + 2])  # assigned after its source
        assert ids[-1] == source[ids[-2]]
        assert len(source) == 9


@pytest.mark.parametrize("law", ["common", "frequent"])
def test_the_commonest_word_is_the_answer_and_alone(law):
    for example in samples(WordCount(law, 5, vocabulary=23), 47):
        counts = example.ids[:-2].bincount(minlength=23)
        assert counts.argmax() == example.ids[-1]
        assert (counts == counts.max()).sum() == 1
        assert example.ids[-2] == ASK


def evaluated(tokens: list) -> int:
    """Python's own arithmetic on the expression, written out."""
    names = {code: name for name, code in OPEN.items()}
    text = "".join(f"{names[t]}([" if t in names else "])," if t == CLOSE else f"{t}," for t in tokens)
    functions = {
        "MAX": max,
        "MIN": min,
        "SM": lambda numbers: sum(numbers) % 10,
        "MED": lambda numbers: sorted(numbers)[(len(numbers) - 1) // 2],
    }
    return eval(text.rstrip(","), functions)


def test_list_operations_come_to_their_answer():
    depths = set()
    for example in samples(ListOps(3, 4), 59):
        ids = [t for t in example.ids.tolist() if t != PAD]
        assert ids[-2] == EQUALS
        assert evaluated(ids[:-2]) == ids[-1]
        depth = most = 0
        for t in ids[:-2]:
            depth += (t in OPEN.values()) - (t == CLOSE)
            most = max(most, depth)
        depths.add(most)
    assert max(depths) == 3
    answers = torch.tensor([int(e.ids[-1]) for e in samples(ListOps(), 61, 600)]).bincount(minlength=10)
    assert answers.max() < 0.25 * answers.sum()  # no digit is a good guess


def test_lookups_are_answered_by_the_context():
    for stream in (False, True):
        for example in samples(Lookup(stream, 34), 23):
            context = example.context.tolist()
            for i, (query, target) in enumerate(zip(example.queries.tolist(), example.targets.tolist(), strict=True)):
                if target == NOTHING:
                    assert query == 34
                    continue
                seen = context[: i + 1] if stream else context
                values = {seen[j]: seen[j + 1] for j in range(0, len(seen) - 1, 2)}
                assert values[query] == target


def test_pictures_hold_two_end_points_and_dashes():
    for example in samples(Pathfinder(), 13 * 13 + 5, 41):
        assert (example.ids == 8).nonzero()[:, 0].tolist() == [0, 1, 2, 172]
        pixels = example.ids[3:172]
        assert 1 <= (pixels == 7).sum() <= 2
        assert (pixels > 0).sum() >= 8
        assert example.ids[-1] in (9, 10)


FILES = ("import socket\n" * 30, "alpha beta gamma delta epsilon\n" * 20, "0123456789 " * 50)


def test_byte_texts_come_from_the_group_they_say():
    task = ByteText((FILES[:1], FILES[1:]))
    for example in samples(task, 43):
        text = bytes(example.ids[:-2].tolist()).decode()
        assert example.ids[-2] == BORDER
        assert example.ids[-1] == (YES if text in FILES[0] * 2 else NO)


def test_retrieval_pairs_are_of_one_file_or_of_two():
    answers = set()
    for example in samples(Retrieval(FILES), 57):
        ids = example.ids.tolist()
        first, second = (bytes(part).decode() for part in (ids[:27], ids[28:55]))
        homes = [{i for i, file in enumerate(FILES) if text in file * 2} for text in (first, second)]
        assert ids[-1] == (YES if homes[0] & homes[1] else NO)
        answers.add(ids[-1])
    assert answers == {YES, NO}


def test_bytes_are_a_stretch_of_the_text():
    joined = "\n".join(FILES).encode()
    for example in samples(ByteLM(FILES), 37):
        assert bytes(example.ids.tolist()) in joined
        assert example.answers.tolist() == [False] + [True] * 36


@pytest.mark.parametrize(
    ("task", "length"),
    [
        (AssociativeRecall(5, 34), 53),
        (Needle(4, 2, 41), 67),
        (VariableTracking(), 61),
        (WordCount(), 47),
        (ListOps(), 53),
        (Pathfinder(), 150),
        (Retrieval(FILES), 57),
    ],
)
def test_a_seed_gives_the_same_examples(task, length):
    first, second = (batch(task, Generator().manual_seed(3), 4, length)[0] for _ in range(2))
    other = batch(task, Generator().manual_seed(4), 4, length)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AssociativeRecall(0), "pairs: got 0"),
        (lambda: AssociativeRecall(8, 10), "vocabulary: got 10, want even and at least 16"),
        (lambda: AssociativeRecall(8, 64).sample(Generator(), 31), "length: got 31 tokens, want at least 32"),
        (lambda: Needle(1, 2), "queries: got 2, want from 1 to the 1 needles"),
        (lambda: VariableTracking(9, 9), "vocabulary: got 62"),
        (lambda: WordCount("rare"), "law: got 'rare'"),
        (lambda: WordCount(repeats=2, vocabulary=4).sample(Generator(), 40), "length: got 40 tokens"),
        (lambda: ListOps(0), "depth, arguments: got 0, 5"),
        (lambda: Lookup(vocabulary=6).sample(Generator(), 10), "length: got 10 tokens, want at most 6"),
        (lambda: Pathfinder().sample(Generator(), 20), "length: got 20 tokens"),
        (lambda: Retrieval(FILES[:1]).sample(Generator(), 57), "files: got 1 texts"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_chance_is_the_share_of_right_answers_of_the_best_that_ignores_the_sequence():
    """Each answer is as frequent as the others; of text every byte counts as if it were."""
    texts = ["abc" * 40, "xyz" * 40, "some words" * 12]
    for task, length in ((Pathfinder(), 102), (ByteText((texts[:1], texts[1:])), 40), (Retrieval(texts), 61)):
        answers = torch.stack([example.ids[-1] for example in samples(task, length)])
        kinds, counts = answers.unique(return_counts=True)
        assert task.chance == 1 / len(kinds)
        assert (counts / len(answers) - task.chance).abs().max() < 0.15
    assert ByteLM(texts).chance == 1 / 256


@pytest.mark.parametrize("joined", [True, False])
def test_dots_of_a_pathfinder_lie_at_the_ends_of_one_path_or_of_two(joined, monkeypatch):
    drawn, dots = [], []
    path = arena.smooth_path
    monkeypatch.setattr(arena, "smooth_path", lambda *given: drawn.append(path(*given)) or drawn[-1])
    monkeypatch.setattr(arena, "stamp", lambda canvas, at, grey: dots.extend(at.tolist() if grey == 1 else []))
    arena.Pathfinder().picture(torch.Generator().manual_seed(0), 16, joined)
    assert dots == [drawn[0][0].tolist(), drawn[1 - joined][-1].tolist()]
