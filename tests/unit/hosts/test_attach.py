"""One attachment: mechanism, edits and probes act on the same calls in one order, and leave the model as it was."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache, StaticCache

import regard
from regard.core.edit import Edit, Place, Where
from regard.edits import HeadAblation, Trace
from regard.probes import Entropy
from regard.records.record import record
from unit.hosts.models import ROPE, bert, causal, eager, rwkv, spread, t5, tokens
from unit.hosts.test_swap import mistral_of
from unit.hosts.test_watch import CLOSE, Dense, assert_maps, left_as_it_was

ABLATED = {0: [1, 4], 1: [2]}


class Tilt(Edit):
    """More mass for the chosen keys: m₁ ← γ m₁ / D, m₀ ← m₀ / D."""

    def __init__(self, factor: float, **where) -> None:
        super().__init__(Where(**where))
        self.factor = factor

    def masses(self, m, place):
        moved = m * torch.tensor([1.0, self.factor], dtype=m.dtype)
        return moved * m.sum(3, keepdim=True) / moved.sum(3, keepdim=True)


class Hide(Edit):
    """Hides the chosen keys."""

    def __init__(self, **where) -> None:
        super().__init__(Where(**where))

    def scores(self, place):
        return torch.tensor(-torch.inf)


class Double(Edit):
    """Doubles queries, keys and values, or hidden states."""

    parts = ("attn",)

    def __init__(self, what: str, **where) -> None:
        super().__init__(Where(**where))
        self.what = what

    def queries(self, q, k, place):
        return (2 * q if self.what == "q" else q, 2 * k if self.what == "k" else k)

    def values(self, v, place):
        return 2 * v if self.what == "v" else None

    def hidden(self, x, place):
        return 2 * x if self.what == "attn" else None


@torch.no_grad()
def logits(model, ids, **inputs):
    return model(input_ids=ids, use_cache=False, **inputs).logits


def without_heads(model, heads):
    """The model whose output projections have no columns of these heads."""
    other = copy.deepcopy(model)
    for layer, gone in heads.items():
        for head in gone:
            if model.config.model_type == "gpt2":
                size = model.config.n_embd // model.config.n_head
                other.transformer.h[layer].attn.c_proj.weight.data[head * size : head * size + size] = 0
            else:
                size = other.model.layers[layer].self_attn.head_dim
                other.model.layers[layer].self_attn.o_proj.weight.data[:, head * size : head * size + size] = 0
    return other


@pytest.mark.parametrize("inner", ["watch", "swap"])
def test_a_watch_of_a_swapped_model_sees_the_swapped_mechanism(inner):
    model, ids = causal("Llama"), tokens(2, 17)
    expected = eager(mistral_of(model, 5), input_ids=ids)
    swap, probe = regard.swap(model, "window", size=5), Dense(17)
    watch = regard.watch(model, [probe])
    first, second = (swap, watch) if inner == "watch" else (watch, swap)
    with first as one, second as other:
        torch.testing.assert_close(logits(model, ids), expected.logits, **CLOSE)
    assert_maps(probe.result(), expected.attentions)
    session = other if inner == "watch" else one
    assert [layer.mechanism for layer in session.layers] == ["window(size=5)"] * 2


@pytest.mark.parametrize("mechanism", ["window(size=5)", "Window(5)", "softmax", "fastmax"])
def test_generation_with_a_swapped_mechanism_shows_the_rows_of_one_pass(mechanism):
    model, ids = causal("Llama"), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with regard.swap(model, mechanism):
        with regard.watch(model, [Dense(16)]) as decoded:
            ids = model.generate(ids, attention_mask=mask, **options)[:, :-1]
        mask = torch.nn.functional.pad(mask, (0, 5), value=1)
        with regard.watch(model, [Dense(16)]) as whole, torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for layer, dense in whole["dense"].items():
        real = mask.bool()[:, None, :, None].expand_as(dense)
        torch.testing.assert_close(decoded["dense"][layer][real], dense[real], **CLOSE)


def test_a_swapped_cache_that_began_before_the_watch_is_refused():
    model, ids = causal("Llama"), tokens(1, 9)
    with regard.swap(model, "window", size=3), torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, past_key_values=cache)
        with regard.watch(model, [Entropy()]), pytest.raises(RuntimeError, match="begun outside of the watch"):
            model(input_ids=ids[:, :1], past_key_values=cache)


def test_an_edited_model_is_watched_as_it_computes():
    model, ids = causal("Llama"), tokens(2, 13)
    edits = [Hide(keys=[(2, 5)], rows=slice(6, None), heads=[0, 3]), Tilt(3.0, keys=[(0, 2)], layers=[1])]
    plain = eager(model, input_ids=ids).attentions
    with regard.attach(model, edits=edits, probes=[Dense(13)]) as attached:
        logits(model, ids)
    first = plain[0].clone()
    first[:, [0, 3], 6:, 2:5] = 0
    first = first / first.sum(-1, keepdim=True)
    torch.testing.assert_close(attached["dense"][0], first, **CLOSE)
    assert attached["dense"][1].sum(-1).sub(1).abs().max() < 1e-5
    with regard.steer(model, *edits), torch.no_grad():
        shown = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    torch.testing.assert_close(attached["dense"][0], shown[0], **CLOSE)
    torch.testing.assert_close(attached["dense"][1], shown[1], **CLOSE)


@pytest.mark.parametrize("name", ["Llama", "GptOss", "Gemma2"])
def test_groups_of_keys_are_weighed_as_the_dense_map_would_be(name):
    model, ids = causal(name), tokens(2, 13)
    heads = model.config.num_attention_heads
    traces = [Trace("q", "k", "v", "z"), Tilt(2.5, keys=[(3, 7)]), Tilt(0.4, keys=[(0, 5)]), Trace("z")]
    with regard.attach(model, edits=traces, probes=[Dense(13)]) as attached:
        logits(model, ids)
    plain = eager(model, input_ids=ids).attentions[0]
    weights = plain.clone()
    for factor, keys in ((2.5, slice(3, 7)), (0.4, slice(0, 5))):
        total = weights.sum(-1, keepdim=True)
        weights[..., keys] *= factor
        weights = weights / weights.sum(-1, keepdim=True) * total
    torch.testing.assert_close(attached["dense"][0], weights, **CLOSE)
    v = traces[0].get("v", 0).repeat_interleave(heads // model.config.num_key_value_heads, 1)
    torch.testing.assert_close(traces[-1].get("z", 0), weights @ v, **CLOSE)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_an_ablated_head_is_one_that_is_removed(name):
    model, ids = causal(name), tokens(2, 11)
    heads = {0: [1], 1: [0, 2]} if name == "GPT2" else ABLATED
    expected, before = logits(without_heads(model, heads), ids), logits(model, ids)
    with regard.steer(model, HeadAblation(heads)):
        torch.testing.assert_close(logits(model, ids), expected, **CLOSE)
    assert not torch.allclose(expected, before, **CLOSE)
    assert torch.equal(logits(model, ids), before)


def test_an_ablation_by_the_mean_keeps_what_a_head_says_on_average():
    model, ids = causal("Llama"), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    before, after = Trace("z"), Trace("z")
    with regard.steer(model, before, HeadAblation(ABLATED, "mean"), after):
        logits(model, ids, attention_mask=mask)
    z, real = before.get("z", 0), mask.bool()[0]
    torch.testing.assert_close(after.get("z", 0)[0, 4, real], z[0, 4, real].mean(0).expand(7, -1), **CLOSE)
    assert torch.equal(after.get("z", 0)[:, 0], z[:, 0])
    means = {layer: before.get("z", layer)[1].mean(1) for layer in (0, 1)}
    with regard.steer(model, HeadAblation(ABLATED, means), after):
        logits(model, ids)
    torch.testing.assert_close(after.get("z", 1)[:, 2], means[1][2].expand(2, 11, -1), **CLOSE)
    with regard.steer(model, HeadAblation([0], {0: means[0]})), pytest.raises(ValueError, match="no means of layer 1"):
        logits(model, ids)


@pytest.mark.parametrize(
    "edit",
    [HeadAblation(ABLATED, strength=0), HeadAblation(ABLATED, "mean", strength=0), Trace("q", "z", "resid", "mlp")],
)
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2"])
def test_an_edit_of_no_strength_is_the_model_bit_by_bit(name, edit):
    model, ids = causal(name), tokens(2, 13)
    with regard.steer(model):
        expected = logits(model, ids)
    with regard.steer(model, edit):
        assert torch.equal(logits(model, ids), expected)
    torch.testing.assert_close(expected, logits(model, ids), **CLOSE)


def test_heads_meet_the_output_projection_and_make_what_attention_adds():
    for name in ("Llama", "GPT2"):
        model, ids, trace = causal(name), tokens(2, 7), Trace("z", "attn")
        with regard.steer(model, trace):
            logits(model, ids)
        if name == "GPT2":
            projection = model.transformer.h[1].attn.c_proj
            weight, bias = projection.weight, projection.bias
        else:
            weight, bias = model.model.layers[1].self_attn.o_proj.weight.T, 0
        z = trace.get("z", 1)
        each = torch.einsum("bhne,hec->bnc", z, weight.unflatten(0, (z.shape[1], -1)))
        torch.testing.assert_close(each + bias, trace.get("attn", 1), **CLOSE)


PARALLEL = {"GPTNeoX": "GPTNeoXForCausalLM", "Cohere": "CohereForCausalLM", "Olmo2": "Olmo2ForCausalLM"}
SUMS = ["Llama", "Gemma2", "Qwen3", "GPT2", "GptOss", *PARALLEL]


def any_causal(name):
    if name not in PARALLEL:
        return causal(name)
    torch.manual_seed(3)
    sizes = {key: value for key, value in ROPE.items() if key not in ("head_dim", "num_key_value_heads")}
    heads = {"num_attention_heads": 3} if name == "GPTNeoX" else {"num_attention_heads": 3, "num_key_value_heads": 3}
    config = getattr(transformers, f"{name}Config")(**sizes | heads)
    return spread(getattr(transformers, f"{name}ForCausalLM")(config))


@pytest.mark.parametrize("name", SUMS)
def test_blocks_are_the_sum_of_their_parts(name):
    model, ids, trace = any_causal(name), tokens(2, 7), Trace("resid", "attn", "mlp")
    expected = logits(model, ids)
    with regard.steer(model, trace):
        torch.testing.assert_close(logits(model, ids), expected, **CLOSE)
    for layer in (0, 1):
        parts = [trace.get(site, layer) for site in ("resid", "attn", "mlp")]
        torch.testing.assert_close(sum(parts), trace.get("resid", layer + 1), atol=1e-3, rtol=1e-4)
        assert all(part.abs().max() > 0 for part in parts)
    with regard.steer(model, Double("attn", layers=[1]), after := Trace("resid", "attn")):
        logits(model, ids)
    torch.testing.assert_close(after.get("attn", 1), 2 * trace.get("attn", 1), **CLOSE)
    assert not torch.allclose(after.get("resid", 2), trace.get("resid", 2), **CLOSE)


def test_blocks_that_are_no_sum_are_refused_by_name():
    model, ids = bert(), tokens(1, 7)
    with (
        regard.steer(model, Trace("mlp")),
        pytest.raises(RuntimeError, match=r"encoder.layer.0, a BertLayer, which is"),
    ):
        model(input_ids=ids)
    with regard.steer(model, trace := Trace("resid", "z")):
        model(input_ids=ids)
    assert trace.get("resid", 2).shape == (1, 7, 24)
    with pytest.raises(ValueError, match="site: got 'mlp' of layer 0, want one that was kept: resid 0, resid 1"):
        trace.get("mlp", 0)


@pytest.mark.parametrize("what", ["q", "k", "v"])
def test_inputs_are_edited_for_some_heads_and_tokens_alone(what):
    model, ids = causal("Llama"), tokens(2, 9)
    edit = Double(what, layers=[0], heads=[0, 1, 4], keys=[(2, 5)])
    with regard.steer(model, before := Trace("q", "k", "v", "z"), edit, after := Trace("q", "k", "v", "z")):
        logits(model, ids)
    old, new = before.get(what, 0), after.get(what, 0)
    factor = torch.ones(1, 6, 9, 1)
    factor[:, [0, 1, 4], slice(0, 9) if what == "q" else slice(2, 5)] = 2
    old = old if what == "q" else old.repeat_interleave(2, 1)
    torch.testing.assert_close(new, old * factor)
    untouched = [2, 3, 5]
    assert torch.equal(before.get("z", 0)[:, untouched], after.get("z", 0)[:, untouched])


def test_before_and_after_are_two_records():
    model, ids = causal("Llama"), tokens(1, 17)
    plain = eager(model, input_ids=ids).attentions[0][0]
    before = record(model, None, ids, keep=True)
    with regard.steer(model, Tilt(5.0, keys=[(2, 6)], layers=[0])):
        after = record(model, None, ids, keep=True)
    tilted = plain.clone()
    tilted[..., 2:6] *= 5
    tilted = tilted / tilted.sum(-1, keepdim=True)
    counts = torch.arange(17, 0, -1)
    for one, weights in ((before, plain), (after, tilted)):
        torch.testing.assert_close(one.arrays["0/received"].float(), weights.sum(1) / counts, atol=1e-3, rtol=1e-3)
    assert "0/q" in before.tensors
    assert after.tensors is None
    for mechanism, kept in (("window(size=3)", True), (regard.build("window", size=3), False)):
        with regard.swap(model, mechanism):
            assert (record(model, None, ids, keep=True).tensors is not None) == kept


def test_edits_act_in_the_order_in_which_they_were_attached():
    model, ids = causal("Llama"), tokens(1, 7)
    first, last = Trace("z"), Trace("z")
    with regard.steer(model, first), regard.steer(model, HeadAblation([0]), last):
        logits(model, ids)
    assert first.get("z", 0)[:, 0].abs().max() > 0
    assert last.get("z", 0)[:, 0].abs().max() == 0


def test_all_is_put_back_whichever_is_left_first():
    model, ids = causal("Llama"), tokens(1, 7)
    before, config = logits(model, ids), model.config.to_dict()
    edit, swap = regard.steer(model, HeadAblation([0]), Trace("mlp")).install(), regard.swap(model, "window", size=2)
    swap.install()
    with regard.watch(model, [Entropy()]):
        edit.remove()
        swapped = logits(model, ids)
        swap.remove()
        torch.testing.assert_close(logits(model, ids), before, **CLOSE)
    assert not torch.allclose(swapped, before, **CLOSE)
    assert left_as_it_was(model, config)
    edit, swap = regard.steer(model, HeadAblation([0]), Trace("mlp")), regard.swap(model, "softmax")
    with pytest.raises(KeyError), edit, swap, regard.watch(model):
        raise KeyError
    assert left_as_it_was(model, config)
    with regard.swap(model, "softmax"), pytest.raises(RuntimeError, match="swapped already"):
        regard.attach(model, "window", edits=[Trace("mlp")], probes=[]).install()
    assert left_as_it_was(model, config)


CACHES = {
    "none": lambda config: None,
    "growing": lambda config: DynamicCache(config=config),
    "offloaded": lambda config: DynamicCache(config=config, offloading=torch.cuda.is_available()),
    "fixed": lambda config: StaticCache(config=config, max_cache_len=32),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3Text"])
def test_generation_is_edited_as_one_pass_over_the_text_is(kind, name):
    model, ids = causal(name), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    edits = [Tilt(4.0, keys=[(1, 4)]), Hide(keys=[(4, 6)], layers=[0]), HeadAblation({0: [2]})]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "attention_mask": mask}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    cache = CACHES[kind](model.config)
    with regard.steer(model, *edits):
        got = model.generate(ids, past_key_values=cache, use_cache=kind != "none", **options)
        ids, mask = got.sequences[:, :-1], torch.nn.functional.pad(mask, (0, 4), value=1)
        whole = logits(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    torch.testing.assert_close(torch.stack(got.logits, 1), whole[:, 10:], atol=1e-4, rtol=1e-4)


def test_beams_and_prompt_lookup_are_edited_alike():
    model, ids = causal("Llama"), tokens(1, 6).repeat(1, 3)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    with regard.steer(model, Tilt(4.0, keys=[(1, 4)]), HeadAblation({0: [2]})):
        plain = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), plain)
        cached, whole = (model.generate(ids, num_beams=3, use_cache=use, **options) for use in (True, False))
        assert torch.equal(cached, whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_shifts_no_span(side):
    model, ids = causal("Llama"), tokens(2, 11)
    mask = torch.ones_like(ids)
    mask[1, slice(0, 4) if side == "left" else slice(7, 11)] = 0
    edit = Tilt(5.0, keys=[(1, 3)], rows=slice(2, None))
    with regard.steer(model, edit):
        both = logits(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
        alone = logits(model, ids[1:][mask[1:].bool()][None])
    torch.testing.assert_close(both[1:][mask[1:].bool()][None], alone, **CLOSE)
    torch.testing.assert_close(both[:1], logits_of(model, ids[:1], edit), **CLOSE)


def logits_of(model, ids, *edits, **inputs):
    with regard.steer(model, *edits):
        return logits(model, ids, **inputs)


def test_a_second_thread_is_refused_while_the_model_runs():
    model, ids, caught = causal("Llama"), tokens(1, 7), []

    class Meanwhile(Edit):
        def heads(self, z, place):
            def other():
                try:
                    model(input_ids=ids)
                except RuntimeError as error:
                    caught.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    with regard.steer(model, Meanwhile()):
        logits(model, ids)
    assert "from a second thread" in str(caught[0])


def test_what_cannot_be_edited_is_refused_by_name():
    model, ids = causal("Llama"), tokens(1, 7)
    with (
        regard.steer(model, HeadAblation([0], layers=[5])),
        pytest.raises(ValueError, match=r"\[5\], want some of 0 to 1"),
    ):
        logits(model, ids)
    with (
        regard.steer(model, HeadAblation([7])),
        pytest.raises(ValueError, match=r"heads of layer 0: got \[7\], want .* 5"),
    ):
        logits(model, ids)
    said = pytest.raises(ValueError, match="Hide, which edits scores, in the swapped layer 0")
    with regard.swap(model, "softmax"), regard.steer(model, Hide(keys=[(0, 1)])), said:
        logits(model, ids)
    with regard.swap(model, "window", size=3), regard.steer(model, HeadAblation(ABLATED)):
        expected = logits(model, ids)
    with regard.swap(gone := without_heads(model, ABLATED), "window", size=3):
        torch.testing.assert_close(expected, logits(gone, ids), **CLOSE)
    with regard.steer(model := rwkv(), HeadAblation([0])), pytest.raises(RuntimeError, match="without calling the"):
        model(input_ids=ids)
    with pytest.raises(TypeError, match=r"edits: got .*a type, want edits as objects"):
        regard.steer(causal("Llama"), HeadAblation)
    with pytest.raises(LookupError, match="policy: got 'snapvk', want one of"):
        regard.attach(causal("Llama"), policy="snapvk")
    with (
        regard.steer(model := causal("Llama"), Tilt(2.0, tokens=[4])),
        pytest.raises(ValueError, match="ids are not known"),
    ):
        model(inputs_embeds=torch.randn(1, 5, 24))
    for wrong in ({"rows": "first"}, {"rows": slice(0, 5, 2)}, {"keys": [(4, 2)]}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            Where(**wrong)


def test_keys_are_chosen_by_their_tokens():
    model, ids = causal("Llama"), tokens(1, 9)
    spans = [(int(at), int(at) + 1) for at in (ids[0] == ids[0, 4]).nonzero()[:, 0]]
    expected = logits_of(model, ids, Tilt(5.0, keys=spans))
    torch.testing.assert_close(logits_of(model, ids, Tilt(5.0, tokens=[int(ids[0, 4])])), expected, **CLOSE)


def test_cross_attention_is_edited_by_its_own_indices():
    model, ids = t5(), tokens(2, 7)
    with regard.steer(model, HeadAblation([1]), trace := Trace("z")), torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids[:, :5])
    assert sorted({layer for _, layer in trace.kept}) == [0, 1, 2, 3, 4, 5]
    assert all(held[0][:, 1].abs().max() == 0 for held in trace.kept.values())


def test_places_tell_positions_without_padding():
    keys = torch.tensor([[False, True, True, True], [True, True, False, True]])
    place = Place(0, 2, 1, torch.tensor([2, 3]), 1, keys[:, 2:], keys)
    assert (place.n, place.m) == (2, 3)
    assert place.query_positions.tolist() == [[1, 2], [-1, 2]]
    assert place.key_positions.tolist() == [[0, 1, 2], [1, -1, 2]]
    assert Where(rows="last").chosen_rows(place).tolist() == [[False, True], [False, True]]
    assert Where(rows=[1]).chosen_rows(place).tolist() == [[True, False], [False, False]]
    assert Where(keys=[(1, 2)], batch=[0]).chosen_keys(place).tolist() == [[False, True, False], [False] * 3]


def test_an_encoder_decoder_generates_with_its_two_caches_as_without():
    model, ids = t5(), tokens(2, 7)
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    options |= {"eos_token_id": None}
    with regard.steer(model, HeadAblation([1]), Tilt(3.0, keys=[(0, 2)])):
        cached, whole = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    plain = model.generate(ids, **options)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(whole.logits), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(torch.stack(plain.logits), torch.stack(whole.logits), atol=1e-4)
