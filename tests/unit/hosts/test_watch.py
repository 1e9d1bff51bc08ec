"""Watched models compute what they did, the probes see their dense weights, and all is put back."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regard.hosts.watch import watch
from regard.probes import Distance, DuplicateToken, Edges, Entropy, EntropyRows, Pooled, Received, Sink
from unit.hosts.models import CAUSAL, bert, causal, eager, rwkv, t5, tokens, vit

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
DECODERS = [*CAUSAL, "GPT2"]


class Dense:
    """A probe that puts A together again, ``(batch, heads, n, m)`` a layer."""

    name = "dense"

    def __init__(self, n: int) -> None:
        self.n, self.maps = n, {}

    def update(self, tile) -> None:
        batch, heads = tile.weights.shape[:2]
        dense = self.maps.setdefault(tile.layer, torch.zeros(batch, heads, self.n, max(self.n, tile.m)))
        dense[:, :, tile.rows, tile.columns] = tile.weights

    def merge(self, other) -> None:
        raise NotImplementedError

    def result(self):
        return self.maps


def seen(model, n: int, **inputs):
    """``(output, dense maps)`` of a watched pass."""
    with watch(model, [Dense(n)]) as session, torch.no_grad():
        output = model(**inputs)
    return output, session["dense"]


def assert_maps(maps, attentions, rows=slice(None)) -> None:
    assert len(maps) == len(attentions)
    for layer, dense in enumerate(attentions):
        torch.testing.assert_close(maps[layer][:, :, rows, : dense.shape[3]], dense[:, :, rows], **CLOSE)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_computes_what_it_did_and_its_weights_are_seen(name):
    model, ids = causal(name), tokens(2, 23)
    expected = eager(model, input_ids=ids)
    output, maps = seen(model, 23, input_ids=ids)
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    assert_maps(maps, expected.attentions)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(name, side):
    model, ids = causal(name), tokens(3, 17)
    mask = torch.ones_like(ids)
    for row, short in enumerate((0, 5, 11)):
        mask[row, slice(0, short) if side == "left" else slice(17 - short, 17)] = 0
    real = mask.bool()
    expected = eager(model, input_ids=ids, attention_mask=mask)
    probes = [Dense(17), EntropyRows(), Received()]
    with watch(model, probes) as session, torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(output.logits[real], expected.logits[real], **CLOSE)
    for layer, dense in enumerate(expected.attentions):
        for row in range(3):
            there = real[row].nonzero()[:, 0]
            single = dense[row][:, there][:, :, there]
            torch.testing.assert_close(session["dense"][layer][row][:, there][:, :, there], single, **CLOSE)
            entropy = -torch.xlogy(single, single).sum(-1)
            torch.testing.assert_close(session["entropy_rows"][layer][row][:, there], entropy, **CLOSE)
        padded = session["entropy_rows"][layer].transpose(1, 2)[~real]
        assert padded.isnan().all()


@pytest.mark.parametrize("name", DECODERS)
def test_chunked_prefill_sees_the_rows_of_one_prefill(name):
    model, ids = causal(name), tokens(2, 19)
    expected = eager(model, input_ids=ids)
    cache = transformers.DynamicCache(config=model.config)
    logits = []
    with watch(model, [Dense(19), Received()]) as session, torch.no_grad():
        for part in (slice(0, 11), slice(11, 13), slice(13, 19)):
            logits.append(model(input_ids=ids[:, part], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected.logits, **CLOSE)
    assert_maps(session["dense"], expected.attentions)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_is_followed_to_absolute_positions(name, cache):
    model, prompt = causal(name), tokens(2, 11)
    mask = torch.ones_like(prompt)
    mask[1, :3] = 0
    options = {
        "attention_mask": mask,
        "max_new_tokens": 7,
        "min_new_tokens": 7,
        "do_sample": False,
        "pad_token_id": 0,
        "cache_implementation": None if cache == "dynamic" else cache,
    }
    plain = model.generate(prompt, **options)
    with watch(model, [Dense(17), Received(), Distance()]) as session:
        watched = model.generate(prompt, **options)
    assert torch.equal(plain, watched)
    whole = torch.nn.functional.pad(mask, (0, 6), value=1)
    places = (whole.cumsum(1) - 1).clamp(min=0)
    dense = eager(model, input_ids=watched[:, :-1], attention_mask=whole, position_ids=places).attentions
    for layer, expected in enumerate(dense):
        expected = expected * whole[:, None, :, None]
        torch.testing.assert_close(session["dense"][layer][..., :17] * whole[:, None, :, None], expected, **CLOSE)
        assert session["dense"][layer][..., 17:].abs().sum() == 0
        assert session["received"][layer].value.shape[2] == 17


def test_a_static_cache_given_by_the_user_is_followed():
    model, ids = causal("Llama"), tokens(1, 13)
    expected = eager(model, input_ids=ids)
    cache = transformers.StaticCache(config=model.config, max_cache_len=31)
    with watch(model, [Dense(13)]) as session, torch.no_grad():
        first = model(input_ids=ids[:, :9], past_key_values=cache).logits
        second = model(input_ids=ids[:, 9:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat([first, second], 1), expected.logits, **CLOSE)
    assert_maps(session["dense"], expected.attentions)


def test_bert_is_two_sided_with_padding():
    model, ids = bert(), tokens(2, 13)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    expected = eager(model, input_ids=ids, attention_mask=mask)
    output, maps = seen(model, 13, input_ids=ids, attention_mask=mask)
    real = mask.bool()
    torch.testing.assert_close(output.last_hidden_state[real], expected.last_hidden_state[real], **CLOSE)
    assert_maps(maps, expected.attentions)


def test_vit_is_watched_by_module_names():
    model = vit()
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    expected = eager(model, pixel_values=pixels)
    with watch(model, [Dense(10)]) as session, torch.no_grad():
        output = model(pixel_values=pixels)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, **CLOSE)
    assert_maps(session["dense"], expected.attentions)
    assert len({layer.name for layer in session.layers}) == 2
    assert not session.layers[0].causal


def test_t5_keeps_its_position_bias_and_its_cross_attention():
    model, ids, target = t5(), tokens(2, 11), tokens(2, 7, seed=1)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}
    expected = eager(model, **inputs)
    with watch(model, [Dense(11)]) as session, torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    maps = {layer.name: session["dense"][layer.index] for layer in session.layers}
    for kind, weights in (
        ("encoder.block.{}.layer.0.SelfAttention", expected.encoder_attentions),
        ("decoder.block.{}.layer.0.SelfAttention", expected.decoder_attentions),
        ("decoder.block.{}.layer.1.EncDecAttention", expected.cross_attentions),
    ):
        for layer, dense in enumerate(weights):
            rows, columns = dense.shape[2:]
            torch.testing.assert_close(maps[kind.format(layer)][:, :, :rows, :columns], dense, **CLOSE)
    assert [layer.cross for layer in session.layers] == [False, False, False, True, False, True]


def test_t5_generates_under_a_watch():
    model, ids = t5(), tokens(2, 11)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    plain = model.generate(ids, **options)
    with watch(model, [Entropy()]) as session:
        assert torch.equal(model.generate(ids, **options), plain)
    assert len(session["entropy"]) == 6


def test_a_users_own_mask_is_honoured():
    model, ids = causal("Llama"), tokens(1, 11)
    seen_by = torch.tril(torch.ones(11, 11)).bool() & (torch.arange(11) != 4)
    seen_by[4, 4] = True
    mask = torch.zeros(1, 1, 11, 11).masked_fill(~seen_by, torch.finfo(torch.float32).min)
    expected = eager(model, input_ids=ids, attention_mask=mask)
    output, maps = seen(model, 11, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    assert_maps(maps, expected.attentions)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GptOss"])
def test_gradients_are_those_of_the_eager_model(name):
    model, ids = causal(name), tokens(1, 9)
    found = []
    for watched in (False, True):
        model.zero_grad()
        if watched:
            with watch(model, [Entropy()]):
                model(input_ids=ids).logits.square().mean().backward()
        else:
            model.set_attn_implementation("eager")
            model(input_ids=ids).logits.square().mean().backward()
            model.set_attn_implementation("sdpa" if name == "Llama" else "eager")
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        torch.testing.assert_close(found[1][key], found[0][key], atol=1e-5, rtol=1e-4)


def test_half_precision_is_watched_in_float32():
    model, ids = causal("Llama").bfloat16(), tokens(1, 13)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    output, maps = seen(model, 13, input_ids=ids)
    torch.testing.assert_close(output.logits, expected, atol=2e-2, rtol=2e-2)  # grouped heads, or repeated
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(1, 6, 13), atol=2e-2, rtol=0)


def test_layers_and_heads_are_chosen():
    model, ids = causal("Llama"), tokens(1, 11)
    expected = eager(model, input_ids=ids).attentions
    with watch(model, [Dense(11)], layers={1: [4, 2]}) as session, torch.no_grad():
        model(input_ids=ids)
    assert session["dense"].keys() == {1}
    torch.testing.assert_close(session["dense"][1], expected[1][:, [4, 2]], **CLOSE)
    with (
        pytest.raises(ValueError, match=r"layers: got \[5\], want some of 0 to 1, the attention layers of Llama"),
        watch(model, [Entropy()], layers=[1, 5]),
    ):
        model(input_ids=ids)
    with (
        pytest.raises(ValueError, match=r"layers\[1\]: got heads \[6\], want some of 0 to 5"),
        watch(model, [Entropy()], layers={1: [6]}),
    ):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="rows: got 0, want at least one row"), watch(model, rows=0):
        pass


def test_sampled_rows_estimate_the_mean_with_their_error():
    model, ids = causal("Llama"), tokens(1, 97)
    with watch(model, [Entropy(), Sink(), Received()]) as session, torch.no_grad():
        model(input_ids=ids)
    assert session["entropy"][0].error.abs().max() == 0
    true = session["entropy"][1].value
    misses = []
    for seed in range(60):
        with watch(model, [Entropy(), Received()], rows=13, seed=seed) as sampled, torch.no_grad():
            model(input_ids=ids)
        estimate = sampled["entropy"][1]
        misses.append((estimate.value - true) / estimate.error)
    misses = torch.stack(misses)
    assert misses.mean().abs() < 0.5
    assert 0.7 < misses.square().mean().sqrt() < 1.5


def left_as_it_was(model, before) -> bool:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    ours = [ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS if "regard" in name]
    names = [function for function in ours if function.func.__self__.model is model]
    return model.config.to_dict() == before and hooks == 0 and not names


@pytest.mark.parametrize("made", [bert, t5, vit, lambda: causal("Gemma3Text")])
def test_the_model_is_left_as_it_was_also_after_an_exception(made):
    model = made()
    model.set_attn_implementation("eager")
    before = model.config.to_dict()
    implementations = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    with pytest.raises(KeyboardInterrupt), watch(model, [Entropy()]):
        raise KeyboardInterrupt
    assert left_as_it_was(model, before)
    assert implementations == [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]


def test_parts_with_different_attention_get_their_own_back():
    text = {"hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.CLIPConfig(
        text_config=text | {"vocab_size": 29},
        vision_config=text | {"image_size": 12, "patch_size": 4},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    inputs = {"input_ids": tokens(2, 7), "pixel_values": torch.zeros(2, 3, 12, 12)}
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
        with watch(model, [Entropy()]) as session:
            torch.testing.assert_close(model(**inputs).logits_per_image, expected, **CLOSE)
    assert sorted(layer.name.split(".")[0] for layer in session.layers) == ["text_model", "vision_model"]
    assert (model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation) == (
        "eager",
        "sdpa",
    )


def test_an_exception_in_a_pass_leaves_the_watch_usable():
    model, ids = causal("Llama"), tokens(1, 7)
    with watch(model, [Entropy()]) as session, torch.no_grad():
        with pytest.raises(IndexError):
            model(input_ids=ids + 1000)
        with pytest.raises(TypeError):
            model(ids, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
        model(input_ids=ids)
    assert session["entropy"][0].value.isfinite().all()


def test_a_second_watch_on_the_model_is_refused():
    model = causal("Llama")
    said = "model: got LlamaForCausalLM, which is being watched already"
    with watch(model), pytest.raises(RuntimeError, match=said), watch(model):
        pass
    twin = type(model)(model.config)
    with watch(model), pytest.raises(RuntimeError, match="shares its configuration"), watch(twin):
        pass


def test_two_models_are_watched_at_once():
    one, other, ids = causal("Llama"), causal("Qwen3"), tokens(1, 7)
    with watch(one, [Entropy()]) as first, watch(other, [Distance()]) as second, torch.no_grad():
        one(input_ids=ids)
        other(input_ids=ids)
    assert first["entropy"].keys() == second["distance"].keys() == {0, 1}


def test_a_second_thread_is_refused():
    model, ids = causal("Llama"), tokens(1, 7)
    caught: list[BaseException] = []

    class Meanwhile(Entropy):
        def update(self, tile) -> None:
            def other() -> None:
                try:
                    model(input_ids=ids)
                except RuntimeError as error:
                    caught.append(error)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            super().update(tile)

    with watch(model, [Meanwhile()]) as session, torch.no_grad():
        model(input_ids=ids)
    assert "from a second thread" in str(caught[0])
    assert session["entropy"].keys() == {0, 1}


def test_a_model_that_never_calls_the_interface_is_refused_by_name():
    model = rwkv()
    with (
        pytest.raises(RuntimeError, match="model: got RwkvModel, which ran a whole forward pass without"),
        watch(model),
        torch.no_grad(),
    ):
        model(input_ids=tokens(1, 7))
    assert left_as_it_was(model, model.config.to_dict())


def test_sams_own_softmax_is_read():
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.SamVisionConfig(
        **vision, mlp_dim=17, output_channels=8, global_attn_indexes=[0], window_size=2
    )
    model = transformers.SamVisionModel(config).eval()
    with watch(model, keep=1e9) as session, torch.no_grad():
        model(pixel_values=torch.randn(1, 3, 32, 32))
    assert [(layer.heads, layer.causal) for layer in session.layers] == [(2, False)]
    assert session.maps[0].weights(torch.arange(16)).shape == (1, 2, 16, 16)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(TypeError, match="model: got a Linear, want a Transformers model"), watch(torch.nn.Linear(2, 3)):
        pass


def test_a_keyword_that_selects_keys_is_refused():
    model = causal("Llama")
    q = torch.zeros(1, 6, 3, 4)
    with watch(model) as session, pytest.raises(ValueError, match="block_indices: got a selection of keys"):
        session.attachment.attend(model.model.layers[0].self_attn, q, q, q, None, block_indices=torch.zeros(1))


def test_a_second_sequence_is_refused_by_probes_of_one():
    model = causal("Llama")
    with watch(model, [Entropy(), Received()]), torch.no_grad():
        model(input_ids=tokens(1, 7))
        with pytest.raises(ValueError, match=r"tile.sequence: got sequence 1 after 0, want one sequence: received"):
            model(input_ids=tokens(1, 7))


def test_an_unknown_probe_is_named():
    with watch(causal("Llama"), [Edges(), Pooled(7, 3)]) as session, pytest.raises(KeyError, match=r"edges.*pooled"):
        session["entropy"]


@pytest.mark.parametrize("length", [12, 9])
def test_a_decoder_compares_its_own_tokens_and_cross_attention_none(length):
    """Also where both texts are of one length, and when tokens are generated."""
    model, source, text = t5(), tokens(1, length, seed=1), tokens(1, 6).repeat(1, 2)

    def seen(layers, run):
        with watch(model, [DuplicateToken()], layers=layers, keep=1e9) as session, torch.no_grad():
            out = run()
        return session, out

    session, _ = seen([0, 2], lambda: model(input_ids=source, decoder_input_ids=text))
    for layer, ids in ((0, source), (2, text)):
        same = (ids[0, :, None] == ids[0]).tril(-1)
        own = session.maps[layer].strip(torch.arange(ids.shape[1])).weights[0]
        weights = own[..., : ids.shape[1]].masked_fill(~same, 0).sum(2)
        expected = weights[:, same.any(1)].mean(1).double()
        torch.testing.assert_close(session["duplicate_token"][layer].value, expected, atol=1e-6, rtol=1e-5)
    few = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    session, out = seen([2], lambda: model.generate(source, decoder_input_ids=text, **few))
    whole, _ = seen([2], lambda: model(input_ids=source, decoder_input_ids=out[:, :-1]))
    got, expected = (x["duplicate_token"][2].value for x in (session, whole))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="layers: got 3, which attends to another sequence"):
        seen(None, lambda: model(input_ids=source, decoder_input_ids=text))
