"""What is claimed of the shipped weights of regard-tiny; its model card has the full figures."""

import random
from contextlib import ExitStack
from statistics import median

import pytest
import torch

from regard.hosts import small
from regard.tasks import Copy, Recall, accuracy
from regard.train.tiny.heads import induction_scores, sink_mass, without_head

COPY = Copy(range(1, 2048), block=None, bos=0)
RECALL = Recall(range(1, 2048), queries=8, filler=0.5, bos=0)
TEXT = "def area(width, height):\n    return width * height\n\n\n" * 5


@pytest.fixture(scope="module")
def tiny():
    return small.load("tiny")


def copied(model) -> float:
    return accuracy(model, COPY, (128,), samples=32, batch_size=16, seed=7)[128]


def lost(model, heads, whole: float) -> float:
    """Copy accuracy that is lost when these heads, each (layer, head), are silenced together."""
    with ExitStack() as silenced:
        for layer, head in heads:
            silenced.enter_context(without_head(model, layer, head))
        return whole - copied(model)


def test_the_best_induction_head_matters(tiny):
    """Without regard-tiny's best induction head, more copying is lost than without a head that is none (median)."""
    model, _ = tiny
    scores = induction_scores(model)
    best = divmod(int(scores.argmax()), scores.shape[1])
    whole = copied(model)
    without_best = lost(model, [best], whole)
    without_other = median(lost(model, [head], whole) for head in (scores < 0.1).nonzero().tolist()[::2])
    assert scores.max() >= 0.8
    assert without_best > without_other


def test_the_induction_heads_together_are_what_copies(tiny):
    """Without all its induction heads regard-tiny copies nothing; without as many others it still does (median)."""
    model, _ = tiny
    scores = induction_scores(model)
    heads = (scores >= 0.5).nonzero().tolist()
    others = (scores < 0.1).nonzero().tolist()
    whole = copied(model)
    left = whole - lost(model, heads, whole)
    generator = random.Random(3)
    left_without_others = whole - median(lost(model, generator.sample(others, len(heads)), whole) for _ in range(9))
    assert left < 0.1
    assert left_without_others > 0.5


def test_it_copies_and_recalls(tiny):
    """regard-tiny copies random ids and recalls values of keys over 256 tokens."""
    model, _ = tiny
    copying = accuracy(model, COPY, (256,), samples=16, batch_size=8)[256]
    recall = accuracy(model, RECALL, (256,), samples=16, batch_size=8)[256]
    assert copying >= 0.9
    assert recall >= 0.9


def test_the_first_token_is_a_sink(tiny):
    """A head of regard-tiny gives the first token more than a third of its attention, thirty times an equal share."""
    model, tokenizer = tiny
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    largest = sink_mass(model, ids).max().item()
    assert largest > 1 / 3
