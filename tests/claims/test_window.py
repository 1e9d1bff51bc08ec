"""Sliding windows and sinks: how far layers see, what a wide window is, what a stream costs."""

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.window import SlidingWindow

N = 101


def reach(mechanism, layers, causal):
    """The tokens whose value the last (causal) or middle (bidirectional) token's output depends on."""
    torch.manual_seed(1)
    x = torch.randn(1, 1, N, 5, requires_grad=True)
    state, place = x, N - 1 if causal else N // 2
    for _ in range(layers):
        state = state + mechanism(torch.ones_like(state), torch.ones_like(state), state, Layout(causal=causal))
    gradient = torch.autograd.grad(state[0, 0, place].sum(), x)[0][0, 0].abs().sum(-1)
    return (gradient > 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [2, 7])
def test_layers_see_exactly_layers_times_size_minus_one_back(layers, size):
    back = layers * (size - 1)
    assert reach(SlidingWindow(size), layers, True) == list(range(N - 1 - back, N))
    assert reach(SlidingWindow(size), layers, False) == list(range(N // 2 - back, N // 2 + back + 1))


def test_sinks_are_seen_from_everywhere():
    assert reach(SlidingWindow(3, sinks=2), 1, True) == [0, 1, N - 3, N - 2, N - 1]


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_of_the_whole_length_is_softmax(causal):
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, 3, N, 7, dtype=torch.float64) for _ in range(3))
    layout = Layout(causal=causal)
    torch.testing.assert_close(SlidingWindow(N)(q, k, v, layout), Softmax()(q, k, v, layout))
    assert (SlidingWindow(N - 1)(q, k, v, layout) - Softmax()(q, k, v, layout)).abs().max() > 1e-6


def test_a_stream_needs_constant_state_and_equals_one_call():
    torch.manual_seed(2)
    mechanism = SlidingWindow(11, sinks=3)
    q, k, v = (torch.randn(2, 3, 313, 7, dtype=torch.float64) for _ in range(3))
    state, outputs, sizes = mechanism.start(2, dtype=torch.float64), [], set()
    for token in range(313):
        out, state = mechanism.extend(*(x[:, :, token : token + 1] for x in (q, k, v)), state)
        outputs.append(out)
        sizes.add(state.bytes)
    assert sizes == {2 * 3 * (3 + 10) * (7 + 7) * 8}
    torch.testing.assert_close(torch.cat(outputs, 2), mechanism(q, k, v, Layout(causal=True)))
