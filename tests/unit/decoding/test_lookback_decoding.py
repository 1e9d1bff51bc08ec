"""Of the sampled pieces the best by its ratios goes on, and the ratios are those of one pass over the text."""

from __future__ import annotations

import pytest
import torch

from regard.decoding import LookbackDecoding
from regard.decoding.lookback_decoding import Pieces, best, fitted, ratios_of
from regard.laws.edit import model
from regard.laws.small import tokens
from unit.decoding.test_strategies import generated
from unit.hosts.test_watch import CLOSE

WEIGHT = torch.tensor([3.0, -2, 5, -1, 4, -6, 2, -3, 1, 7, -5, 6])


def pieces_of(monkeypatch, strategy, ids, **options):
    """What is generated, and of each round all pieces with their ratios and the rows that went on."""
    rounds, keep = [], Pieces.keep

    def kept(self, rows):
        rounds.append((self.ids.clone(), self.means.clone(), rows))
        keep(self, rows)

    monkeypatch.setattr(Pieces, "keep", kept)
    torch.manual_seed(5)
    return generated(strategy, ids, do_sample=True, top_k=0, temperature=2.0, **options), rounds


def test_the_piece_of_the_best_score_goes_on(monkeypatch):
    ids = tokens(2, 9)
    out, rounds = pieces_of(monkeypatch, LookbackDecoding(WEIGHT, 0.3, 4, 3), ids, max_new_tokens=7)
    assert [held.shape for held, _, _ in rounds] == [(8, 12), (8, 15), (8, 16)]
    for held, means, rows in rounds:
        begun = held.shape[1] - (3 if held.shape[1] < 16 else 1)
        alone = torch.stack([ratios_of(model(), text, 8, begun) for text in held])
        torch.testing.assert_close(means, alone, **CLOSE)
        scores = (alone @ WEIGHT).view(2, 4)
        assert rows.tolist() == [int(scores[0].argmax()), 4 + int(scores[1].argmax())]
        assert len({tuple(row) for row in held.tolist()}) > 4
    assert torch.equal(out, rounds[-1][0][rounds[-1][2]])


def test_padded_prompts_have_texts_of_their_own_length(monkeypatch):
    ids = tokens(2, 9)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    padded[0] = tokens(1, 12)
    mask = torch.ones_like(padded)
    mask[1, :3] = 0
    _, rounds = pieces_of(monkeypatch, LookbackDecoding(WEIGHT, 0.0, 2, 4, 2), padded, attention_mask=mask)
    held, means, _ = rounds[0]
    torch.testing.assert_close(means[0], ratios_of(model(), held[0], 10, 12), **CLOSE)
    torch.testing.assert_close(means[3], ratios_of(model(), held[3, 3:], 7, 9), **CLOSE)


def test_the_first_of_equals_is_kept():
    assert best(torch.tensor([1.0, 3, 3, 2, 2, 2]), 3).tolist() == [1, 3]


def test_the_classifier_is_where_its_gradient_is_zero():
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(31, 5, generator=source), torch.arange(31) % 3 == 0
    weight, bias = fitted(x, y, 0.5)
    off = torch.sigmoid(x @ weight + bias) - y.float()
    torch.testing.assert_close(x.T @ off + 0.5 * weight, torch.zeros(5), atol=1e-3, rtol=0)
    assert abs(float(off.sum())) < 1e-3


def test_what_cannot_be_guided_is_refused():
    with pytest.raises(ValueError, match="candidates: got 0, want at least 1"):
        LookbackDecoding(WEIGHT, candidates=0)
    with pytest.raises(ValueError, match="weight: got 3 numbers, want 12, one for each head"):
        generated(LookbackDecoding(WEIGHT[:3]), tokens(1, 9))
    with pytest.raises(ValueError, match="question: got 9 of a prompt of 9 tokens"):
        generated(LookbackDecoding(WEIGHT, question=9), tokens(1, 9))
    with pytest.raises(ValueError, match="beam"):
        generated(LookbackDecoding(WEIGHT), tokens(1, 9), num_beams=2)
    with pytest.raises(ValueError, match="given: got 9 of 12 tokens"):
        ratios_of(model(), tokens(1, 12)[0], 9, 9)
