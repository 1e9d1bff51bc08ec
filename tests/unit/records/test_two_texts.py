"""Records of encoder–decoders: every stack's maps are the model's own, of its own texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from regard.probes import Links
from regard.records.record import Record, record
from regard.web.cells import visible_pairs
from regard.web.payload import pack_one
from unit.hosts.models import VOCABULARY, eager, spread, t5, tokens
from unit.probes import dense as plain
from unit.probes.test_probes import dense_of
from unit.probes.test_record import close

START = 0


def marian() -> transformers.PreTrainedModel:
    torch.manual_seed(5)
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3}
    sizes |= {"d_model": 24, "encoder_ffn_dim": 31, "decoder_ffn_dim": 31, "max_position_embeddings": 61}
    ends = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": START}
    return spread(transformers.MarianMTModel(transformers.MarianConfig(**sizes, vocab_size=VOCABULARY, **ends)))


def made(make, n: int, m: int, **options) -> tuple[Record, dict[int, torch.Tensor], list[int], list[int]]:
    """The record, the dense weights by layer, the decoder's tokens and the encoder's."""
    model, source, target = make(), tokens(1, m)[0].tolist(), tokens(1, n - 1, seed=4)[0].tolist()
    seen = record(model, None, source, target, **options)
    ids = [START, *target]
    out = eager(model, input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids]))
    pairs = zip(out.decoder_attentions, out.cross_attentions, strict=True)
    every = [*out.encoder_attentions, *(weights for pair in pairs for weights in pair)]
    return seen, {layer: weights[0].double() for layer, weights in enumerate(every)}, ids, source


@pytest.mark.parametrize("make", [t5, marian])
@pytest.mark.parametrize(("n", "m"), [(11, 23), (19, 7), (13, 13)])
def test_the_maps_of_every_stack_are_the_models_own(make, n, m):
    seen, dense, ids, source = made(make, n, m)
    assert (seen.header["tokens"], seen.header["source_tokens"]) == (n, m)
    assert (seen.tokens["ids"], seen.tokens["source"]["ids"]) == (ids, source)
    side = max(n, m)
    for layer in seen.layers:
        a, of = dense[layer["index"]], lambda name, layer=layer: seen.arrays[f"{layer['index']}/{name}"]
        rows, keys = seen.sizes(layer)
        assert a.shape == (3, rows, keys)
        close(of("entropy_rows"), -torch.xlogy(a, a).sum(-1), atol=1e-4)
        counts = rows - torch.arange(keys) if layer["causal"] else torch.full((keys,), rows)
        close(of("received"), a.sum(1) / counts, atol=1e-4)
        links = Links(of("edge_rows"), of("edge_starts"), of("edge_keys"), of("edge_weights").float())
        found = dense_of(links, side)[:, :rows, :keys]
        unclear = (a - 0.01).abs() < 1e-5
        close(found.masked_fill(unclear, 0), torch.where(a >= 0.01, a, 0).masked_fill(unclear, 0), atol=1e-3)
        assert (f"{layer['index']}/induction" in seen.arrays) == (layer["reads"][0] == layer["reads"][1])
    own = [layer["index"] for layer in seen.layers if layer["reads"] == ["target", "target"]]
    for index in own:  # by the decoder's own tokens, also where both texts are as long
        close(seen.arrays[f"{index}/induction"], plain.induction(dense[index], ids), atol=1e-4)
        close(seen.arrays[f"{index}/duplicate_token"], plain.duplicate(dense[index], ids), atol=1e-4)


def test_regions_between_the_texts_are_recomputed_and_bounded(tmp_path):
    seen, dense, *_ = made(marian, 11, 23, keep=True)
    seen = Record.load(seen.save(tmp_path / "seen"))
    for layer in seen.layers:
        _, keys = seen.sizes(layer)
        close(seen.region(layer["index"], 2, slice(None), slice(None)), dense[layer["index"]][2], atol=1e-4)
        with pytest.raises(ValueError, match=f"of the {keys} tokens"):
            seen.region(layer["index"], 0, slice(0, 1), slice(keys, keys + 2))


def test_what_it_writes_is_recorded_with_what_it_expected():
    model, source = marian(), tokens(1, 17)[0].tolist()
    seen = record(model, None, source, generate=6, predict=4)
    written = model.generate(torch.tensor([source]), max_new_tokens=6, do_sample=False, num_beams=1)[0].tolist()
    assert seen.tokens["ids"] == written
    assert seen.header["prompt_tokens"] == 1
    chances = eager(model, input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([written])).logits[0]
    best = chances.softmax(-1).topk(4).values
    torch.testing.assert_close(seen.arrays["next/probabilities"], best, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("n", "m"), [(5, 11), (11, 5)])
def test_the_page_has_the_layers_by_stack_and_the_means_of_their_cells(tmp_path, n, m):
    folder = made(marian, n, m)[0].save(tmp_path / "seen")
    header, _ = pack_one(folder)
    stacks = [tuple(layer["reads"]) for layer in header["record"]["layers"]]
    assert stacks == [("source",) * 2] * 2 + [("target",) * 2] * 2 + [("target", "source")] * 2
    record_, cells = json.loads((folder / "record.json").read_text()), 11
    with safe_open(folder / "arrays.safetensors", framework="numpy") as arrays:
        for layer in record_["layers"]:
            rows, keys = (m if text == "source" else n for text in layer["reads"])
            pairs = visible_pairs(11, cells, layer, np.arange(11) < rows, keys)
            seen = np.tri(rows, keys, dtype=bool) if layer["causal"] else np.ones((rows, keys), bool)
            np.testing.assert_array_equal(pairs[:rows, :keys], seen)
            assert pairs.sum() == seen.sum()
            mass = np.nan_to_num(arrays.get_tensor(f"{layer['index']}/pooled")).astype(float) * pairs
            np.testing.assert_allclose(mass.sum(2)[:, :rows], 1, atol=1e-2)
