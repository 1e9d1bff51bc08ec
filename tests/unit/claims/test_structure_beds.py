"""Sentences and skeletons that claims are measured on, against enumeration and hand-worked values."""

import itertools

import pytest
import torch

from regard.claims.testbeds.grammar import LABELS, f1, hits, parse, sentences
from regard.claims.testbeds.skeletons import BONES, poses, turns
from regard.networks.pose_lifting import PARENTS


def trees(start, stop):
    """Every binary tree over fences, as its spans."""
    if stop - start == 1:
        yield [(start, stop)]
        return
    for middle in range(start + 1, stop):
        for left, right in itertools.product(trees(start, middle), trees(middle, stop)):
            yield [(start, stop), *left, *right]


def test_the_best_tree_is_that_of_enumeration():
    scores = torch.randn(3, 6, 6, 2, generator=torch.Generator().manual_seed(0))
    best = scores.max(-1).values.clamp(min=0)
    found = parse(scores)
    for row in range(3):
        wanted = max(trees(0, 5), key=lambda spans, row=row: sum(best[row, i, j].item() for i, j in spans))
        chart = torch.zeros(6, 6, dtype=torch.int64)
        for i, j in wanted:
            value, label = scores[row, i, j].max(0)
            chart[i, j] = label + 1 if value > 0 else 0
        assert torch.equal(found[row], chart)


def test_drawn_sentences_are_trees_that_right_scores_give_back():
    words, labels = sentences(200, 3)[8]
    assert words.shape[1] == 10
    assert labels.shape[1:] == (9, 9)
    assert (labels[:, 0, 8] == 1).all()
    scores = torch.nn.functional.one_hot(labels, len(LABELS) + 1)[..., 1:].double() * 2 - 1
    assert torch.equal(parse(scores), labels)
    assert f1(hits(labels, labels).sum(0)).item() == 1


def test_f1_by_hand():
    """Two of three that are told are right, of four."""
    assert f1(torch.tensor([2, 3, 4])).item() == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_bones_keep_their_lengths_and_the_camera_divides_by_depth():
    seen, body = poses(20, torch.Generator().manual_seed(0))
    for joint, parent in enumerate(PARENTS[1:], 1):
        ratio = (body[:, joint] - body[:, parent]).norm(dim=-1) / BONES[joint].norm()
        torch.testing.assert_close(ratio, (body[:, 1] - body[:, 0]).norm(dim=-1) / BONES[1].norm())
    torch.testing.assert_close(seen[3, 5], body[3, 5, :2] / (4 + body[3, 5, 2]))
    quarter = turns(torch.tensor([0.0, 0.0, torch.pi / 2]))
    torch.testing.assert_close(
        quarter @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0
    )
