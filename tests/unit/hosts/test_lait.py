"""LAIT on MiniLM: the encoder at no layers apart, cached segments, and what is spared."""

import pytest
import torch

from regard.hosts import small
from regard.hosts.bert.lait import LayerAdjustable


@pytest.fixture(scope="module")
def minilm():
    return small.load("minilm")


@pytest.fixture
def segments(minilm):
    texts = ("The river runs to the sea.", "Where does the water of a river go in the end?")
    return [minilm[1](text, return_tensors="pt").input_ids for text in texts]


@torch.no_grad()
def test_no_layers_apart_is_the_encoder(minilm, segments):
    """P = 0 equals the encoder on both segments as one text."""
    model, _ = minilm
    kinds = torch.cat([torch.full_like(ids, i) for i, ids in enumerate(segments)], 1)
    want = model(input_ids=torch.cat(segments, 1), token_type_ids=kinds).last_hidden_state
    torch.testing.assert_close(LayerAdjustable(model, 0)(*segments), want, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("apart", [1, 4, 6])
def test_cached_segments_equal_those_encoded_anew(minilm, segments, apart):
    """Segments encoded once, in any batch and order, join as if encoded anew; P = L is a dual encoder."""
    lait = LayerAdjustable(minilm[0], apart)
    want = lait(*segments)
    second = lait.encode(segments[1].repeat(3, 1), 1)[1:2]
    torch.testing.assert_close(lait.join([lait.encode(segments[0]), second]), want, atol=1e-5, rtol=1e-5)
    changed = lait(segments[0], segments[1].flip(1))[:, : segments[0].shape[1]]
    same = torch.allclose(changed, want[:, : segments[0].shape[1]], atol=1e-5)
    assert same == (apart == 6)


def test_what_is_spared(minilm):
    """Two segments of 64 tokens: P = 4 of 6 layers spares a third of attention's pairs."""
    whole, part = (LayerAdjustable(minilm[0], apart).pairs([64, 64]) for apart in (0, 4))
    assert 1 - part / whole >= 0.3


def test_bad_input_is_named(minilm):
    with pytest.raises(ValueError, match="apart"):
        LayerAdjustable(minilm[0], 7)
    with pytest.raises(TypeError, match="model"):
        LayerAdjustable(small.load("tiny")[0], 1)  # pyright: ignore
    with pytest.raises(ValueError, match="segments"):
        LayerAdjustable(minilm[0], 2)()
    with pytest.raises(ValueError, match="apart"):
        LayerAdjustable(minilm[0], 0).encode(torch.ones(1, 3, dtype=torch.int64))
