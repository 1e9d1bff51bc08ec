"""Tiles searched for layer by layer, and distillation into fewer steps and pairs."""

import pytest
import torch
from torch import nn

from regard.train.fit import Recipe, fit
from regard.train.tiles import bounds, consistency_loss, knowledge_loss, sample, search_tiles, spaced

FRAMES, TOKENS = 6, 5


def calls(generator):
    """A layer whose frames see themselves alone, one that looks to the first and the middle frame, one of noise."""
    n = FRAMES * TOKENS
    frame = torch.arange(n) // TOKENS
    own = 40 * torch.nn.functional.one_hot(frame, FRAMES).double()[None, None]
    far = torch.zeros(1, 1, n, FRAMES).double()
    far[..., 0] = far[..., 3] = 40.0
    v, noise = (torch.randn(1, 1, n, 4, generator=generator).double() for _ in range(2))
    at = torch.nn.functional.one_hot(frame, FRAMES).double()[None, None]
    return {"own": (own, at, v), "far": (far, at, v), "noise": (noise, noise, v)}


def test_each_layer_gets_the_sparsest_tiles_that_pass():
    found = search_tiles(calls(torch.Generator().manual_seed(0)), FRAMES, TOKENS, 1e-6, (1, 2, 3))
    assert [each.references for each in found.values()] == [1, 2, FRAMES]
    for name, count in (("own", 1), ("far", 2)):
        kept = (FRAMES + 2 * count * FRAMES - count**2 - count) / FRAMES**2
        assert found[name].kept == pytest.approx(kept)
        assert found[name].loss <= 1e-6
    assert found["noise"].pattern is None
    loose = search_tiles(calls(torch.Generator().manual_seed(0)), FRAMES, TOKENS, 100.0)
    assert [each.references for each in loose.values()] == [1, 1, 1]


def test_what_does_not_fit_is_named():
    given = calls(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="calls"):
        search_tiles(given, FRAMES, TOKENS + 1, 0.1)
    with pytest.raises(ValueError, match="most, references"):
        search_tiles(given, FRAMES, TOKENS, 0.1, (FRAMES,))
    with pytest.raises(ValueError, match="segments, steps"):
        consistency_loss(*[lambda x, t: x] * 3, torch.zeros(2, 3), 3, 8, torch.Generator())


def test_references_and_segments_by_hand():
    assert spaced(6, 2) == [0, 3]
    assert spaced(7, 3) == [0, 2, 5]
    assert bounds(torch.tensor([0.1, 0.25, 0.26, 0.5, 0.99, 1.0]), 4).tolist() == [0, 0, 0.25, 0.25, 0.75, 0.75]


def straight(x, t):
    """All samples are the point 2: the flow leads there in a straight line."""
    return (x - 2) / t.view(-1, 1).clamp(min=1e-6)


def test_times_of_the_teachers_steps_are_drawn_and_no_others():
    seen = []

    def student(x, t):
        seen.extend(t.tolist())
        return x

    consistency_loss(student, straight, straight, torch.ones(200, 3).double(), 1, 4, torch.Generator().manual_seed(0))
    assert sorted(set(seen)) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_a_straight_flow_is_consistent_and_another_is_not(segments):
    videos, generator = torch.full((64, 3), 2.0).double(), torch.Generator().manual_seed(0)
    assert consistency_loss(straight, straight, straight, videos, segments, 8, generator) < 1e-20

    def bent(x, t):
        return straight(x, t) + t.view(-1, 1)

    assert consistency_loss(bent, bent, straight, videos, segments, 8, generator) > 1e-4
    assert knowledge_loss(straight, straight, videos, generator) == 0
    assert knowledge_loss(straight, straight, videos, generator, own=1.0) < 1e-12
    assert knowledge_loss(bent, straight, videos, generator).item() == pytest.approx(1 / 3, abs=0.1)
    drawn = [torch.Generator().manual_seed(3) for _ in range(2)]
    alone, both = (knowledge_loss(bent, straight, videos, each, own) for each, own in zip(drawn, (0, 0.5), strict=True))
    assert both.item() == pytest.approx(1.5 * alone.item())  # the straight flow is the true one: off by as much again
    noise = torch.randn(9, 3, generator=generator).double()
    torch.testing.assert_close(sample(straight, noise, 1), torch.full_like(noise, 2.0), rtol=0, atol=1e-6)


class Teacher(nn.Module):
    """The exact flow of samples about 0 of deviation 0.5: in many steps noise comes to that deviation, in one to 0."""

    def forward(self, x, t):
        t = t.view(-1, 1)
        own = (1 - t).square() * 0.25 + t.square()
        return x * (t - (1 - t) * 0.25) / own


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, x, t):
        return x * self.inner(t.view(-1, 1))


def test_few_steps_of_the_distilled_model_give_what_many_of_the_teacher_give():
    """One step of the teacher gives points near zero; of the student the deviation that samples have."""
    torch.manual_seed(0)
    student, teacher, noise = Student(), Teacher(), torch.randn(500, 1)

    def loss(model, generator):
        videos = 0.5 * torch.randn(256, 1, generator=generator)
        return consistency_loss(model, model, teacher, videos, 1, 16, generator)

    fit(student, loss, Recipe(400, 1e-2, decay=0.0))
    assert sample(teacher, noise, 64).std().item() == pytest.approx(0.5, abs=0.05)
    assert sample(teacher, noise, 1).std() < 0.05
    assert sample(student, noise, 1).std().item() == pytest.approx(0.5, abs=0.1)
