"""The three states: a growing cache that branches safely, a sliding one, a matrix."""

import pkgutil
import sys

import pytest
import torch

import regard.mechanisms
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


def test_every_file_of_the_folder_is_imported_and_registered():
    names = [module.name for module in pkgutil.walk_packages(regard.mechanisms.__path__, "regard.mechanisms.")]
    assert set(names) <= set(sys.modules)
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
