"""The three states: a growing cache that branches safely, a sliding one, a matrix."""

import pytest
import torch

from regard.core.atlas import find
from regard.core.build import build
from regard.core.layout import Layout
from regard.mechanisms.linear.lightning import Lightning
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.window import SlidingWindow

STREAMS = [Softmax(), SlidingWindow(5, sinks=2), Lightning()]


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_mechanisms_are_found_by_name_and_alias():
    assert find("mha").thing is Softmax
    assert build("window", size=3).window.size == 3


@pytest.mark.parametrize("mechanism", STREAMS, ids=lambda m: type(m).__name__)
def test_two_continuations_of_one_state_do_not_disturb_each_other(mechanism):
    past, one, two = draw(17), draw(3, 1), draw(3, 2)
    _, state = mechanism.extend(*past, mechanism.start(2, dtype=torch.float64))
    _, left = mechanism.extend(*one, state)
    right_out, _ = mechanism.extend(*two, state)
    left_out, _ = mechanism.extend(*two, left)
    joined = [torch.cat(parts, 2) for parts in zip(past, two, strict=True)]
    torch.testing.assert_close(right_out, mechanism(*joined, Layout(causal=True))[:, :, 17:])
    joined = [torch.cat(parts, 2) for parts in zip(past, one, two, strict=True)]
    torch.testing.assert_close(left_out, mechanism(*joined, Layout(causal=True))[:, :, 20:])


def test_the_cache_copies_only_when_it_doubles():
    mechanism, state, places = Softmax(), Softmax().start(2, dtype=torch.float64), set()
    for token in range(64):
        _, state = mechanism.extend(*draw(1, token), state)
        places.add(state.k.data_ptr())
    assert state.k.shape[2] == 64
    assert len(places) <= 8


@pytest.mark.parametrize("mechanism", STREAMS, ids=lambda m: type(m).__name__)
def test_gradients_flow_through_the_state(mechanism):
    tensors = [x.requires_grad_() for x in draw(11)]
    state, outputs = mechanism.start(2, dtype=torch.float64), []
    for span in (slice(0, 4), slice(4, 5), slice(5, 11)):
        out, state = mechanism.extend(*(x[:, :, span] for x in tensors), state)
        outputs.append(out)
    whole = mechanism(*tensors, Layout(causal=True))
    pairs = (torch.autograd.grad(out.square().sum(), tensors) for out in (torch.cat(outputs, 2), whole))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlidingWindow(0), "size: got 0, want at least 1"),
        (lambda: SlidingWindow(3, sinks=-1), "count: got -1, want at least 0"),
        (lambda: Lightning(slopes=[0.1, -0.1]), "slopes: got .* decay cannot grow"),
        (
            lambda: Lightning(slopes=[0.1])(*draw(5), Layout(causal=True)),
            "q: got 3 heads, want 1, the number of slopes",
        ),
        (lambda: Lightning()(*draw(5), Layout()), "layout.causal: got False"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["gla", "linear", "gated_deltanet", "rwkv6"])
@pytest.mark.parametrize("packed", [False, True])
def test_spans_of_a_recurrence_are_one_call(name, packed, monkeypatch):
    """Long inputs are taken span by span: outputs and gradients are those of one span."""
    from regard.mechanisms.linear import base

    torch.manual_seed(0)
    mechanism = build(name, **({"heads": 2, "head_dim": 4} if name == "rwkv6" else {})).double()
    q, k, v = (torch.randn(2, 2, 90, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    noise = {name: torch.randn(2, 2, 90, *spec.size(4, 4)).double() for name, spec in mechanism.signals.items()}
    signals = {name: x.sigmoid() if name == "beta" else -x.abs() / 9 for name, x in noise.items()}
    keys = torch.rand(2, 90) < 0.8
    segments = (torch.arange(90)[None] >= torch.tensor([[31], [64]])).long() if packed else None
    layout, found = Layout(causal=True, key_mask=keys, segments=segments), []
    for span in (1000, 32):
        monkeypatch.setattr(base, "SPAN", span)
        out = mechanism(q, k, v, layout, **signals) * keys[:, None, :, None]
        found.append([out, *torch.autograd.grad(out.sin().sum(), (q, k, v), retain_graph=True)])
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(many, one, atol=1e-10, rtol=1e-8)
