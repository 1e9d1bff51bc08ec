"""The scan in flash-linear-attention's kernels, under Triton's interpreter, against ours in float64."""

import builtins
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regard.core.atlas import entries
from regard.core.layout import Layout
from regard.kernels import device as gpu
from regard.kernels.scan import decayed, fla, scan
from regard.laws.mechanism import equation
from regard.laws.mechanism.subject import Subject

from .test_scan_gated import draw

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that the kernels then mask
KINDS = [(decay, kind) for decay in ("none", "head", "channel") for kind in ("plain", "delta")]


class Counter(int):
    """A loop's counter, cast as the compiled kernels cast theirs; the interpreter's are Python's."""

    def to(self, dtype):
        return self


@pytest.fixture(scope="module")
def kernels():
    """The package's kernels, made to run under the interpreter: nothing is timed, and counters can be cast."""
    if torch.cuda.is_available():
        pytest.skip("a GPU multiplies float32 as TF32 in these kernels")
    pytest.importorskip("fla.ops", reason="flash-linear-attention is not installed", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch:
        tuner = import_module("triton.runtime.autotuner").Autotuner
        patch.setattr(tuner, "do_bench", staticmethod(lambda call, quantiles: [0.0] * len(quantiles)))
        for name in ("chunk_h", "chunk_delta_h"):
            loops = import_module(f"fla.ops.common.{name}")
            patch.setattr(loops, "range", lambda *ends: map(Counter, builtins.range(*map(int, ends))), raising=False)
        yield


@pytest.fixture
def as_on_gpu(kernels, monkeypatch):
    """What is asked before the kernels are used, answered as on a GPU; float64 stays with PyTorch."""
    monkeypatch.setattr(gpu, "usable", lambda x: x.dtype == torch.float32)
    monkeypatch.setattr(gpu, "precision", lambda: "tf32")


def differentiated(run, x, state, dtype=torch.float64):
    """Outputs, last state and all gradients."""
    x = x.like([t.detach().to(dtype).requires_grad_() if t.is_floating_point() else t for t in x.tensors])
    state = state.detach().to(dtype).requires_grad_()
    out, after = run(x, state)
    assert out.dtype == after.dtype == dtype
    loss = (out.double() * torch.sin(torch.arange(out.numel()).view_as(out))).sum() + after.double().square().sum()
    leaves = [t for t in (*x.tensors, state) if t.is_floating_point()]
    return [out, after, *torch.autograd.grad(loss, leaves)]


def close(found, wanted, tolerance):
    """Each to ``tolerance`` of its largest entry."""
    for mine, want in zip(found, wanted, strict=True):
        assert mine.shape == want.shape
        assert (mine.double() - want).abs().max() <= tolerance * want.abs().max().clamp(min=1)


@pytest.mark.parametrize(("decay", "kind"), KINDS)
@pytest.mark.parametrize(("n", "packed"), [(1, False), (67, False), (67, True)])
def test_equals_our_scan_with_all_gradients(n, packed, decay, kind, kernels):
    x, state = draw(n, decay, kind, packed, h=1)
    close(differentiated(fla.scan, x, state, torch.float32), differentiated(scan, x, state), 1e-5)


@pytest.mark.parametrize(("decay", "kind"), KINDS[:-1])
def test_the_state_passes_through_chunks_between_them(decay, kind, kernels):
    x, state = draw(193, decay, kind, False, b=1, h=1)
    close(differentiated(fla.scan, x, state, torch.float32), differentiated(scan, x, state), 1e-5)


@pytest.mark.parametrize("strength", [1e-3, 30.0, 1e3])
@pytest.mark.parametrize(("decay", "kind"), KINDS[2:])
def test_neither_weak_nor_strong_decays_overflow(strength, decay, kind, kernels):
    x, state = draw(67, decay, kind, False, b=1, h=1)
    x = replace(x, log_decay=x.log_decay * strength)
    close(differentiated(fla.scan, x, state, torch.float32), differentiated(scan, x, state), 1e-4)


def test_constant_decays(as_on_gpu):
    x, state = draw(131, "none", "plain", False)
    rates = -torch.tensor([0.0, 0.3, 20.0], dtype=torch.float64)

    def run(x, state):
        return decayed(x.q, x.k, x.v, rates.to(state.dtype), state)

    close(differentiated(run, x, state, torch.float32), differentiated(run, x, state), 1e-5)


def subject_of(name, heads):
    """An entry's first example with so many heads, up to a second chunk of tokens."""
    entry = next(entry for entry in entries() if entry.name == name)
    return Subject(replace(entry.thing.examples()[0], heads=heads, kv_heads=heads, longest=67))


@pytest.fixture
def calls(as_on_gpu, monkeypatch):
    """The inputs that reach the kernels."""
    made, run = [], fla.scan
    monkeypatch.setattr(fla, "scan", lambda x, state: made.append(x) or run(x, state))
    return made


@pytest.mark.parametrize(
    ("name", "heads"),
    [*((name, 1) for name in ("linear", "retnet", "lightning", "gla", "deltanet", "gated_deltanet")), ("mamba2", 3)],
)
def test_the_law_of_the_definition(name, heads, calls, monkeypatch):
    """In float32: half precision is scanned in it."""
    monkeypatch.setattr(equation, "DRAWN", ((torch.float32,),))
    monkeypatch.setattr(equation, "halved", lambda *_: None)
    equation.definition(subject_of(name, heads))
    assert calls


def test_decays_by_channel_with_removals_are_the_definition(calls):
    """Of packed documents alone: its kernel takes seconds a call under the interpreter."""
    subject = subject_of("kimi_delta", 1)
    inputs, exact = equation.exactly(subject, (torch.float32,), 67, 67)
    layout = Layout(causal=True, segments=subject.documents(67, 3))
    found = subject.call(inputs.map(lambda _, x: x.float()), layout, exact.float())
    close([found], [subject.define(inputs, layout, exact)], 1e-5)
    assert len(calls) == 1


def test_takes_what_the_kernels_compute_and_nothing_else(monkeypatch):
    calls = []
    monkeypatch.setattr(fla, "usable", lambda state: state.dtype == torch.float32)
    monkeypatch.setattr(fla, "scan", lambda x, state: calls.append(x) or (x.v, state))

    def taken(x, state, dtype=torch.float32):
        calls.clear()
        scan(x.like([t.to(dtype) if t.is_floating_point() else t for t in x.tensors]), state.to(dtype))
        return len(calls)

    for decay, kind in KINDS:
        assert taken(*draw(5, decay, kind, False)) == taken(*draw(5, decay, kind, True)) == 1
        assert taken(*draw(5, decay, "removal", False)) == taken(*draw(0, decay, kind, False)) == 0
        assert taken(*draw(5, decay, kind, False), dtype=torch.float64) == 0
    x, state = draw(5, "none", "plain", False)
    decayed(x.q.float(), x.k.float(), x.v.float(), torch.tensor([-1.0, 0.0, -0.5]), state.float())
    assert torch.equal(calls[-1].log_decay[1, :, 4], torch.tensor([-1.0, 0.0, -0.5]))


def test_usable_where_float32_may_be_rounded(monkeypatch):
    def usable(dtype=torch.float32, rows=64, device="cuda", precision="tf32", installed=("fla", "triton")):
        for module in (fla, gpu):
            monkeypatch.setattr(module, "find_spec", lambda name: name if name in installed else None)
        monkeypatch.setattr(gpu, "precision", lambda: precision)
        state: Any = SimpleNamespace(dtype=dtype, device=torch.device(device), shape=(2, 3, rows, 5))
        return fla.usable(state)

    assert usable()
    assert usable(rows=256)
    assert not usable(rows=257)
    assert not usable(precision="ieee")
    assert not usable(torch.float64)
    assert not usable(torch.bfloat16)
    assert not usable(device="cpu")
    assert not usable(installed=("triton",))
    assert not usable(installed=("fla",))
