"""Encoder–decoders whose cross-attention expands its queries: the same logits, and nothing kept of the source."""

from contextlib import ExitStack

import pytest
import torch
import transformers

from regard.hosts.expanded import ExpandedCross
from regard.hosts.watch import watch
from regard.probes import EntropyRows
from unit.hosts.models import causal

BART = {"vocab_size": 29, "d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 3}
BART |= {"decoder_attention_heads": 6, "encoder_ffn_dim": 17, "decoder_ffn_dim": 19, "max_position_embeddings": 64}
BART |= {"attention_dropout": 0.1}
T5 = {
    "vocab_size": 29,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 17,
    "num_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
}
WHISPER = {**BART, "num_mel_bins": 7, "max_source_positions": 8, "max_target_positions": 32, "pad_token_id": 0}
KINDS = {
    "Bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
    "Marian": lambda: transformers.MarianMTModel(
        transformers.MarianConfig(**BART, pad_token_id=0, decoder_start_token_id=0)
    ),
    "T5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
    "Whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**WHISPER, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    ),
}


def made(kind, how="sdpa"):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    model.set_attn_implementation(how)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3 if parameter.dim() > 1 else 0.1).add_(1.0 if "norm.weight" in name else 0.0)
    return model


def inputs(kind):
    if kind == "Whisper":
        return {"input_features": torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))}
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.arange(3, 17).view(2, 7), "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "how"), [("Bart", "sdpa"), ("Bart", "eager"), ("Marian", "sdpa"), ("T5", "eager"),
                                           ("T5", "sdpa"), ("Whisper", "sdpa")])  # fmt: skip
def test_logits_are_the_same(kind, how):
    """In one call, and while it decodes with a cache, in which nothing of the source is kept."""
    model, given, ids = made(kind, how), inputs(kind), torch.tensor([[1, 5, 9, 4, 8], [1, 7, 3, 6, 11]])
    want = model(**given, decoder_input_ids=ids).logits
    with ExpandedCross(model):
        got = model(**given, decoder_input_ids=ids, use_cache=True)
        first = model(**given, decoder_input_ids=ids[:, :3], use_cache=True)
        cache = first.past_key_values
        rest = {"encoder_outputs": (first.encoder_last_hidden_state,), "past_key_values": cache}
        rest |= {"attention_mask": given["attention_mask"]} if "attention_mask" in given else {}
        later = model(**rest, decoder_input_ids=ids[:, 3:]).logits
    assert (got.logits - want).abs().max() < 1e-5 * want.abs().max()
    assert (later - want[:, 3:]).abs().max() < 1e-5 * want.abs().max()
    assert cache.cross_attention_cache.get_seq_length() == 0
    assert cache.self_attention_cache.get_seq_length() == 5
    assert torch.equal(model(**given, decoder_input_ids=ids).logits, want)


@torch.no_grad()
def test_beams_and_maps_are_the_same():
    model, given = made("Bart", "eager"), inputs("Bart")
    about = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    want = model.generate(**given, **about)
    seen = model(**given, decoder_input_ids=torch.tensor([[1, 5], [1, 7]]), output_attentions=True).cross_attentions
    with ExpandedCross(model):
        assert torch.equal(model.generate(**given, **about), want)
        maps = model(**given, decoder_input_ids=torch.tensor([[1, 5], [1, 7]]), output_attentions=True).cross_attentions
    assert len(maps) == 2
    for one, other in zip(maps, seen, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_bias_of_values_is_added_once():
    """A bias moves the logits; that of the keys alone does not, as every score of a query gets the same."""
    model, given, ids = made("Bart"), inputs("Bart"), torch.tensor([[1, 5], [1, 7]])
    attention = model.model.decoder.layers[0].encoder_attn
    with ExpandedCross(model):
        before = model(**given, decoder_input_ids=ids).logits
        attention.k_proj.bias.add_(3.0)
        assert torch.equal(model(**given, decoder_input_ids=ids).logits, before)
        attention.v_proj.bias.add_(3.0)
        after = model(**given, decoder_input_ids=ids).logits
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(model(**given, decoder_input_ids=ids).logits, after, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_it_is_watched_like_any_other():
    """Probes see the cross-attention's A in the same layers, whichever form computes it."""
    model, given, found = made("Bart"), inputs("Bart"), []
    ids = torch.tensor([[1, 5], [1, 7]])
    for ways in ([], [ExpandedCross(model)]):
        with ExitStack() as stack:
            for way in ways:
                stack.enter_context(way)
            with watch(model, [EntropyRows()]) as session:
                model(**given, decoder_input_ids=ids)
            found.append(session["entropy_rows"])
    assert len(found[0]) == len(found[1]) == 5
    for one, other in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_what_has_none_is_refused():
    with pytest.raises(ValueError, match="model: got LlamaForCausalLM, want an encoder–decoder"):
        ExpandedCross(causal("Llama"))
    model = made("Bart").train()
    with ExpandedCross(model), pytest.raises(ValueError, match="in training, whose weights are dropped"):
        model(**inputs("Bart"), decoder_input_ids=torch.tensor([[1], [1]]))
    with ExpandedCross(model), pytest.raises(ValueError, match="encoder_outputs: got none"):
        model.model.decoder.layers[0].encoder_attn(torch.zeros(1, 1, 24))
    with ExpandedCross(model), pytest.raises(RuntimeError, match="replaced already"):
        ExpandedCross(model).install()
