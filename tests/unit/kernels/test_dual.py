"""The derivatives of a memory that are written out: those of the token loop, whatever the call looks like."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regard.core.layout import Layout
from regard.kernels.scan import dual
from regard.kernels.scan.coarse import ChunkSteps
from regard.kernels.scan.online import Inputs, Rule, Weights, chunked
from regard.kernels.scan.segments import Given
from regard.kernels.scan.summed import Summed, summed
from regard.mechanisms.memory.titans import Titans

FEW = settings(max_examples=8, deadline=None)
KINDS = st.tuples(st.sampled_from([0, 2]), st.booleans(), st.booleans())
"""How many times as wide as a key the memory is inside, whether it has momentum, whether a chunk takes one step."""
RULES = pytest.mark.parametrize(("rule", "definition"), [(Rule(), chunked), (Summed(), summed)])


@contextmanager
def counted():
    """Whether each call was served."""
    found, serves = [], dual.serves

    def noted(*given):
        found.append(serves(*given))
        return found[-1]

    dual.serves = noted
    try:
        yield found
    finally:
        dual.serves = serves


def made(hidden, momentum, coarse, chunk, heads=2):
    torch.manual_seed(1)
    return Titans(heads, 3, 5, chunk, hidden, 1 / (8 * chunk), momentum, coarse).double()


def draw(mechanism, n, groups=2, seed=0):
    torch.manual_seed(seed)
    batch, heads = 2, mechanism.heads
    sizes = ((heads, 3), (groups, 3), (groups, 5))
    q, k, v = (torch.randn(batch, g, n, c, dtype=torch.float64) for g, c in sizes)
    low = {"log_decay": -0.05, "log_momentum": -1.0, "step": mechanism.signals["step"].high}
    signals = {name: low[name] * torch.rand(batch, heads, n, dtype=torch.float64) for name in mechanism.signals}
    return [q, k, v, *signals.values()], list(signals)


def slopes(way, mechanism, tensors, names, layout, further=False):
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = way(*leaves[:3], layout, **dict(zip(names, leaves[3:], strict=True)))
    by = [*leaves, *mechanism.parameters()]
    return [out, *torch.autograd.grad((out * out.detach().sin()).sum(), by, create_graph=further)]


def same(mine, theirs, most=1e-10):
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert (a - b).abs().max() <= most * (1 + b.abs().max()), number


def layout_of(kind, n):
    if kind == "padded":
        return Layout(causal=True, key_mask=torch.rand(2, n) < 0.7)
    if kind == "packed":
        return Layout(causal=True, segments=torch.tensor([[0] * (n // 3) + [1] * (n - n // 3), [0] * n]))
    return Layout(causal=True)


@pytest.mark.parametrize("layout", ["plain", "padded", "packed"])
@FEW
@given(kind=KINDS, chunk=st.sampled_from([1, 3, 7]), n=st.integers(2, 29), groups=st.sampled_from([1, 2]))
@example(kind=(0, False, True), chunk=3, n=2, groups=1)
def test_by_hand_is_the_token_loop(layout, kind, chunk, n, groups):
    mechanism = made(*kind, chunk)
    tensors, names = draw(mechanism, n, groups, seed=n)
    layout = layout_of(layout, n)
    with counted() as served:
        mine = slopes(mechanism.forward, mechanism, tensors, names, layout)
    tokens = n if layout.key_mask is None else int(layout.key_mask.sum(1).max())
    assert served == [True] or (kind[2] and tokens <= chunk)
    same(mine, slopes(mechanism.define, mechanism, tensors, names, layout))


@pytest.mark.parametrize("layout", ["plain", "padded", "packed"])
@FEW
@given(kind=KINDS, chunk=st.sampled_from([1, 3, 7]), n=st.integers(2, 29))
def test_derivatives_of_which_further_ones_are_wanted_are_the_same(layout, kind, chunk, n):
    mechanism = made(*kind, chunk)
    tensors, names = draw(mechanism, n, seed=n)
    layout = layout_of(layout, n)
    further = slopes(mechanism.forward, mechanism, tensors, names, layout, further=True)
    assert further[1].requires_grad
    same(slopes(mechanism.forward, mechanism, tensors, names, layout), further)


@FEW
@given(kind=KINDS, cut=st.integers(1, 4))
def test_a_state_passes_derivatives_on(kind, cut):
    """Two calls of whole chunks are one, with the derivatives by what both were given."""
    mechanism, n = made(*kind, 3), 15
    tensors, names = draw(mechanism, n)

    def in_two(q, k, v, layout, **signals):
        state, outs = mechanism.start(2, dtype=q.dtype), []
        for span in (slice(0, 3 * cut), slice(3 * cut, n)):
            own = {name: x[:, :, span] for name, x in signals.items()}
            out, state = mechanism.extend(q[:, :, span], k[:, :, span], v[:, :, span], state, **own)
            outs.append(out)
        return torch.cat(outs, 2)

    with counted() as served:
        mine = slopes(in_two, mechanism, tensors, names, Layout(causal=True))
    assert served == [True, True]
    same(mine, slopes(mechanism.forward, mechanism, tensors, names, Layout(causal=True)))


@pytest.mark.parametrize("kind", [(0, False, False), (2, True, False), (0, False, True), (2, True, True)])
def test_first_and_second_derivatives_are_those_of_differences(kind):
    mechanism = made(*kind, 2, heads=1)
    tensors, names = draw(mechanism, 5, groups=1)
    tensors = [x[:1] for x in tensors]

    def out(*given):
        return mechanism(*given[:3], Layout(causal=True), **dict(zip(names, given[3:], strict=True)))

    leaves = [x.clone().requires_grad_() for x in tensors]
    inside = [0.9 * x + 0.05 * x.detach().mean() for x in leaves]  # differences stay where signals may be
    assert torch.autograd.gradcheck(out, [x.detach().requires_grad_() for x in inside], fast_mode=True)
    assert torch.autograd.gradgradcheck(out, [x.detach().requires_grad_() for x in inside], fast_mode=True)


def kernel_inputs(n, chunk, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)

    def normal(*shape):
        return torch.randn(2, 3, n, *shape, generator=generator, dtype=torch.float64)

    q, k, v = (torch.nn.functional.normalize(normal(c), dim=-1) for c in (5, 5, 7))
    step, log_decay, log_momentum = (normal().sigmoid() * size for size in (0.02, -0.05, -1.0))
    x = Inputs(q, k, v, step, log_decay, log_momentum)
    layers = tuple(
        torch.randn(2, 3, i, o, generator=generator, dtype=torch.float64) / i**0.5 for i, o in ((5, 11), (11, 7))
    )
    moving = tuple(0.01 * w for w in layers)
    return x.each(lambda t: t.to(dtype).unflatten(2, (-1, chunk))), [w.to(dtype) for w in (*layers, *moving)]


def run(way, rule, x, weights):
    leaves = [t.detach().requires_grad_() for t in (*x.tensors, *weights)]
    w = Weights(tuple(leaves[-4:-2]), tuple(leaves[-2:]), tuple(leaves[-4:-2]))
    out, after = way(rule, x.like(leaves[:-4]), w)
    ends = [out, *after.sums, *after.momentum]
    return [*ends, *torch.autograd.grad(sum(y.square().sum() for y in ends), leaves)]


@RULES
def test_a_memory_that_comes_and_goes_has_its_derivatives_too(rule, definition):
    x, weights = kernel_inputs(39, 3)
    same(run(dual.learned, rule, x, weights), run(definition, rule, x, weights))


@RULES
@pytest.mark.parametrize("chunk", [2, 13])
def test_a_momentum_is_held_or_formed_again(rule, definition, chunk):
    """Held by one step for each chunk where chunks are long; the backward pass may come twice."""
    x, weights = kernel_inputs(78, chunk)
    leaves = [t.detach().requires_grad_() for t in (*x.tensors, *weights)]
    w = Weights(tuple(leaves[-4:-2]), tuple(leaves[-2:]), tuple(leaves[-4:-2]))
    loss = dual.learned(rule, x.like(leaves[:-4]), w)[0].square().sum()
    first, again = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    same(again, first, 0)
    assert ChunkSteps.holds(Given(rule, x, w, (), None)) is (chunk == 13)
    want = definition(rule, x.like(leaves[:-4]), w)[0].square().sum()
    same(first, torch.autograd.grad(want, leaves))


@RULES
def test_strided_inputs(rule, definition):
    """Of which heads, tokens and channels stand in another order in memory."""
    x, weights = kernel_inputs(20, 5)
    turned = x.each(lambda t: t.transpose(1, 3).contiguous().transpose(1, 3))
    assert not turned.q.is_contiguous()
    same(run(dual.learned, rule, turned, weights), run(definition, rule, x, weights))


@RULES
def test_single_precision(rule, definition):
    x, weights = kernel_inputs(48, 4)
    want = run(definition, rule, x, weights)
    found = run(dual.learned, rule, x.each(lambda t: t.float()), [w.float() for w in weights])
    same([y.double() for y in found], want, 2e-5)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype, coarse):
    mechanism = made(2, True, coarse, 4)
    tensors, names = draw(mechanism, 19)
    rounded = [x.to(dtype) for x in tensors]
    signals = dict(zip(names, rounded[3:], strict=True))
    want = mechanism(*(x.double() for x in rounded[:3]), **{name: x.double() for name, x in signals.items()})
    leaves = [x.requires_grad_() for x in rounded[:3]]
    out = mechanism.float()(*leaves, **signals)
    assert out.dtype == dtype
    assert (out - want).abs().max() <= 0.02 * want.abs().max()
    wide = [x.detach().float() for x in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mechanism(*wide, **{name: x.float() for name, x in signals.items()})
    assert (out - want).abs().max() <= 0.02 * want.abs().max()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), list(mechanism.parameters())))


@pytest.mark.parametrize("coarse", [False, True])
def test_what_is_not_served_is_autograds(coarse):
    """Calls that begin or end inside of a chunk, and gates of each channel."""
    mechanism = made(2, True, coarse, 4)
    tensors, names = draw(mechanism, 6)
    signals = dict(zip(names, tensors[3:], strict=True))
    with counted() as served:
        mechanism.extend(*tensors[:3], mechanism.start(2, dtype=torch.float64), **signals)
    assert served == [False]
    x, _ = kernel_inputs(12, 3)
    channels = Inputs(x.q, x.k, x.v, x.step[..., None].expand_as(x.v), x.log_decay[..., None].expand_as(x.v))
    assert not dual.serves(Rule(), channels, None, None)
