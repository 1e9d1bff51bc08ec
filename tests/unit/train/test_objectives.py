"""Objectives by hand: which heads are silent, how alike states are, whose answers depend on the user's text."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

import regard
from regard.edits import HeadAblation, HeadScale
from regard.laws.objective import batches, drawn
from regard.networks import LM, Config
from regard.train.fit import Recipe
from regard.train.hybrids import aligned, alignment, hybrid, restored
from regard.train.objective import Batch, cross_entropy, tune
from regard.train.objectives import ContextIndicator, HeadMask, SinkDecorrelation
from regard.train.objectives.context_indicator import dependency, indicated
from regard.train.objectives.distillation import divergence, select
from regard.train.objectives.head_mask import importance
from regard.train.objectives.sink_decorrelation import likeness
from unit.hosts.models import causal, eager, tokens


def test_random_heads_of_each_layer_are_silent():
    model, batch = causal("Llama"), batches(drawn(1))
    source = Generator().manual_seed(8)
    heads = {layer: torch.randperm(6, generator=source)[:2].tolist() for layer in (0, 1)}
    assert heads[0] != heads[1]
    with torch.no_grad():
        got = HeadMask(2)(model, batch, Generator().manual_seed(8))
        with regard.steer(model, HeadAblation(heads)):
            torch.testing.assert_close(got, cross_entropy(model, batch))
    with pytest.raises(ValueError, match="count: got 6, want fewer than the 6 heads of layer 0"):
        HeadMask(6)(model, batch, drawn())
    with pytest.raises(ValueError, match="by: got 'size', want 'random' or 'importance'"):
        HeadMask(1, "size")


def test_importance_is_what_a_louder_head_does_to_each_text():
    model, batch = causal("Llama"), batches(drawn(2))
    found, step = importance(model, batch), 1e-2
    for layer, head in ((0, 3), (1, 0)):
        changes = []
        for row in range(3):
            one, losses = batch.rows(torch.tensor([row])), []
            for sign in (1, -1):
                with torch.no_grad(), regard.steer(model, HeadScale({layer: [head]}, 1 + sign * step)):
                    losses.append(cross_entropy(model, one) * one.targets.sum())
            changes.append(((losses[0] - losses[1]) / (2 * step)).abs())
        torch.testing.assert_close(found[layer][head], torch.stack(changes).mean(), atol=2e-3, rtol=2e-2)


def test_the_most_important_head_is_silent():
    model, batch = causal("Llama"), batches(drawn(3))
    heads = {layer: [int(values.argmax())] for layer, values in importance(model, batch).items()}
    with torch.no_grad():
        got = HeadMask(1, "importance")(model, batch, drawn())
        with regard.steer(model, HeadAblation(heads)):
            torch.testing.assert_close(got, cross_entropy(model, batch))


def test_likeness_by_hand():
    """Cosines with (1, 0) of (3, 4), (0, 2) and (−5, 0): squares 0.36, 0, 1; padding on either side is none."""
    states = torch.tensor([[[9.0, 9], [1, 0], [3, 4], [0, 2], [-5, 0], [9, 9]]])
    batch = Batch(torch.zeros(1, 6, dtype=torch.long), mask=torch.tensor([[False, True, True, True, True, False]]))
    assert likeness(states, batch).item() == pytest.approx((0.36 + 0 + 1) / 3)
    assert likeness(states, batch, 1.0).item() == pytest.approx((0.6 + 0 + 1) / 3)


@torch.no_grad()
def test_likeness_is_of_what_leaves_the_blocks():
    model, ids = causal("Llama"), tokens(2, 9)
    states = model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    expected = F.cosine_similarity(states[:, 1:], states[:, :1], dim=2).square().mean()
    got = SinkDecorrelation(3.0, layers=[0])(model, Batch(ids), drawn())
    torch.testing.assert_close(got, cross_entropy(model, Batch(ids)) + 3 * expected)
    with pytest.raises(ValueError, match=r"layers: got \[2\], want some of 0 to 1"):
        SinkDecorrelation(1.0, layers=[2])(model, Batch(ids), drawn())


def test_states_become_less_alike():
    model, ids = causal("Llama"), tokens(4, 11)

    def alike(one):
        with torch.no_grad():
            return SinkDecorrelation(1.0)(one, Batch(ids), drawn()) - cross_entropy(one, Batch(ids))

    plain, other = deepcopy(model), deepcopy(model)
    recipe = Recipe(15, rate=3e-3)
    tune(plain, SinkDecorrelation(0.0), lambda _: Batch(ids), recipe)
    tune(other, SinkDecorrelation(20.0), lambda _: Batch(ids), recipe)
    assert alike(other) < 0.5 * alike(plain)


def test_dependency_is_of_the_best_head_of_each_token():
    model, batch = causal("Llama"), batches(drawn(4)).rows(torch.tensor([0]))
    maps = eager(model, input_ids=batch.ids).attentions[1][0]
    expected = torch.stack([maps[:, row, 3:6].sum(1).max() for row in (7, 8, 9)]).mean()
    torch.testing.assert_close(dependency(model, batch, 1)[0], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="batch: got no marks 'user'"):
        dependency(model, Batch(batch.ids), 1)
    empty = Batch(batch.ids, marks=batch.marks | {"answer": torch.zeros_like(batch.ids, dtype=torch.bool)})
    with pytest.raises(ValueError, match="a text without tokens of 'answer'"):
        dependency(model, empty, 1)


def test_the_indicator_comes_behind_the_user_and_is_not_learned():
    ids = torch.tensor([[1, 5, 6, 7, 8], [1, 5, 6, 7, 8]])
    user = torch.tensor([[False, True, True, False, False]] * 2)
    answer = torch.tensor([[False, False, False, True, True]] * 2)
    batch = Batch(ids, answer, None, {"user": user, "answer": answer})
    found = indicated(batch, torch.tensor([True, False]), [27, 28])
    assert found.ids.tolist() == [[1, 5, 6, 27, 28, 7, 8], [1, 5, 6, 7, 8, 0, 0]]
    assert found.real.tolist() == [[True] * 7, [True] * 5 + [False] * 2]
    assert found.targets.tolist() == [[False] * 5 + [True] * 2, [False] * 3 + [True] * 2 + [False] * 2]
    assert found.marked("answer").tolist() == found.targets.tolist()


@torch.no_grad()
def test_answers_above_the_threshold_alone_are_indicated():
    model, batch = causal("Llama"), batches(drawn(5))
    depends = dependency(model, batch, 1)
    middle = float(depends.sort().values[1])
    assert depends.min() < middle < depends.max()
    objective = ContextIndicator([28], model, 1, middle)
    torch.testing.assert_close(
        objective(model, batch, drawn()), cross_entropy(model, indicated(batch, depends >= middle, [28]))
    )
    assert objective.at(math.inf).idle


def test_objectives_are_made_by_their_names():
    assert regard.objective("head_mask", count=3).count == 3
    with pytest.raises(TypeError, match="name: got 'softmax', a mechanism, want an objective"):
        regard.objective("softmax")


def test_divergence_by_hand():
    """KL((½, ½) ‖ (¼, ¾)) = ½ log 2 + ½ log ⅔, and nothing where both say the same."""
    teacher, student = torch.tensor([[0.5, 0.5], [0.1, 0.9]]).log(), torch.tensor([[0.25, 0.75], [0.1, 0.9]]).log()
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert divergence(teacher, student).item() == pytest.approx(expected)


def teacher_of(depth):
    return LM(Config(11, width=16, layers=f"softmax*{depth}", heads=2), seed=3)


def test_a_hybrid_has_the_weights_of_those_that_it_is_of():
    teacher = teacher_of(3)
    linear = hybrid(teacher, ["gated_deltanet"] * 3)
    assert torch.equal(linear.blocks[1].network.up.weight, teacher.blocks[1].network.up.weight)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter += 0.5
    student = restored(teacher, linear, [1])
    assert [type(block.attention.mechanism).__name__ for block in student.layers][::2] == ["GatedDeltaNet"] * 2
    for place, source in ((0, linear), (1, teacher), (2, linear)):
        own, other = (model.layers[place].attention.projection.q.weight for model in (student, source))
        assert torch.equal(own, other)
    assert torch.equal(student.norm.weight, linear.norm.weight)
    whole, ids = restored(teacher, hybrid(teacher, ["gated_deltanet"] * 3), [0, 1, 2]), torch.arange(11)[None]
    torch.testing.assert_close(whole(ids), teacher(ids))
    with pytest.raises(ValueError, match="layers: got 2 layers, want the source's 3"):
        hybrid(teacher, ["gla"] * 2)


def test_attentions_are_aligned_and_nothing_else_is_trained():
    teacher, ids = teacher_of(2), torch.randint(11, (4, 9), generator=drawn(1))
    student = hybrid(teacher, ["gla"] * 2)
    before, kept = alignment(teacher, student, Batch(ids)), deepcopy(student.blocks[0].network.state_dict())
    x = teacher.embed(ids)
    given = teacher.blocks[0].norms[0](x)
    causal_layout = regard.Layout(causal=True)
    wanted, own = (model.blocks[0].attention(given, causal_layout) for model in (teacher, student))
    x = teacher.blocks[0](x, causal_layout)
    given = teacher.blocks[1].norms[0](x)
    more, other = (model.blocks[1].attention(given, causal_layout) for model in (teacher, student))
    each = [(one - two).norm(dim=-1).mean() / own.shape[-1] ** 0.5 for one, two in ((own, wanted), (other, more))]
    torch.testing.assert_close(before, sum(each) / 2)
    aligned(teacher, student, lambda _: Batch(ids), Recipe(30, 1e-2))
    assert alignment(teacher, student, Batch(ids)) < 0.5 * before
    assert all(torch.equal(value, kept[name]) for name, value in student.blocks[0].network.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_layer_that_matters_is_chosen():
    """The teacher's second attention is silent, so that its return makes no difference and the first's does."""
    teacher = teacher_of(2)
    with torch.no_grad():
        teacher.blocks[0].attention.projection.out.weight *= 8
        teacher.blocks[1].attention.projection.out.weight.zero_()

    def texts(generator):
        return Batch(torch.randint(11, (8, 13), generator=generator))

    found = select(teacher, "gla", 1, texts, Recipe(1, 1e-4), Recipe(1, 1e-4), [texts(drawn(5))])
    assert found.layers == [0]
    assert found.divergences[0] < 0.5 * found.divergences[1]
    with pytest.raises(ValueError, match="count: got 2, want 1 to 1 of the 2 layers"):
        select(teacher, "gla", 2, texts, Recipe(1), Recipe(1), [])
