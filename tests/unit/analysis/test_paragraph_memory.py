"""Reciting: greedy tokens, gradients and masks by hand, a text that is forgotten, and a model that is as it was."""

import pytest
import torch
from torch import tensor

from regard.analysis.base import DenseMaps, Prompt
from regard.analysis.paragraph_memory import (
    ParagraphMemory,
    block_gradients,
    block_matrices,
    continuation_loss,
    first_error,
    forgetting,
    lower_share,
    prefix_effects,
    rarity_heads,
)
from regard.analysis.paragraph_sites import activation_gradients, token_patching
from regard.analysis.planted import planted_model
from regard.analysis.sweep import Site, SiteEdit
from regard.hosts.attach import attach
from regard.laws import examine, examples_of


def greedy(model, start, steps):
    ids = tensor([start])
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(2)], 1)
    return Prompt(ids[0], answer=len(start))


def test_the_models_own_continuation_is_recited_up_to_what_is_changed():
    (sample,) = examples_of(ParagraphMemory)
    assert examine(sample, "known", kind="analysis").verdict == "holds"


def test_tokens_after_the_first_error_do_not_count():
    assert first_error(tensor([1, 2, 3, 4]), tensor([1, 2, 9, 4])) == 2
    assert first_error(tensor([9]), tensor([1])) == 0


def test_results_merge_and_say_who_is_memorised():
    model = planted_model()
    own, other = greedy(model, [3, 14, 15], 5), Prompt(tensor([3, 14, 15, 9, 2]), answer=3)
    found = ParagraphMemory().run(model, [own]).merge(ParagraphMemory().run(model, [other]))
    assert found.memorised.tolist()[0]
    assert found.asked.tolist() == [5, 2]
    assert [row["matched"] for row in found.table()] == found.matched.tolist()


def test_gradients_are_those_of_the_continuation():
    model, prompt = planted_model(), Prompt(torch.arange(4, 13), answer=5)
    found = block_gradients(model, prompt)
    labels = prompt.ids[None].clone()
    labels[:, :5] = -100
    model(input_ids=prompt.ids[None], labels=labels).loss.backward()
    for name, matrix in block_matrices(model).items():
        assert found[name] == pytest.approx(float(matrix.grad.norm()), rel=1e-5)
    assert len(found) == 14
    assert lower_share({(0, "a"): 1.0, (1, "a"): 2.0, (1, "b"): 1.0}) == 0.25


def test_a_text_is_forgotten_and_the_model_is_as_it_was_then():
    model = planted_model()
    text, others = greedy(model, [3, 14, 15], 8), [Prompt(torch.arange(1, 12), answer=4)]
    before = {name: matrix.clone() for name, matrix in block_matrices(model).items()}
    with forgetting(model, [text], others, 0.05, 20, 3e-2) as masks:
        assert int(ParagraphMemory().run(model, [text]).matched) < 8
        changed = {name: matrix != before[name] for name, matrix in block_matrices(model).items()}
        assert all(bool((mask | ~changed[name]).all()) for name, mask in masks.items())
        count = sum(int(mask.sum()) for mask in masks.values())
        assert count == int(0.05 * sum(mask.numel() for mask in masks.values()))
    assert all(torch.equal(matrix, before[name]) for name, matrix in block_matrices(model).items())
    assert all(matrix.grad is None for matrix in block_matrices(model).values())


def test_the_model_is_as_it_was_after_an_error():
    model, text = planted_model(), Prompt(torch.arange(1, 12), answer=4)
    before = model(input_ids=text.ids[None]).logits
    forgotten = forgetting(model, [text], [text], 0.05, 2)
    forgotten.__enter__()
    with pytest.raises(RuntimeError, match="stop"):
        forgotten.gen.throw(RuntimeError("stop"))
    torch.testing.assert_close(model(input_ids=text.ids[None]).logits, before, rtol=0, atol=0)


def test_the_largest_gradients_are_chosen():
    model = planted_model()
    text, others = greedy(model, [3, 14, 15], 8), [Prompt(torch.arange(1, 12), answer=4)]
    slopes = torch.autograd.grad(continuation_loss(model, text), list(block_matrices(model).values()))
    with forgetting(model, [text], others, 0.02, 1) as masks:
        kept = torch.cat([s[m].abs() for s, m in zip(slopes, masks.values(), strict=True)])
        left = torch.cat([s[~m].abs() for s, m in zip(slopes, masks.values(), strict=True)])
    assert float(kept.min()) >= float(left.max())


def test_only_the_last_token_of_a_prefix_counts_where_no_head_speaks():
    model = planted_model(())
    found = prefix_effects(model, greedy(model, [3, 14, 15], 4), 3)
    assert found[:2].tolist() == [0, 0]
    assert float(found[2]) > 0


def test_a_head_that_looks_at_rare_tokens_is_found():
    counts = torch.arange(29) ** 2
    ids = torch.randperm(29, generator=torch.Generator().manual_seed(0))[:17]
    rare = -(counts[ids].double() + 1).log()

    def maps(of):
        noise = torch.rand(1, 3, 17, 17, generator=torch.Generator().manual_seed(1))
        noise[0, 1] = (rare - rare.min()).float()
        return [noise / noise.sum(3, keepdim=True)]

    (found,) = rarity_heads(DenseMaps(maps), [Prompt(ids, answer=12)], counts)
    assert float(found[1]) == pytest.approx(1, abs=1e-6)
    assert float(found[[0, 2]].abs().max()) < 0.7


def test_a_text_becomes_its_perturbed_one_by_the_gradients_of_that():
    model = planted_model()
    text, others = greedy(model, [3, 14, 15], 6), [Prompt(torch.arange(1, 12), answer=4)]
    other = Prompt(text.ids.clone(), answer=text.answer)
    other.ids[4:] = (text.ids[4:] + 5) % 29
    before = float(continuation_loss(model, text, other.ids[3:]))
    slopes = torch.autograd.grad(continuation_loss(model, text, other.ids[3:]), list(block_matrices(model).values()))
    with forgetting(model, [text], others, 0.05, 20, 3e-2, towards=[other]) as masks:
        assert float(continuation_loss(model, text, other.ids[3:])) < before
        assert int(ParagraphMemory().run(model, [text]).matched) < 6
        kept = torch.cat([s[m].abs() for s, m in zip(slopes, masks.values(), strict=True)])
        left = torch.cat([s[~m].abs() for s, m in zip(slopes, masks.values(), strict=True)])
    assert float(kept.min()) >= float(left.max())
    logits = model(input_ids=text.ids[None]).logits[0, 2:-1].log_softmax(1)
    by_hand = -sum(float(row[token]) for row, token in zip(logits, other.ids[3:], strict=True)) / 6
    assert float(continuation_loss(model, text, other.ids[3:])) == pytest.approx(by_hand, rel=1e-6)
    with pytest.raises(ValueError, match="towards"):
        forgetting(model, [text], others, towards=[Prompt(text.ids[:-1], answer=3)]).__enter__()


def test_gradients_of_activations_are_those_of_a_nudge():
    model, prompt = planted_model(), Prompt(torch.arange(4, 13), answer=5)
    found = activation_gradients(model, prompt)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "z": (2, 3, 9),
        "resid": (2, 9),
        "attn": (2, 9),
        "mlp": (2, 9),
    }
    step, nudged = 1e-2, torch.zeros(18, dtype=torch.float64)
    for channel in range(18):
        for sign in (1, -1):
            edit = SiteEdit([[Site(1, "mlp", None, 6)]], lambda row, site, x, c=channel, s=sign * step: nudge(x, c, s))
            with attach(model, edits=[edit]):
                nudged[channel] += sign * float(continuation_loss(model, prompt)) / (2 * step)
    assert float(nudged.norm()) == pytest.approx(float(found["mlp"][1, 6]), rel=1e-3)
    assert float(found["mlp"][1, :4].max()) == 0  # nothing that is asked for comes after the last layer there
    with pytest.raises(ValueError, match="parts"):
        activation_gradients(model, prompt, [])


def nudge(x, channel, step):
    x = x.clone()
    x[:, channel] += step
    return x


def test_what_is_put_back_where_the_token_is_brings_all_of_a_text_back():
    model = planted_model()
    text = greedy(model, [3, 14, 15, 9], 5)
    found = token_patching(model, text, 2, 27, rows=5)
    assert found.shape == (2, 9)
    assert float(found[0, 2]) == pytest.approx(1)  # at the first layer the token is all that differs
    others = [at for at in range(9) if at != 2]
    assert float(found[0, others].abs().max()) < 1e-9
    assert float(found[1, :2].abs().max()) < 1e-9
    with pytest.raises(ValueError, match="slot"):
        token_patching(model, text, 4, 27)
    with pytest.raises(ValueError, match="part"):
        token_patching(model, text, 2, 27, "z")


TEXT = Prompt(torch.arange(5), answer=2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ParagraphMemory().run(planted_model(), []), "no prompts"),
        (lambda: ParagraphMemory().run(planted_model(), [Prompt(torch.arange(5))]), "answer"),
        (lambda: ParagraphMemory().run(planted_model(), [Prompt(torch.arange(5), answer=5)]), "answer"),
        (lambda: rarity_heads(planted_model(), [], torch.ones(29)), "prompts"),
        (lambda: forgetting(planted_model(), [], [TEXT]).__enter__(), "texts"),
        (lambda: forgetting(planted_model(), [TEXT], [TEXT], share=1.5).__enter__(), "share"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
