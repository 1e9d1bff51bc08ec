"""One step of a memory for each chunk: the token loop, and the answers of titans-pytorch."""

import json
from itertools import pairwise
from math import log, log1p
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.layout import Layout
from regard.kernels.scan import online
from regard.mechanisms.memory.titans import Titans

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "memories.json").read_text())
FEW = settings(max_examples=6, deadline=None)
CAUSAL = Layout(causal=True)


def made(chunk, hidden=2, momentum=True, summed=True):
    torch.manual_seed(1)
    return Titans(2, 3, 5, chunk, hidden, 1 / (8 * chunk), momentum, summed).double()


def draw(mechanism, n, seed=0):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, 2, n, c, dtype=torch.float64) for c in (3, 3, 5))
    low = {"log_decay": -0.05, "log_momentum": -1.0, "step": mechanism.signals["step"].high}
    return q, k, v, {name: low[name] * torch.rand(2, 2, n, dtype=torch.float64) for name in mechanism.signals}


def layout_of(kind, n):
    if kind == "padded":
        return Layout(causal=True, key_mask=torch.rand(2, n) < 0.7)
    if kind == "packed":
        return Layout(causal=True, segments=torch.tensor([[0] * (n // 3) + [1] * (n - n // 3), [0] * n]))
    return CAUSAL


def slopes(way, mechanism, q, k, v, signals, layout):
    leaves = [x.detach().requires_grad_() for x in (q, k, v, *signals.values())]
    out = way(*leaves[:3], layout, **dict(zip(signals, leaves[3:], strict=True)))
    return [out, *torch.autograd.grad((out * out.detach().sin()).sum(), [*leaves, *mechanism.parameters()])]


@pytest.mark.parametrize("layout", ["plain", "padded", "packed"])
@FEW
@given(hidden=st.sampled_from([0, 2]), momentum=st.booleans(), chunk=st.sampled_from([1, 3, 7]), n=st.integers(8, 29))
def test_chunks_are_the_token_loop(layout, hidden, momentum, chunk, n):
    mechanism = made(chunk, hidden, momentum)
    given, layout = draw(mechanism, n, seed=n), layout_of(layout, n)
    found = (slopes(way, mechanism, *given, layout) for way in (mechanism.forward, mechanism.define))
    for number, (mine, theirs) in enumerate(zip(*found, strict=True)):
        assert (mine - theirs).abs().max() <= 1e-10 * (1 + theirs.abs().max()), number


def test_chunks_of_a_token_are_the_recurrence():
    """And longer ones are not."""
    for chunk, apart in ((1, False), (3, True)):
        coarse, fine = made(chunk), made(chunk, summed=False)
        q, k, v, signals = draw(coarse, 11)
        difference = (coarse(q, k, v, CAUSAL, **signals) - fine(q, k, v, CAUSAL, **signals)).abs().max()
        assert (difference > 1e-3) if apart else (difference <= 1e-12)


@FEW
@given(chunk=st.sampled_from([1, 3, 5]), cuts=st.lists(st.integers(0, 23), max_size=5), seed=st.integers(0, 99))
def test_any_split_is_one_call(chunk, cuts, seed):
    """Inside of a chunk too, with padding anywhere."""
    mechanism, n = made(chunk), 23
    q, k, v, signals = draw(mechanism, n, seed)
    real = torch.rand(2, n) < 0.7
    whole = mechanism(q, k, v, Layout(causal=True, key_mask=real), **signals)
    state, outs = mechanism.start(2, dtype=q.dtype), []
    for start, stop in pairwise([0, *sorted(set(cuts) - {0, n}), n]):
        own = {name: x[:, :, start:stop] for name, x in signals.items()}
        tokens = (x[:, :, start:stop] for x in (q, k, v))
        out, state = mechanism.extend(*tokens, state, real[:, start:stop], **own)
        outs.append(out)
    assert (torch.cat(outs, 2) - whole).abs().max() <= 1e-10 * whole.abs().max()


def test_what_is_computed_again_has_the_same_gradients(monkeypatch):
    mechanism = made(4)
    given = draw(mechanism, 27)
    want = slopes(mechanism.forward, mechanism, *given, CAUSAL)
    monkeypatch.setattr(online, "WINDOW", 8)
    for mine, theirs in zip(slopes(mechanism.forward, mechanism, *given, CAUSAL), want, strict=True):
        assert (mine - theirs).abs().max() <= 1e-12


def test_titans_pytorch_answers_the_same():
    q, k, v, out = (torch.tensor(VALUES[name], dtype=torch.float64) for name in ("q", "k", "v", "out"))
    memory = Titans(1, q.shape[1], chunk=VALUES["chunk"], hidden=2, step=0.1, summed=True).double()
    with torch.no_grad():
        for mine, theirs in zip(memory.initial, VALUES["layers"], strict=True):
            mine.copy_(torch.tensor(theirs, dtype=torch.float64))
    step = torch.tensor(VALUES["step"], dtype=torch.float64)[None, None]
    gates = {"log_decay": log1p(-VALUES["forget"]), "log_momentum": log(VALUES["momentum"])}
    signals = {"step": step, **{name: torch.full_like(step, x) for name, x in gates.items()}}
    found = memory(*(x[None, None] for x in (q, k, v)), CAUSAL, **signals)[0, 0]
    assert (found - out).abs().max() <= 1e-10
    assert (out[VALUES["chunk"] :] - out[: -VALUES["chunk"]]).abs().max() > 0.1  # and they change
