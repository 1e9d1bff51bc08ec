"""Positions and visible keys inside packed documents."""

import torch

from regard.core.layout import Layout

SEGMENTS = torch.tensor([[4, 4, 4, 9, 9, 2, 2]])
KEYS = torch.tensor([[True, False, True, False, True, True, True]])


def test_positions_start_again_with_each_document():
    assert Layout(segments=SEGMENTS).positions(7).tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    padded = Layout(segments=SEGMENTS, key_mask=KEYS).positions(7)
    assert padded[KEYS].tolist() == [0, 1, 0, 0, 1]


def test_counts_are_the_row_sums_of_what_is_allowed():
    for causal in (False, True):
        for keys in (None, KEYS):
            for segments in (None, SEGMENTS):
                layout = Layout(causal=causal, key_mask=keys, segments=segments)
                for n in (7, 3):
                    real = torch.ones(1, n, dtype=torch.bool) if keys is None else keys[:, 7 - n :]
                    assert torch.equal(layout.counts(n, 7)[:, 0][real], layout.allowed(n, 7).sum(-1)[:, 0][real])
