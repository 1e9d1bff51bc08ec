"""Networks of recurrences and attention: what their equations say beside what is computed."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from regard.core.layout import Layout
from regard.kernels.scan import gated
from regard.networks import Config
from regard.networks.hymba import HymbaLM
from regard.networks.mega import MegaBlock, MegaLM, MovingAverage, faded, gathered
from regard.networks.sha_rnn import ShaRNN
from regard.networks.simba import SHRUNK, EinFFT, Simba

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


@pytest.mark.parametrize("n", [0, 1, 9, 10])
def test_sums_of_powers_where_all_or_nothing_is_kept(n):
    drawn = torch.Generator().manual_seed(n)
    kept = torch.tensor([[0.0, 1.0, 0.5], [0.999, 1e-30, 0.7]], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 2, 3, generator=drawn, dtype=torch.float64)
    x = torch.randn(4, n, 2, generator=drawn, dtype=torch.float64)
    powers = torch.stack([kept**t for t in range(n)], -1) if n else kept[..., None][..., :0]
    pairs = (
        (faded(weights, kept, n), torch.einsum("bcs,cst->bct", weights, powers)),
        (gathered(x, kept), torch.einsum("btc,cst->bcs", x, powers.flip(-1))),
    )
    for got, want in pairs:
        torch.testing.assert_close(got, want)
        slopes = (torch.autograd.grad(each.sum(), kept, retain_graph=True)[0] for each in (got, want))
        torch.testing.assert_close(*slopes)


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


def test_the_frequency_network_is_one_of_complex_numbers():
    torch.manual_seed(0)
    mixer, x = EinFFT(12, 4).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(30)
        spectrum = torch.fft.fftn(x.view(2, 7, 4, 3), dim=(1, 2), norm="ortho")
        for place in range(2):
            weight, bias = (torch.complex(*part) for part in (mixer.weights[place], mixer.biases[place]))
            spectrum = torch.einsum("bnkd,kde->bnke", spectrum, weight) + bias
            apart = F.softshrink if place else F.relu
            given = {"lambd": SHRUNK} if place else {}
            spectrum = torch.complex(apart(spectrum.real, **given), apart(spectrum.imag, **given))
        want = torch.fft.ifftn(spectrum, dim=(1, 2), norm="ortho").real.reshape(2, 7, 12)
        torch.testing.assert_close(mixer(x), want)
        assert not torch.equal(mixer(x)[:, :3], mixer(torch.cat([x[:, :6], 1 + x[:, 6:]], 1))[:, :3])  # not causal


def test_of_two_layers_within_a_window_one_has_keys():
    """And whole, and with keys of its own, are the first, the middle and the last."""
    model = HymbaLM(Config(29, 12, "softmax*9", heads=2), window=5, meta=2, seed=0)
    assert [block.attention.kv is not None for block in model.layers] == [c == "k" for c in "kk-kkk-kk"]
    whole = [type(block.attention.mechanism).__name__ == "Softmax" for block in model.layers]
    assert whole == [c == "w" for c in "w---w---w"]


def test_the_cache_of_shared_keys_is_held_once():
    model = HymbaLM(Config(29, 12, "softmax*9", heads=2), window=5, meta=2, seed=0)
    ids = torch.randint(29, (1, 23), generator=torch.Generator().manual_seed(0))
    _, state = model.extend(ids, model.start(1))
    assert state.bytes == model.state_bytes(23)


def test_mega_counts_its_products():
    """Of 2 · 15 tokens: in each of two blocks matrices of 12 × 17 twice, 12 × 11 twice and 12 × 42, and 12 products of
    the average's own input; 6 chunks of 5² pairs of at most 11 numbers, twice; then 29 logits."""
    token = 2 * (2 * 12 * 17 + 2 * 12 * 11 + 12 * 42 + 12)
    want = 2 * (30 * token + 6 * 2 * 2 * 25 * 11) + 30 * 2 * 12 * 29
    assert MegaLM(SIZES, 5, 7, 11, 3, seed=0).flops(15, batch=2) == want


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MegaLM(Config(29, 12, "gla*2")), "layers"),
        (lambda: MegaLM(SIZES, chunk=0), "chunk"),
        (lambda: HymbaLM(SIZES, window=0), "window"),
        (lambda: EinFFT(10, 4), "blocks"),
        (lambda: Simba(0, 5), "series"),
        (lambda: Simba(3, 5, 12, 1, 4)(torch.zeros(1, 4, 2)), "x"),
        (lambda: HymbaLM(SIZES, meta=-1), "meta"),
        (lambda: HymbaLM(SIZES)(torch.zeros(1, 3).long(), segments=torch.zeros(1, 3).long()), "segments"),
        (lambda: ShaRNN(Config(29, 12, "softmax")), "layers"),
        (lambda: ShaRNN(SIZES, memory=0), "memory"),
    ],
)
def test_what_cannot_be(make, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        make()


def test_flops_of_a_hybrid_are_counted_where_its_scans_are_products(monkeypatch):
    """PyTorch counts no states of single values; those of pairs of tokens it does, and all of the rest."""
    model = HymbaLM(Config(29, 12, "softmax*7", heads=2, kv_heads=1, inner=17), window=5, meta=3, seed=0)
    ids = torch.randint(29, (2, 23))
    narrow = model.flops(23, 2)
    monkeypatch.setattr(gated, "NARROW", 0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids)
    assert model.flops(23, 2) == counter.get_total_flops() > narrow
