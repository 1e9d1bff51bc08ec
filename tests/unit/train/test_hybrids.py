"""Transformers models made into hybrids: aligned, ranked by the KL, given layers back, learned and written."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

import regard
from regard.hosts.linear_layers import HostedLayer, load
from regard.laws.objective import drawn
from regard.train.fit import Recipe
from regard.train.hybrids import aligned, alignment, attentions, linear_of, restored
from regard.train.linearise import Distillation
from regard.train.objective import Batch
from regard.train.objectives.distillation import select
from regard.train.rates import Rates
from unit.hosts.models import causal

from .test_extend import STREAM, logits, model

MASK = torch.tensor([[True] * 9, [False] * 3 + [True] * 6])
IDS = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(3))


def test_alignment_is_of_attentions_that_are_given_the_teachers_states():
    teacher = model()
    student = linear_of(teacher, "gated_deltanet")
    assert attentions(student) == attentions(teacher) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    batch, apart = Batch(IDS, mask=MASK), []
    found = teacher(
        input_ids=IDS,
        attention_mask=MASK.long(),
        position_ids=(MASK.long().cumsum(1) - 1).clamp(min=0),
        output_hidden_states=True,
    ).hidden_states
    for layer, x in zip((0, 1), found, strict=False):
        block = teacher.model.layers[layer]
        given = block.input_layernorm(x)
        own = student.get_submodule(attentions(student)[layer]).attention(given, regard.Layout(True, MASK))
        with torch.no_grad():
            wanted = block.self_attn(given, **shared(teacher, x))[0]
        apart.append((own - wanted)[MASK].norm(dim=-1).mean() / x.shape[-1] ** 0.5)
    torch.testing.assert_close(alignment(teacher, student, batch), sum(apart) / 2, atol=1e-5, rtol=1e-4)


def shared(teacher, x):
    """What all attentions of the padded batch are given."""
    from transformers.masking_utils import create_causal_mask

    places = (MASK.long().cumsum(1) - 1).clamp(min=0)
    mask = create_causal_mask(
        config=teacher.config, inputs_embeds=x, attention_mask=MASK.long(), cache=None, position_ids=places
    )
    return {"attention_mask": mask, "position_embeddings": teacher.model.rotary_emb(x, places)}


def test_attentions_alone_are_aligned():
    teacher, student = model(), linear_of(model(), "gla")
    before, kept = alignment(teacher, student, Batch(IDS)), deepcopy(student.model.layers[0].mlp.state_dict())
    aligned(teacher, student, lambda _: Batch(IDS), Recipe(30, 1e-2))
    assert alignment(teacher, student, Batch(IDS)) < 0.5 * before
    assert all(torch.equal(value, kept[name]) for name, value in student.model.layers[0].mlp.state_dict().items())


def test_layers_that_are_given_back_are_the_teachers(tmp_path):
    teacher = causal("Llama")
    linear = linear_of(teacher, "gated_deltanet")
    student = restored(teacher, linear, [1])
    kinds = [isinstance(student.get_submodule(name), HostedLayer) for name in attentions(student)]
    assert kinds == [True, False]
    assert all(isinstance(linear.get_submodule(name), HostedLayer) for name in attentions(linear))
    own, other = (m.model.layers[1].self_attn.q_proj.weight for m in (student, teacher))
    assert torch.equal(own, other)
    assert own is not other
    student.save_pretrained(tmp_path)
    ids = torch.arange(2, 19)[None]
    torch.testing.assert_close(logits(load(tmp_path), ids), logits(student, ids))


def test_the_layer_that_matters_is_chosen_and_the_model_learns_with_it():
    """The second attention is silent, so that its return makes no difference and the first's does."""
    teacher = model()
    with torch.no_grad():
        teacher.model.layers[0].self_attn.o_proj.weight *= 8
        teacher.model.layers[1].self_attn.o_proj.weight.zero_()

    def texts(generator):
        return Batch(torch.randint(60, (8, 13), generator=generator))

    second = Rates(Recipe(2, 1e-5), (("self_attn", 1e-4),))
    chosen = select(teacher, "gla", 1, texts, Recipe(2, 1e-4), second, [texts(drawn(5))])
    assert chosen.layers == [0]
    assert chosen.divergences[0] < 0.5 * chosen.divergences[1]
    begun, told = restored(teacher, chosen.linear, [0]), []
    found = regard.linearise(
        teacher,
        STREAM,
        "gla",
        chosen,
        distillation=Distillation(16, 2, None, Rates(Recipe(3, 1e-4), (("self_attn", 1e-2),)), whole=True),
        report=lambda *x: told.append(x),
    )
    assert [stage for stage, _, _ in told] == ["logits"] * 3
    assert isinstance(found.model.layers[1].self_attn, HostedLayer)
    steps = {
        name: (value - dict(begun.named_parameters())[name]).abs().max().item()
        for name, value in found.named_parameters()
    }
    mlp, attention = (max(step for name, step in steps.items() if part in name) for part in ("mlp", "self_attn"))
    assert 0 < mlp < 3.1e-4 < attention < 3.1e-2
    assert not isinstance(teacher.model.layers[1].self_attn, HostedLayer)
    for about, message in (({"to": "gla", "values": 2}, "values 2"), ({"to": "gated_deltanet"}, "of 'gla'")):
        with pytest.raises(ValueError, match=message):
            regard.linearise(teacher, STREAM, layers=chosen, distillation=Distillation(16, 2), **about)
