"""Sliding windows: how far layers see, what a wide window is, what a stream costs."""

from __future__ import annotations

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.window import SlidingWindow

N = 101


def reached(mechanism: Mechanism, layers: int) -> list[int]:
    """The tokens whose value the last token's output depends on after some causal layers."""
    torch.manual_seed(1)
    x = torch.randn(1, 1, N, 5, requires_grad=True)
    state = x
    for _ in range(layers):
        state = state + mechanism(torch.ones_like(state), torch.ones_like(state), state, Layout(causal=True))
    gradient = torch.autograd.grad(state[0, 0, -1].sum(), x)[0][0, 0].abs().sum(-1)
    return (gradient > 0).nonzero().flatten().tolist()


@measured(size=(2, 7), layers=(1, 2, 3, 5))
def reach(size: int, layers: int) -> dict[str, int]:
    """How far back the last token sees, and how many tokens."""
    seen = reached(SlidingWindow(size), layers)
    return {"back": N - 1 - seen[0], "tokens": len(seen)}


def sees_exactly(found: Figures) -> Finding:
    """L layers see exactly L (w − 1) tokens back and the token itself."""
    exact = [row["back"] == row["tokens"] - 1 == row["layers"] * (row["size"] - 1) for row in found.rows]
    return Finding.of(f"exactly L (w − 1) back in {sum(exact)} of {len(exact)} cases up to 5 layers", all(exact))


@measured()
def wide() -> dict[str, float]:
    """How far windows of the whole length and of one less are from softmax attention."""
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, 3, N, 7, dtype=torch.float64) for _ in range(3))
    layout = Layout(causal=True)
    want = Softmax()(q, k, v, layout)
    whole, less = ((SlidingWindow(size)(q, k, v, layout) - want).abs().max().item() for size in (N, N - 1))
    return {"whole": whole, "less": less}


def is_softmax(found: Figures) -> Finding:
    """A window of n is softmax attention to 1e-12, one of n − 1 is not."""
    whole, less = found.one("whole"), found.one("less")
    return Finding.of(f"a window of n differs by {whole:.1g}, one of n − 1 by {less:.1g}", whole < 1e-12, less > 1e-6)


@measured()
def stream() -> dict[str, int]:
    """The least and the most bytes of the state after each of 313 tokens, once the window is full."""
    mechanism, sizes = SlidingWindow(11, sinks=3), []
    state = mechanism.start(2)
    for _ in range(313):
        q, k, v = torch.randn(3, 2, 3, 1, 7)
        _, state = mechanism.extend(q, k, v, state)
        sizes.append(state.bytes)
    return {"least": min(sizes), "most": max(sizes)}


def keeps_its_size(found: Figures) -> Finding:
    """The state has one size however long the stream is."""
    least, most = found.one("least"), found.one("most")
    return Finding.of(f"state of {least:,} to {most:,} bytes over 313 tokens", least == most)
