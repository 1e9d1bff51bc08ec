"""The attention function's calls are read whole: every argument that Transformers' models give, in every form."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama

import regard
from regard.hosts.attention_arguments import Reader
from regard.hosts.softmax_call import AttentionMap, attend, dense
from regard.hosts.watch import watch
from unit.hosts.models import bert, causal, eager, spread, tokens
from unit.hosts.test_watch import CLOSE, Dense, assert_maps

HIDING = {"bool": None, "min": torch.finfo(torch.float32).min, "-inf": -torch.inf, "-1e4": -1e4, "-65504": -65504.0}
SIZES = {"vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31}


class Module(torch.nn.Module):
    """An attention module that is bidirectional."""

    is_causal = False


def own(q, k, v, scaling, softcap, added, sinks):
    """``(A v, A)`` as the eager attention of Transformers computes them."""
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).mT * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores + added
    if sinks is not None:
        sinks = (sinks.reshape(1, -1, 1, 1) if sinks.dim() == 1 else sinks).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=3)
    weights = scores.softmax(3)[..., : k.shape[2]]
    return (weights @ v.repeat_interleave(groups, 1)).transpose(1, 2), weights


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_call_is_what_eager_attention_makes_of_it(data):
    draw = data.draw
    batch, groups, each, n, m, d, e = (draw(st.integers(1, top)) for top in (3, 3, 3, 7, 11, 5, 5))
    heads, generator = groups * each, torch.Generator().manual_seed(draw(st.integers(0, 99)))
    q, k, v = (
        torch.randn(batch, *shape, generator=generator) for shape in ((heads, n, d), (groups, m, d), (groups, m, e))
    )
    scaling, softcap = draw(st.sampled_from([None, 0.07, 1.0, 2.3])), draw(st.sampled_from([None, 1.7]))
    axes = tuple(draw(st.sampled_from([1, size])) for size in (batch, heads, n, m))
    axes = axes[draw(st.integers(0, 3)) if axes[0] == axes[1] == axes[2] == 1 else 0 :]
    kind = draw(st.sampled_from([None, *HIDING]))
    seen = torch.rand(axes, generator=generator) < 0.7
    seen[..., 0] = True
    bias = torch.randn(axes, generator=generator) * draw(st.sampled_from([0.0, 1.5])) if kind != "bool" else 0.0
    position = torch.randn(1, heads, n, m, generator=generator) if draw(st.booleans()) else None
    sinks = draw(st.sampled_from([None, torch.randn(heads), torch.randn(batch, heads, n, 1)]))
    mask = None if kind is None else seen if kind == "bool" else torch.where(seen, bias, HIDING[kind])
    hidden = torch.zeros(()) if kind is None else torch.where(seen, torch.as_tensor(bias), -torch.inf)
    arguments = {"scaling": scaling, "softcap": softcap, "position_bias": position, "attention_mask": mask}
    asked = Reader(Module(), "a test").read(True, Module(), (q, k, v), arguments | {"sinks": sinks})
    scale = d**-0.5 if scaling is None else scaling
    expected, weights = own(q, k, v, scale, softcap, hidden + (0 if position is None else position), sinks)
    out, lse = attend(asked.call, v)
    torch.testing.assert_close(out.transpose(1, 2), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dense(asked.call), weights, atol=1e-4, rtol=1e-4)
    strip = AttentionMap(asked.call, lse).strip(torch.arange(n))
    found = torch.zeros_like(weights)
    found[..., strip.start : strip.start + strip.weights.shape[3]] = strip.weights
    torch.testing.assert_close(found, weights, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("names", [(), ("value",), ("key", "value"), ("query", "key", "value")])
@pytest.mark.parametrize("purpose", ["watch", "swap"])
def test_query_key_and_value_come_by_name_or_by_place(purpose, names):
    model = causal("Llama")
    q, k, v = torch.randn(3, 2, 6, 5, 4).unbind()
    given = dict(zip(("query", "key", "value"), (q, k, v), strict=True))
    placed, named = [given[name] for name in given if name not in names], {name: given[name] for name in names}
    context = watch(model) if purpose == "watch" else regard.swap(model, "softmax")
    with context as session:
        module, asked = model.model.layers[0].self_attn, {"attention_mask": None, "scaling": 0.3}
        out, _ = session.attachment.attend(module, *placed, **named, **asked)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(out, expected, **CLOSE)


def test_keys_that_indices_name_are_those_that_are_seen():
    model, q = causal("Llama"), torch.randn(2, 6, 7, 4)
    chosen = torch.stack([torch.randperm(7)[:3] for _ in range(14)]).view(2, 7, 3)
    mask = torch.zeros(2, 7, 7, dtype=torch.bool).scatter_(2, chosen, True)[:, None]
    module = model.model.layers[0].self_attn
    with watch(model) as session:
        one, _ = session.attachment.attend(module, q, q, q, torch.ones(2, 1, 7, 7, dtype=torch.bool), indices=chosen)
        other, _ = session.attachment.attend(module, q, q, q, mask)
    torch.testing.assert_close(one, other)


def test_what_the_models_own_function_reads_is_refused_and_the_rest_let_pass(monkeypatch):
    model, q = causal("Llama"), torch.zeros(1, 6, 3, 4)
    module = model.model.layers[0].self_attn

    def eager_attention_forward(module, query, key, value, attention_mask, scaling, temperature=None, **kwargs):
        """A function that reads one more."""

    with watch(model) as session:
        let_pass = {"cache": transformers.DynamicCache(), "position_ids": q}
        session.attachment.attend(module, q, q, q, None, temperature=2.0, **let_pass)
        with pytest.raises(ValueError, match="cache: got a paged cache"):
            session.attachment.attend(module, q, q, q, None, cache=object())
        monkeypatch.setattr(modeling_llama, "eager_attention_forward", eager_attention_forward)
        regard.hosts.attention_arguments.own_arguments.cache_clear()
        session.attachment.attend(module, q, q, q, None, temperature=None)
        with pytest.raises(ValueError, match="temperature: got an argument that the model's own attention function"):
            session.attachment.attend(module, q, q, q, None, temperature=2.0)
    regard.hosts.attention_arguments.own_arguments.cache_clear()


def align() -> transformers.PreTrainedModel:
    """An encoder that knows eager attention alone, and leaves out a mask where there is no padding."""
    torch.manual_seed(3)
    return spread(transformers.AlignTextModel(transformers.AlignTextConfig(**SIZES)))


def doge() -> transformers.PreTrainedModel:
    """A model whose file has a table of attention functions of its own."""
    torch.manual_seed(3)
    config = transformers.DogeConfig(**SIZES, num_key_value_heads=3, max_position_embeddings=64, pad_token_id=0)
    return spread(transformers.DogeModel(config))


@pytest.mark.parametrize("made", [align, doge, lambda: causal("Gemma2").model])
@pytest.mark.parametrize("padded", [False, True])
def test_models_of_eager_attention_keep_its_masks(made, padded):
    model, ids = made(), tokens(2, 13)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    inputs = {"input_ids": ids} | ({"attention_mask": mask} if padded else {})
    expected = eager(model, **inputs)
    real = mask.bool() if padded else torch.ones_like(mask).bool()
    with watch(model, [Dense(13)]) as session, torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(output.last_hidden_state[real], expected.last_hidden_state[real], **CLOSE)
    for layer, dense_weights in enumerate(expected.attentions):
        apart = (session["dense"][layer] - dense_weights).abs() * real[:, None, :, None]
        assert apart.max() < 1e-5


@pytest.mark.parametrize("made", [lambda: causal("Llama"), lambda: causal("GptOss"), bert])
def test_weights_that_the_model_is_asked_for_are_given_with_their_gradient(made):
    model, ids = made(), tokens(2, 11)
    expected = eager(model, input_ids=ids).attentions
    with watch(model) as session:
        assert not any(part is not None for part in model(input_ids=ids).attentions or ())
        given = model(input_ids=ids, output_attentions=True).attentions
    assert session.layers
    assert_maps(given, expected)
    given[0].square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with regard.swap(causal("Llama"), "softmax") as swapped, pytest.raises(ValueError, match="output_attentions"):
        swapped.model(input_ids=ids, output_attentions=True)
