"""Routers of a frozen model: what is trained, both ends, and that decisions hold while a text is continued."""

import json
from pathlib import Path

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.flux import Flux, unsure
from regard.mechanisms.sparse.window import SlidingWindow
from regard.train.fit import Recipe
from regard.train.routers import Prices, Sparing, routed, routers

from .test_extend import STREAM, logits, model

SPARING = Sparing(0.9, window=3, sinks=1, pool=4)
CAUSAL = Layout(causal=True)
VALUES = json.loads((Path(__file__).parents[2] / "reference" / "flux.json").read_text())


def draw(generator):
    start = int(torch.randint(len(STREAM) - 24, (), generator=generator))
    return (STREAM[None, start : start + 24],) * 2


def test_untrained_routers_change_nothing():
    begun = model()
    ids = STREAM[None, :20]
    found = routed(begun, SPARING)
    with found:
        torch.testing.assert_close(logits(begun, ids), logits(model(), ids))
    assert found.shares(ids) == [1.0, 1.0]


def test_only_routers_are_trained_and_become_sparing(tmp_path):
    begun, losses = model(), []
    found = routers(
        begun,
        {"a": draw, "b": draw},
        SPARING,
        Recipe(60, 3e-2, decay=0.0),
        tmp_path,
        report=lambda *x: losses.append(x),
    )
    for parameter, other in zip(begun.parameters(), model().parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert parameter.requires_grad
    assert sum(found.shares(STREAM[None, :24])) < 2
    assert len(losses) == 60
    found.save(tmp_path / "routers.pt")
    read = routed(model(), SPARING, seed=1).load(tmp_path / "routers.pt")
    for one, other in zip(read.layers.parameters(), found.layers.parameters(), strict=True):
        assert torch.equal(one, other)
    with found:
        begun.generate(STREAM[None, :9], max_new_tokens=3, do_sample=False)


def test_prices_rise_while_the_target_is_missed():
    prices, share = Prices(2), torch.tensor(0.25, requires_grad=True)
    prices(1, share, 0.5).backward()
    assert prices.rates.grad[1].lt(0).all()  # descent raises them
    assert not prices.rates.grad[0].any()
    rate = torch.nn.functional.softplus(torch.tensor(0.0))
    torch.testing.assert_close(share.grad, -rate + rate * 2 * (0.25 - 0.5))


def test_the_prompt_decides_and_the_decision_stays():
    torch.manual_seed(0)
    flux = unsure(Flux(6, 4, 1, pool=3)).double()
    q, k, v = torch.randn(3, 16, 2, 21, 6, dtype=torch.float64)
    first = flux.decision(q[:, :, :9])
    assert 0 < first.sum() < 16
    pooled = torch.cat([q[:, :, :3], q[:, :, 6:9]], 2).mean((1, 2))
    z = flux.router(flux.features(pooled))
    assert torch.equal(first, (z[:, 1] >= z[:, 0]).double())
    _, state = flux.extend(q[:, :, :9], k[:, :, :9], v[:, :, :9], flux.start(16, dtype=torch.float64))
    out, state = flux.extend(q[:, :, 9:], k[:, :, 9:], v[:, :, 9:], state)
    full, local = (m(q, k, v, CAUSAL)[:, :, 9:] for m in (Softmax(), SlidingWindow(4, 1)))
    torch.testing.assert_close(out, torch.where(first[:, None, None, None] == 1, full, local))


def test_answers_are_not_read():
    """Where the prompt is marked, what follows it says nothing; packed and padded alike, and while training."""
    torch.manual_seed(0)
    flux = unsure(Flux(6, 4, 1, pool=3)).double()
    q, k, v = torch.randn(3, 16, 2, 21, 6, dtype=torch.float64)
    want = flux.decision(q[:, :, :9])
    assert not torch.equal(want, flux.decision(q))
    flux.prompt = (torch.arange(21) < 9).expand(16, 21)
    assert torch.equal(flux.by_token(q, CAUSAL)[:, 20], want)
    segments = torch.zeros(16, 21, dtype=torch.int64)
    assert torch.equal(flux.by_token(q, Layout(causal=True, segments=segments))[:, 20], want)
    with pytest.raises(ValueError, match="prompt: got shape"):
        flux(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], CAUSAL)
    seen = []

    def marked(generator):
        ids, targets = draw(generator)
        return ids, targets, torch.arange(24)[None] < 15

    handle = Flux.logits
    try:
        Flux.logits = lambda self, q, real=None: seen.append(real) or handle(self, q, real)
        found = routers(model(), {"a": marked}, SPARING, Recipe(2, 3e-2, decay=0.0))
    finally:
        Flux.logits = handle
    assert seen
    assert all(real is not None and int(real.sum()) == 15 for real in seen)
    assert all(layer.prompt is None for layer in found.layers)


def test_samples_have_the_gradient_of_the_soft_ones():
    torch.manual_seed(0)
    flux = unsure(Flux(6, 4, 1))
    flux.temperature = 0.7
    q = torch.randn(5, 2, 9, 6)
    hard = flux.decision(q)
    assert set(hard.tolist()) <= {0.0, 1.0}
    hard.sum().backward()
    assert all(p.grad is not None for p in flux.parameters())


def test_logits_of_the_authors_router():
    """See tests/reference/flux.py."""
    flux = Flux(4, pool=5).double()
    with torch.no_grad():
        for number, parameter in enumerate(flux.parameters()):
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(0.7 * torch.sin(count * 0.7310585786 + 1 + number).view_as(parameter))
    q = 2 * torch.sin(torch.arange(2 * 3 * 17 * 4, dtype=torch.float64) * 0.7310585786).view(2, 17, 3, 4)
    want = torch.tensor(VALUES["logits"], dtype=torch.float64)
    torch.testing.assert_close(flux.logits(q.transpose(1, 2)), want, atol=1e-6, rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="tasks: got none"):
        routers(model(), {})
    with pytest.raises(ValueError, match=r"target: got 1\.5"):
        Sparing(1.5)
    with pytest.raises(ValueError, match="pool: got 0"):
        Flux(8, pool=0)
