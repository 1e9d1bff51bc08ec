"""Networks of recurrences and attention: what their equations say beside what is computed."""

import pytest
import torch
import torch.nn.functional as F

from regard.core.layout import Layout
from regard.networks import Config
from regard.networks.mega import MegaBlock, MegaLM, MovingAverage
from regard.networks.sha_rnn import ShaRNN

CAUSAL = Layout(causal=True)
SIZES = Config(29, 12, "softmax*2", heads=1, inner=17)


def recurrence(average, x):
    """The moving average one token after another."""
    written, kept, read = average.rates
    h, outs = torch.zeros(x.shape[0], *written.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = kept * h + written * x[:, t, :, None]
        outs.append(F.silu((read * h).sum(-1) + average.omega * x[:, t]))
    return torch.stack(outs, 1), h


@pytest.mark.parametrize("n", [1, 2, 37])
def test_fourier_transforms_are_the_recurrence(n):
    torch.manual_seed(0)
    average, x = MovingAverage(5, 3).double(), torch.randn(2, n, 5, dtype=torch.float64)
    want, last = recurrence(average, x)
    torch.testing.assert_close(average(x, CAUSAL), want)
    before = torch.zeros(2, 5, 3, dtype=torch.float64)
    cut = n // 2
    first, before = average.extend(x[:, :cut], before, torch.ones(2, cut, dtype=torch.bool))
    rest, after = average.extend(x[:, cut:], before, torch.ones(2, n - cut, dtype=torch.bool))
    torch.testing.assert_close(torch.cat([first, rest], 1), want)
    torch.testing.assert_close(after, last)


def test_packed_documents_are_alone():
    for model in (MegaLM(SIZES, 5, 7, 11, 3, seed=0), ShaRNN(SIZES, memory=7, seed=0)):
        model = model.double()
        ids = torch.randint(29, (1, 23), generator=torch.Generator().manual_seed(0))
        segments = torch.tensor([[0] * 8 + [1] * 15])
        got = model(ids, segments=segments)
        for span in (slice(0, 8), slice(8, 23)):
            torch.testing.assert_close(got[:, span], model(ids[:, span]))


def test_only_the_average_crosses_the_borders_of_chunks():
    torch.manual_seed(0)
    block = MegaBlock(6, 5, 4, 7, 2, 4).double()
    with torch.no_grad():
        block.attention.average.delta.fill_(-torch.inf)  # p = 0: nothing is averaged
    x = torch.randn(1, 11, 6, dtype=torch.float64)
    other = torch.cat([torch.randn(1, 4, 6, dtype=torch.float64), x[:, 4:]], 1)
    torch.testing.assert_close(block(x, CAUSAL)[:, 4:], block(other, CAUSAL)[:, 4:])


def test_the_second_last_layer_alone_attends():
    model = ShaRNN(Config(29, 10, "softmax*4", heads=1), seed=0)
    assert [block.attention is not None for block in model.layers] == [False, False, True, False]
    assert not any(block.attention for block in ShaRNN(SIZES, attends=False).layers)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MegaLM(Config(29, 12, "gla*2")), "layers"),
        (lambda: MegaLM(SIZES, chunk=0), "chunk"),
        (lambda: ShaRNN(Config(29, 12, "softmax")), "layers"),
        (lambda: ShaRNN(SIZES, memory=0), "memory"),
    ],
)
def test_what_cannot_be(make, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        make()
