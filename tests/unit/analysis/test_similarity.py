"""Likeness of maps: of heads in another order, by NumPy's correlation, and of shapes that do not fit."""

import numpy as np
import pytest
import torch

from regard.analysis.similarity import map_similarity


def test_heads_in_another_order_look_alike():
    draw = torch.Generator().manual_seed(2)
    maps = torch.randn(3, 7, 7, generator=draw).masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf).softmax(2)
    assert float(map_similarity(maps, maps[[2, 0, 1]])) == pytest.approx(1)
    other = torch.randn(5, 7, 7, generator=draw).masked_fill(~torch.ones(7, 7).tril().bool(), -torch.inf).softmax(2)
    seen = np.tril(np.ones((7, 7), dtype=bool))
    table = np.corrcoef([of.numpy()[seen] for of in (*maps, *other)])[:3, 3:]
    assert float(map_similarity(maps, other)) == pytest.approx(table.max(1).mean(), abs=1e-6)
    assert float(map_similarity(maps, other)) != pytest.approx(float(map_similarity(other, maps)), abs=1e-3)
    with pytest.raises(ValueError, match="same text"):
        map_similarity(maps, other[:, :6, :6])
