"""What plans claim: rooflines equal counted einsums, calibrated steps are predicted, cascades pass 3, 2, 1 times."""

import math

import pytest
import torch

from regard.claims.planning import latent_step
from regard.plan.device import DEVICES
from regard.plan.kinetics import at_budget, frontier, kinetics
from regard.plan.mixers import GroupedAttention, LatentAttention
from regard.plan.published import MODELS
from regard.plan.roofline import Network
from regard.studies.fusemax import DEFERRED, NAIVE, RUNNING, Array, attention_by

LATENT = {form: LatentAttention(96, 8, 24, 16, 12, 4, 10, form) for form in ("cached", "expanded", "absorbed")}


@pytest.mark.parametrize("form", LATENT)
@pytest.mark.parametrize(("batch", "context"), [(1, 64), (3, 1000)])
def test_latent_formulas_equal_the_einsums(form, batch, context):
    """FLOPs, weight bytes and cache bytes of latent attention equal those of its einsums, in all three forms."""
    attention = LATENT[form]
    work = attention.projections(batch, 2) + attention.core(batch, context, 2)
    flops, weights, cache = latent_step(attention, batch, context)
    assert (work.flops, work.weights, work.cache) == (flops, 2 * weights, 2 * cache)


def test_intensities():
    """Absorbed latent attention has over 100 times the intensity of multi-head; an expert's grows with tokens."""
    deepseek = MODELS["deepseek-v3"].mixers[0][1]
    absorbed = deepseek.core(1, 4096, 2).intensity
    plain = GroupedAttention(7168, 128, 128, 128).core(1, 4096, 2).intensity
    assert plain == 1.0
    assert absorbed / plain >= 100
    assert GroupedAttention(4096, 32, 8, 128).core(1, 100, 2).intensity == 4.0
    experts = Network(7168, 2048, 256, 8, shared=2048)
    for batch in (32, 320, 3200):
        assert experts.expert_step(batch, 2).intensity == pytest.approx(batch * 8 / 256)


def test_published_sizes():
    """The formulas give the published numbers of parameters."""
    for name, billions in {"llama3-8b": 8.03, "qwen3-32b": 32.8, "deepseek-v3": 671}.items():
        assert MODELS[name].parameters / 1e9 == pytest.approx(billions, rel=0.005), name


def test_attention_share_grows():
    """The share of cost that is due to the context grows with its length, to most of it."""
    shares = [
        kinetics(MODELS["qwen3-8b"], DEVICES["b200"], 1024, n, 16, 64).attention_share for n in (256, 4096, 65536)
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9


def toy_rate(name, answer):
    """An assumed chance of a right answer: grows with the model's size and, saturating, with the answer's length."""
    size = MODELS[name].parameters / 1e9
    return 0.5 * (1 - math.exp(-((size / 8) ** 0.4))) * (1 - math.exp(-answer / 8192))


def test_sparse_frontier_is_above():
    """With reads capped at 1,024 tokens the frontier of assumed solve rates costs nowhere more and at the top half."""
    models = {name: MODELS[name] for name in MODELS if name.startswith("qwen3")}
    sparse = {name: model.sparse(1024) for name, model in models.items()}
    answers, samples = [2**i for i in range(9, 16)], [2**i for i in range(5)]
    dense, capped = (
        frontier(which, DEVICES["b200"], 512, answers, samples, toy_rate, batch=256) for which in (models, sparse)
    )
    assert all(at_budget(capped, plan.cost) >= plan.rate for plan in dense)
    shares = [min(other.cost for other in capped if other.rate >= plan.rate) / plan.cost for plan in dense]
    assert max(shares) <= 1
    assert shares[-1] < 0.5


def test_passes_over_the_keys():
    """Naive, deferred and running softmax pass three times, twice and once over the keys."""
    assert [cascade.passes("m") for cascade in (NAIVE, DEFERRED, RUNNING)] == [3, 2, 1]


@pytest.mark.parametrize("cascade", [NAIVE, DEFERRED, RUNNING], ids=lambda cascade: cascade.name)
def test_cascades_are_softmax(cascade):
    """Each cascade, run as written, is softmax attention."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, d, dtype=torch.float64) for n, d in ((7, 5), (48, 5), (48, 3)))
    want = torch.softmax(q @ k.mT, -1) @ v
    torch.testing.assert_close(attention_by(cascade, q, k, v), want, atol=1e-12, rtol=1e-12)


def test_array_stays_busy():
    """One pass keeps the array at least 95% busy at long n, its buffer does not grow; three passes do neither."""
    array = Array()
    short, long = (array.model(RUNNING, n, n, 64, 64) for n in (1 << 14, 1 << 20))
    naive_short, naive = (array.model(NAIVE, n, n, 64, 64) for n in (1 << 14, 1 << 20))
    assert long.utilisation >= 0.95
    assert long.buffer == short.buffer
    assert naive.buffer > naive_short.buffer
    assert naive.cycles > long.cycles
