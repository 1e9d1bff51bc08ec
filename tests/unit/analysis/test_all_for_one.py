"""Subgraphs of one token: means and masks by hand, a model that mixes tokens in one layer, and what is refused."""

import math

import pytest
import torch
from torch import inf, tensor

from regard.analysis.all_for_one import AllForOne, Peeking, Subgraphs, TokenMeans, asked, grouped_means, token_means
from regard.analysis.base import Prompt
from regard.analysis.planted import planted_model
from regard.claims.testbeds import sums
from regard.core.edit import Place
from regard.hosts.attach import attach
from regard.hosts.small import load
from regard.laws import examine, examples_of


def texts(count: int = 31, end: int = 28):
    """Texts of 5 tokens whose last is the same."""
    ids = torch.randint(0, 28, (count, 5), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = end
    return ids


def prompts_of(model, ids):
    """With what the model says of them."""
    with torch.no_grad():
        answers = model(input_ids=ids).logits[:, -1].argmax(1)
    return [Prompt(torch.cat([row, answer[None]]), answer=5) for row, answer in zip(ids, answers, strict=True)]


def test_what_is_planted_is_kept():
    (sample,) = examples_of(AllForOne)
    assert examine(sample, "known", kind="analysis").verdict == "holds"


def test_the_layer_that_mixes_has_to_be_among_those_of_transfer():
    model = planted_model(((1, 0),))
    found = AllForOne([0, 1], [0, 1, 2]).run(model, prompts_of(model, texts()))
    assert found.faithfulness(1, 1) == 1
    assert found.faithfulness(0, 2) == 1
    assert found.faithfulness(0, 1) < 0.7  # it transfers in layer 0, where no head speaks
    assert found.faithfulness(1, 0) < 0.7
    assert (1, 2) not in found.right
    assert found.sparsest(0.9) == (1, 1)
    assert [row["faithfulness"] for row in found.table()] == [found.faithfulness(*span) for span in found.right]


def test_a_model_that_mixes_twice_loses_by_waiting():
    model = planted_model(((0, 1), (1, 0)))
    found = AllForOne([1], [1]).run(model, prompts_of(model, texts()))
    assert found.faithfulness(1, 1) < 0.7


def test_batches_do_not_matter():
    model = planted_model()
    given = prompts_of(model, texts(13))
    one, other = (AllForOne([0, 1], [0, 1], rows).run(model, given) for rows in (64, 3))
    assert all(torch.equal(one.right[span], other.right[span]) for span in one.right)


def test_means_are_of_the_same_token_at_the_same_position():
    ids = tensor([[1, 2], [1, 3], [2, 2]])
    x = tensor([[[1.0], [10.0]], [[3.0], [20.0]], [[7.0], [40.0]]])
    want = tensor([[[2.0], [25.0]], [[2.0], [20.0]], [[7.0], [25.0]]])
    torch.testing.assert_close(grouped_means(x, ids), want)


def test_means_replace_what_comes_into_a_layer():
    model, ids = planted_model(((0, 1),)), texts(5)
    means = token_means(model, ids, 1, 2)
    assert means.shape == (5, 5, 18)
    with attach(model, edits=[TokenMeans(1, torch.zeros_like(means))]), torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(out, torch.zeros_like(out))


@pytest.mark.parametrize(
    ("layer", "last"), [(2, [0, 0, 0, 0]), (3, [0, -inf, -inf, 0]), (1, None)], ids=["transfer", "later", "before"]
)
def test_who_sees_what(layer, last):
    real = torch.ones(1, 4, dtype=torch.bool)
    found = Peeking(2, 1).scores(Place(layer, 3, 3, torch.arange(4), 0, real, real))
    if last is None:
        assert found is None
        return
    rows = [[0, -inf, -inf, -inf], [0, 0, -inf, -inf], [0, -inf, 0, -inf], last]
    assert found is not None
    torch.testing.assert_close(found, tensor(rows, dtype=found.dtype))


def test_merged_results_are_of_all_prompts():
    model = planted_model()
    given = prompts_of(model, texts(7))
    analysis = AllForOne([1], [0, 1])
    merged = analysis.run(model, given[:3]).merge(analysis.run(model, given[3:]))
    assert len(merged.whole) == 7
    assert len(merged.right[1, 0]) == 7
    with pytest.raises(ValueError, match="other"):
        merged.merge(AllForOne([0], [0, 1]).run(model, given))


def test_a_model_that_answers_nothing_has_no_faithfulness():
    model, ids = planted_model(), texts(3)
    with torch.no_grad():
        wrong = (model(input_ids=ids).logits[:, -1].argmax(1) + 1) % 29
    given = [Prompt(torch.cat([row, answer[None]]), answer=5) for row, answer in zip(ids, wrong, strict=True)]
    found = AllForOne([1], [1]).run(model, given)
    assert not found.whole.any()
    assert not math.isfinite(found.faithfulness(1, 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AllForOne([], [1]), "waits"),
        (lambda: AllForOne([1], [-1]), "transfers"),
        (lambda: AllForOne([1], [1], 0), "rows"),
        (lambda: AllForOne([2], [0]).run(planted_model(), [Prompt(torch.arange(4), answer=3)]), "waits"),
        (lambda: asked([]), "no prompts"),
        (lambda: asked([Prompt(torch.arange(4))]), "answer"),
        (lambda: asked([Prompt(torch.arange(4), answer=3), Prompt(torch.arange(4), answer=2)]), "length"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_subgraph_is_handed_on_in_shares_of_the_layers():
    found = Subgraphs(torch.ones(1).bool(), {}, 30)
    assert found.handed_on((16, 6), 10) == (5, 2)
    assert found.handed_on((29, 1), 4) == (3, 1)
    assert found.handed_on((15, 0), 4) == (2, 0)
    assert found.handed_on((16, 6), 30) == (16, 6)
    with pytest.raises(ValueError, match="layers"):
        found.handed_on((1, 1), 0)


def test_sums_of_three_are_sums_of_one_length():
    _, tokenizer = load("tiny")
    found = sums.triples(tokenizer)
    assert len(found) == 84
    assert len({tuple(one.ids.tolist()) for one in found}) == 84
