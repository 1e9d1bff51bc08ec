"""Titans' three forms against their equations, written out token by token."""

import pytest
import torch
import torch.nn.functional as F

from regard.core.layout import Layout
from regard.networks.lm import Config
from regard.networks.titans import FORMS, Sizes, TitansLM

CAUSAL = Layout(causal=True)
CONFIG = Config(29, 12, "softmax", heads=2, kv_heads=1)
N, WINDOW, PERSISTENT = 17, 6, 3


def layer(form):
    torch.manual_seed(0)
    made = FORMS[form](CONFIG, Sizes(WINDOW, PERSISTENT, "titans(chunk=3, hidden=2, step=0.1)"), 0)
    with torch.no_grad():
        for norm in made.norms:
            norm.weight.uniform_(0.5, 1.5)
    return made.double(), torch.randn(1, N, 12, dtype=torch.float64)


def heads(x, count):
    return x.view(-1, count, 6).transpose(0, 1)


def one_query(made, x, position, seen):
    """Attention of one token to rows of ``seen``, ``(hidden state, position or None)``."""
    p = made.projection

    def turned(z, at):
        return z if at is None else made.rotary(z[None], torch.tensor([[at]]))[0]

    q = turned(heads(x @ p.q.weight.T, 2), position)
    k = torch.cat([turned(heads(s @ p.k.weight.T, 1), at) for s, at in seen], 1).expand(2, -1, -1)
    v = torch.cat([heads(s @ p.v.weight.T, 1) for s, _ in seen], 1).expand(2, -1, -1)
    out = (q @ k.mT / 6**0.5).softmax(-1) @ v
    return out.transpose(0, 1).reshape(1, 12) @ p.out.weight.T


def rms(norm, x):
    return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight


def joined(made, y, m):
    return (rms(made.norms[0], y) * torch.sigmoid(rms(made.norms[1], m))) @ made.join.weight.T


def memory_weights(made, y):
    """The memory's weights after it has read ``y (1, n, 12)``, by its own equation, token by token."""
    learner, memory = made.learner, made.memory
    _, k, v, signals = memory.inputs(y, CAUSAL)
    k = k / (k.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    w = [x.detach().clone() for x in learner.initial]
    momentum, anchor = [torch.zeros_like(x) for x in w], w
    for t in range(y.shape[1]):
        if t % learner.chunk == 0:
            anchor = [x.clone().requires_grad_() for x in w]
        out = F.gelu(k[0, :, t : t + 1] @ anchor[0]) @ anchor[1]
        slopes = torch.autograd.grad((out - v[0, :, t : t + 1]).square().sum(), anchor)
        theta, eta, kept = (signals[x][0, :, t, None, None] for x in ("step", "log_momentum", "log_decay"))
        momentum = [eta.exp() * old - theta * slope for old, slope in zip(momentum, slopes, strict=True)]
        w = [(kept.exp() * old + step).detach() for old, step in zip(w, momentum, strict=True)]
        momentum = [x.detach() for x in momentum]
    return w


def test_memory_as_context():
    made, x = layer("context")
    ys = torch.zeros(1, 0, 12, dtype=torch.float64)
    persistent = [(p[None], None) for p in made.persistent]
    for start in range(0, N, WINDOW):
        w, told, near = memory_weights(made, ys), [], []
        for i in range(start, min(start + WINDOW, N)):
            q = heads(x[0, i : i + 1] @ made.ask.weight.T, 2)
            q = q / q.square().sum(-1, keepdim=True).sqrt()
            answer = (F.gelu(q @ w[0]) @ w[1]).transpose(0, 1).reshape(1, 12)
            told.append((answer @ made.told.weight.T, None))
            near.append((x[0, i : i + 1], i))
            y = one_query(made, x[0, i : i + 1], i, [*persistent, *told, *near])
            ys = torch.cat([ys, y[None]], 1)
    want = joined(made, ys, made.memory(ys, CAUSAL))
    torch.testing.assert_close(made(x, CAUSAL), want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("form", ["gate", "layer"])
def test_memory_beside_and_before(form):
    made, x = layer(form)
    whole = torch.cat([made.persistent[None], x], 1)
    m = made.memory(whole, CAUSAL)
    source = whole if form == "gate" else m
    first = [(source[0, p : p + 1], None) for p in range(PERSISTENT)]
    rows = []
    for i in range(N):
        near = [(source[0, PERSISTENT + j][None], j) for j in range(max(i - WINDOW + 1, 0), i + 1)]
        rows.append(one_query(made, source[0, PERSISTENT + i][None], i, [*first, *near]))
    y = torch.cat(rows)[None]
    want = joined(made, y, m[:, PERSISTENT:]) if form == "gate" else y @ made.join.weight.T
    torch.testing.assert_close(made(x, CAUSAL), want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_no_token_knows_of_later_ones(form):
    made, x = layer(form)
    before = made(x, CAUSAL)
    for i in (4, 5, 6, 11):
        changed = torch.cat([x[:, : i + 1], torch.randn(1, N - i - 1, 12, dtype=torch.float64)], 1)
        torch.testing.assert_close(made(changed, CAUSAL)[:, : i + 1], before[:, : i + 1])


def test_refusals():
    config = Config(29, 12, "softmax*2", heads=2)
    for given, said in (
        ({"form": "contex"}, "form: got 'contex'.*context"),
        ({"window": 5, "memory": "titans(chunk=3)"}, "window: got 5, want whole chunks"),
        ({"memory": "gla"}, "memory: got 'gla'"),
        ({"persistent": -1}, "persistent: got -1"),
    ):
        with pytest.raises(ValueError, match=said):
            TitansLM(config, **given)
    with pytest.raises(ValueError, match="segments: got packed documents"):
        TitansLM(config, window=16)(torch.zeros(1, 3, dtype=torch.int64), segments=torch.tensor([[0, 1, 1]]))
