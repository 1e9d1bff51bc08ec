"""Texts as they are packed: where the mark stands."""

from __future__ import annotations

import pytest
import torch

from regard.claims.beginnings import BEGIN, sinks, texts
from regard.networks import LM, Config


@pytest.mark.parametrize("packed", ["begun", "bare", "between"])
def test_the_mark_stands_where_texts_begin(packed):
    ids = texts(packed, 41, 19, torch.Generator().manual_seed(0))
    marks = ids == BEGIN
    assert ids.shape == (41, 19)
    assert marks.sum(1).tolist() == [0 if packed == "bare" else 1] * 41
    if packed == "begun":
        assert marks[:, 0].all()
    if packed == "between":
        assert len(marks.int().argmax(1).unique()) > 5


def test_heads_that_look_at_the_first_token_are_sinks():
    """Keys of zero but the first token's, in the first of two layers: half of the heads."""
    model = LM(Config(BEGIN + 1, 8, "softmax*2", heads=2, rotary_base=None), seed=0)
    ids = torch.randint(BEGIN, (3, 29), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BEGIN
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.projection.k.weight.zero_()
        assert sinks(model, ids) == 0
        model.embedding.weight[BEGIN], model.embedding.weight[:BEGIN, 0] = torch.eye(8)[7], 1.0
        first = model.layers[0].attention.projection
        first.q.weight.zero_()
        first.q.weight[:, 0], first.k.weight[:, 7] = 30.0, 3.0
    assert sinks(model, ids) == 0.5
