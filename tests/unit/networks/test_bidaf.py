"""Reading both ways: letters, highways and ends by hand."""

import pytest
import torch
import torch.nn.functional as F

from regard.networks.bidaf import BiDAF, Highway, Spelling, random_spelled


def test_words_are_the_largest_of_their_windows_by_hand():
    """Of a word of seven letters, windows that begin at each of them; letters behind the end change nothing."""
    spelling = Spelling(9, 3).double()
    word = torch.tensor([4, 1, 8, 2, 2, 5, 7])
    windows = F.pad(spelling.embed(word), (0, 0, 0, 4)).unfold(0, 5, 1)
    each = torch.einsum("wcs,ocs->wo", windows, spelling.convolve.weight) + spelling.convolve.bias
    wanted = each.relu().amax(0)
    torch.testing.assert_close(spelling(word[None, None])[0, 0], wanted)
    torch.testing.assert_close(spelling(F.pad(word, (0, 3))[None, None])[0, 0], wanted)


def test_a_highway_that_is_shut_is_not_there():
    highway, x = Highway(5).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    torch.nn.init.constant_(highway.gate.bias, -40.0)
    torch.testing.assert_close(highway(x), x)
    torch.nn.init.constant_(highway.gate.bias, 40.0)
    torch.testing.assert_close(highway(x), highway.map(x).relu())


def test_the_last_word_is_read_through_one_lstm_more():
    """Without it the first word's logits are the same, and the last's are not."""
    network = BiDAF(13, 8, letters=7, seed=0).double()
    given = random_spelled(2, 0)
    before = network(*given)
    torch.nn.init.zeros_(network.behind.weight_hh_l0)
    torch.nn.init.zeros_(network.behind.weight_ih_l0)
    after = network(*given)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-3


def test_padding_of_the_question_changes_nothing_and_letters_do():
    network = BiDAF(13, 8, letters=7, seed=0).double()
    context, question, _, own, asked = random_spelled(2, 0)
    out = network(context, question, None, own, asked)
    other = torch.where(own > 0, own % 6 + 1, own)
    assert (network(context, question, None, other, asked) - out).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"^letters: got none, want \(2, 11, c\)"):
        network(context, question)
    with pytest.raises(ValueError, match=r"^letters: got shape"):
        BiDAF(13, 8)(context, question, None, own, asked)
