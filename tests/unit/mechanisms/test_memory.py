"""Memories that learn at test time: chunks are the token loop, wherever calls, padding and documents end."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import regard
from regard.core.layout import Layout
from regard.hosts.mechanism_call import ImplicitAttention
from regard.kernels.scan import online
from regard.mechanisms.memory.miras import Memora, Moneta, PowerLoss, Yaad
from regard.mechanisms.memory.titans import Titans
from regard.networks import LM, Config
from regard.records.format import Record
from regard.records.observe import observe
from regard.records.record import record

KINDS = {"titans": Titans, "moneta": Moneta, "yaad": Yaad, "memora": Memora}
FEW = settings(max_examples=6, deadline=None)


def made(kind, chunk, hidden=2, d=3, **arguments):
    torch.manual_seed(1)
    return KINDS[kind](2, d, d, chunk=chunk, hidden=hidden, **{"step": 1 / (8 * chunk)} | arguments).double()


def draw(mechanism, n, batch=2, seed=0):
    """q, k, v and signals under which a memory remembers: decays within a twentieth, momentum, small steps."""
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, batch, 2, n, mechanism.head_dim, dtype=torch.float64).unbind()
    signals = {}
    for name, spec in mechanism.signals.items():
        noise = torch.rand(batch, 2, n, *spec.size(mechanism.head_dim, mechanism.value_dim), dtype=torch.float64)
        fading = {"log_decay": -0.05, "log_momentum": -1.0}
        signals[name] = max(spec.low, fading[name]) * noise if name in fading else min(spec.high, 2.0) / 2 * noise
    return q, k, v, signals


def worst(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(chunk=st.sampled_from([1, 5, 16]), n=st.integers(1, 37), seed=st.integers(0, 99))
def test_chunks_are_the_token_loop(kind, chunk, n, seed):
    mechanism = made(kind, chunk)
    q, k, v, signals = draw(mechanism, n, seed=seed)
    names, found = [*"qkv", *signals, *dict(mechanism.named_parameters())], []
    for way in (mechanism.forward, mechanism.define):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, *signals.values())]
        out = way(*leaves[:3], Layout(causal=True), **dict(zip(signals, leaves[3:], strict=True)))
        grads = torch.autograd.grad((out * out.detach().sin()).sum(), [*leaves, *mechanism.parameters()])
        found.append([out, *grads])
    for name, mine, theirs in zip(["out", *names], *found, strict=True):
        assert (mine - theirs).abs().max() <= 1e-10 * (1 + theirs.abs().max()), name


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(chunk=st.sampled_from([1, 5, 7]), cuts=st.lists(st.integers(0, 29), max_size=5), seed=st.integers(0, 99))
def test_any_split_is_one_call(kind, chunk, cuts, seed):
    """Inside of a chunk too, with padding anywhere; and then the memory itself is the same."""
    mechanism, n = made(kind, chunk), 29
    q, k, v, signals = draw(mechanism, n, seed=seed)
    real = torch.rand(2, n) < 0.7
    whole = mechanism(q, k, v, Layout(causal=True, key_mask=real), **signals)
    _, at_once = mechanism.extend(q, k, v, mechanism.start(2, dtype=q.dtype), real, **signals)
    state, outs = mechanism.start(2, dtype=q.dtype), []
    edges = [0, *sorted(set(cuts) - {0, n}), n]
    for start, stop in pairwise(edges):
        part = [x[:, :, start:stop] for x in (q, k, v)]
        own = {name: x[:, :, start:stop] for name, x in signals.items()}
        out, state = mechanism.extend(*part, state, real[:, start:stop], **own)
        outs.append(out)
    assert (torch.cat(outs, 2) - whole).abs().max() <= 1e-10 * whole.abs().max()
    assert state.seen.tolist() == real.sum(1).tolist()
    for name, x in state.tensors.items():
        if name not in ("seen",) and not name.startswith("anchor"):
            assert (x - at_once.tensors[name]).abs().max() <= 1e-10 * (1 + x.abs().max()), name
    assert state.bytes == at_once.bytes


@FEW
@given(chunk=st.sampled_from([1, 4, 5]), seed=st.integers(0, 99))
def test_packed_documents_are_alone(chunk, seed):
    mechanism, n = made("titans", chunk), 31
    q, k, v, signals = draw(mechanism, n, seed=seed)
    segments = torch.tensor([[0] * 7 + [1] * 1 + [2] * 23, [0] * 31])
    out = mechanism(q, k, v, Layout(causal=True, segments=segments), **signals)
    for row, start, stop in ((0, 0, 7), (0, 7, 8), (0, 8, 31), (1, 0, 31)):
        own = {name: x[row : row + 1, :, start:stop] for name, x in signals.items()}
        alone = mechanism(*(x[row : row + 1, :, start:stop] for x in (q, k, v)), Layout(causal=True), **own)
        assert worst(out[row : row + 1, :, start:stop], alone) <= 1e-10


@pytest.mark.parametrize("momentum", [0, -torch.inf])
def test_a_linear_memory_without_momentum_is_the_delta_rule(momentum):
    """Its strength is twice the step, as the loss is not halved; momentum that is shut is none."""
    mechanism = made("titans", 1, hidden=0, step=0.5, momentum=momentum != 0)
    with torch.no_grad():
        mechanism.initial[0].zero_()
    q, k, v, signals = draw(mechanism, 23)
    signals["log_decay"] = torch.zeros_like(signals["log_decay"])
    if momentum:
        signals["log_momentum"] = torch.full_like(signals["log_momentum"], momentum)
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    want = regard.build("deltanet")(q * q.shape[-1] ** 0.5, k, v, Layout(causal=True), beta=2 * signals["step"])
    assert worst(mechanism(q, k, v, Layout(causal=True), **signals), want) <= 1e-10


def test_a_linear_memory_of_the_squared_error_is_the_delta_rule():
    """Moneta with p = q = 2, without what is added to its output and nothing forgotten."""
    mechanism = made("moneta", 1, hidden=0, step=0.5, p=2.0, q=2.0, rank=None)
    mechanism.rule = PowerLoss(2.0, 2.0)
    mechanism.rule.residual = False
    with torch.no_grad():
        mechanism.initial[0].zero_()
    q, k, v, signals = draw(mechanism, 23)
    signals["log_decay"] = torch.zeros_like(signals["log_decay"])
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    want = regard.build("deltanet")(q * q.shape[-1] ** 0.5, k, v, Layout(causal=True), beta=2 * signals["step"])
    assert worst(mechanism(q, k, v, Layout(causal=True), **signals), want) <= 1e-9


@pytest.mark.parametrize("hidden", [0, 2])
def test_gates_of_each_channel_by_hand(hidden):
    """Two tokens of a chunk: of what the last layer writes, and of what the first of two reads."""
    mechanism = made("yaad", 2, hidden)
    q, k, v, signals = draw(mechanism, 2, batch=1)
    out = mechanism(q, k, v, Layout(causal=True), **signals)[0, 1, 1]
    x, y = (F.normalize(z[0, 1], dim=-1) for z in (k, q))
    layers = [w[1].detach().clone().requires_grad_() for w in mechanism.initial]

    def read(layers, x):
        z = F.gelu(x @ layers[0]) @ layers[1] if hidden else x @ layers[0]
        centred = z - z.mean(-1, keepdim=True)
        return x + centred / (centred.square().mean(-1, keepdim=True) + online.EPSILON).sqrt()

    error = read(layers, x) - v[0, 1]
    limit = signals["threshold"][0, 1]
    length = error.detach().square().sum(-1, keepdim=True).sqrt()
    losses = torch.where(length <= limit, error.square(), limit * error.abs()).sum(-1)
    sums = layers
    for loss, step, left in zip(losses, signals["step"][0, 1], signals["log_decay"][0, 1].exp(), strict=True):
        slopes = torch.autograd.grad(loss, layers, retain_graph=True)
        last = left[None, :] * sums[-1] - step[None, :] * slopes[-1]
        first = [left[:, None] * sums[0] - step[:, None] * slopes[0]] if hidden else []
        sums = [*first, last]
    assert (read(sums, y[1]) - out).abs().max() <= 1e-12
    shut = {name: torch.zeros_like(z) for name, z in signals.items()}
    for gate in ("step", "log_decay"):  # each is felt
        assert (
            mechanism(q, k, v, Layout(causal=True), **signals | {gate: shut[gate]})[0, 1, 1] - out
        ).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["moneta", "yaad", "memora"])
def test_channels_that_agree_are_a_head(kind):
    heads, channels = made(kind, 5, rank=None), made(kind, 5)
    q, k, v, signals = draw(heads, 23)
    assert all(x.shape == (2, 2, 23) for x in signals.values())
    same = {name: x[..., None].expand(*x.shape, 3) for name, x in signals.items()}
    want = heads(q, k, v, Layout(causal=True), **signals)
    assert (channels(q, k, v, Layout(causal=True), **same) - want).abs().max() <= 1e-12


def test_channels_in_single_precision_at_the_strongest_decay():
    """A chunk of which next to nothing is left at its end, against the token loop in double precision."""
    mechanism = made("yaad", 16, 2, forget=0.9)
    q, k, v, signals = draw(mechanism, 35)
    signals["log_decay"] = torch.full_like(signals["log_decay"], mechanism.signals["log_decay"].low)
    want = mechanism.define(q, k, v, Layout(causal=True), **signals)
    signals = {name: x.float() for name, x in signals.items()}
    out = mechanism.float()(q.float(), k.float(), v.float(), Layout(causal=True), **signals)
    assert worst(out.double(), want) <= 1e-4


def test_what_is_computed_again_has_the_same_gradients(monkeypatch):
    mechanism = made("titans", 4)
    q, k, v, signals = draw(mechanism, 27)

    def slopes():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = mechanism(*leaves, Layout(causal=True), **signals)
        return torch.autograd.grad(out.square().sum(), [*leaves, *mechanism.parameters()])

    want = slopes()
    monkeypatch.setattr(online, "WINDOW", 8)
    for mine, theirs in zip(slopes(), want, strict=True):
        assert worst(mine, theirs) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_language_model(kind):
    """Prefill, decoding, and what a watch shows of a mechanism without A."""
    model = LM(Config(29, 16, f"{kind}(chunk=5)*2", heads=2), seed=0).double()
    ids = torch.randint(29, (2, 17))
    with torch.no_grad():
        whole = model(ids)
        first, state = model.extend(ids[:, :12], model.start(2))
        rest, state = model.extend(ids[:, 12:], state)
    assert worst(torch.cat([first, rest], 1), whole) <= 1e-9
    shown = model.intermediates(ids)
    assert len(shown) == 2
    for a in shown.values():
        assert a.shape == (2, 2, 17, 17)
        assert not a.triu(1).any()
        assert a.any()
        if kind in ("titans", "moneta"):  # yaad does not see by how much an outlier is one, memora's chunks read as one
            assert (a.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_what_is_looked_at_are_norms_of_the_jacobian(tmp_path):
    """In a watch, and from what a record keeps."""
    model = LM(Config(29, 16, "titans(chunk=5)", heads=2), seed=0).eval()
    ids = torch.randint(29, (1, 11), generator=torch.Generator().manual_seed(0))
    want = model.intermediates(ids)["blocks.0.attention.mechanism"]
    with regard.watch(model, keep=1e9) as session:
        model(ids)
    source = session.maps[0]
    assert isinstance(source, ImplicitAttention)
    assert (source.weights(torch.arange(11)) - want).abs().max() <= 1e-5
    record(model, None, ids[0], keep=True).save(tmp_path / "look")
    kept = Record.load(tmp_path / "look").region(0, 1, slice(2, 9), slice(0, 11))
    shares = want / want.sum(-1, keepdim=True)
    assert (kept - shares[0, 1, 2:9]).abs().max() <= 1e-5


def test_there_is_no_matrix_to_ask_for():
    mechanism = made("titans", 4)
    q, k, _, signals = draw(mechanism, 5)
    with pytest.raises(TypeError, match=r"weights: got Titans, which is not linear in v, want influence"):
        mechanism.weights(q, k, Layout(causal=True), **signals)
    with pytest.raises(TypeError, match="not linear in v"):
        observe(mechanism, q, k, Layout(causal=True), [], **signals)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"chunk": 0}, "chunk"), ({"hidden": -1}, "hidden"), ({"step": 0.0}, "step")],
)
def test_what_cannot_be(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        Titans(2, 3, 3, **arguments)


def test_signals_of_other_shapes_are_named():
    mechanism = made("titans", 4)
    q, k, v, signals = draw(mechanism, 5)
    with pytest.raises(ValueError, match="step: got shape"):
        mechanism(q, k, v, Layout(causal=True), **signals | {"step": signals["step"][:, :1]})
    with pytest.raises(ValueError, match="v: got value_dim 2"):
        mechanism(q, k, v[..., :2], Layout(causal=True), **signals)
    with pytest.raises(ValueError, match="value_dim: got 5"):
        Yaad(2, 3, 5)
    with pytest.raises(ValueError, match=r"forget: got 0\.95 with chunks of 16"):
        Yaad(2, 3, forget=0.95)
    with pytest.raises(ValueError, match="rank: got 0"):
        Moneta(2, 3, rank=0)
    assert replace(mechanism.start(2), seen=torch.ones(2, dtype=torch.int64)).bytes == 0
