"""A decoder that reads its source: padded sources, beams, what may come next, alignments and their error."""

import pytest
import torch

import regard
from regard.analysis.align import Alignment
from regard.networks.encoder_decoder import EncoderDecoder
from regard.tasks.translation import Translation

READERS = [
    "luong_general",
    "local_p(reach=2)",
    "local_m(reach=2)",
    "composed(score=additive)",
    "sentinel(score=additive)",
]


def drawn(count=5):
    return Translation().batch(count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reader", READERS)
def test_padding_of_the_source_changes_nothing(reader):
    pairs, network = drawn(), EncoderDecoder(27, 28, 8, reader, seed=0).double()
    out = network(pairs.source, pairs.target, pairs.lengths)
    shown = network.alignment(pairs.source, pairs.target, pairs.lengths)
    for row, length in enumerate(pairs.lengths.tolist()):
        alone = network(pairs.source[row : row + 1, :length], pairs.target[row : row + 1])
        torch.testing.assert_close(out[row], alone[0], rtol=0, atol=1e-10)
        assert shown[row, :, length:].count_nonzero() == 0


def test_greedy_writing_is_what_is_likeliest_at_each_step():
    pairs, network = drawn(), EncoderDecoder(27, 28, 8, seed=0).double()
    written = network.generate(pairs.source, 6, pairs.lengths)
    logits = network(pairs.source, written, pairs.lengths)
    assert torch.equal(logits.argmax(-1), written)


def score_of(network, pairs, written):
    logits = network(pairs.source, written, pairs.lengths).log_softmax(-1)
    return logits.gather(2, written[..., None]).sum((1, 2))


def test_a_full_beam_finds_the_best_of_all():
    """Of three tokens each from three, by hand."""
    source = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(0))
    network = EncoderDecoder(5, 3, 8, seed=1).double()
    every = torch.cartesian_prod(*[torch.arange(3)] * 2)
    scores = torch.stack([score_of(network, Given(source), row.expand(4, 2)) for row in every], 1)
    found = network.generate(source, 2, beam=3)
    torch.testing.assert_close(score_of(network, Given(source), found), scores.max(1).values)


class Given:
    def __init__(self, source):
        self.source, self.lengths = source, None


def test_only_what_is_valid_is_written():
    """Each token once: a permutation."""

    def unused(chosen):
        return ~(chosen[..., None] == torch.arange(7)).any(1)

    network = EncoderDecoder(5, 7, 8, seed=0)
    found = network.generate(torch.zeros(3, 4, dtype=torch.int64), 7, beam=2, valid=unused)
    assert torch.equal(found.sort(1).values, torch.arange(7).expand(3, 7))


def test_alignment_error_by_hand():
    """Three links of which one is wrong and one is possible: 1 − (1 + 2) / (3 + 2)."""
    soft = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.0, 0.3, 0.7]]])
    sure = torch.tensor([[0, 0, -1]])
    possible = torch.zeros(1, 3, 3, dtype=torch.bool)
    possible[0, 2, 2] = True
    found = Alignment(soft)
    assert found.hard.tolist() == [[0, 1, 2]]
    assert found.error(sure, possible) == pytest.approx(1 - 3 / 5)
    assert found.error(found.hard) == 0
    assert Alignment(0.3 * soft).hard.tolist() == [[-1, -1, -1]]


def test_what_gives_no_alignment_is_named():
    with pytest.raises(TypeError, match=r"^model: got Linear, want one with alignment"):
        regard.align(torch.nn.Linear(2, 2), torch.zeros(1, 1), torch.zeros(1, 1))
    network = EncoderDecoder(5, 5, 8, None, seed=0)
    with pytest.raises(ValueError, match=r"^reader: got None"):
        regard.align(network, *torch.zeros(2, 1, 3, dtype=torch.int64))
