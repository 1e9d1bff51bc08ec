"""Native sparse attention over more queries than are masked at a time: a band, dense at first, then chosen blocks."""

from __future__ import annotations

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.sparse.learned_nsa import LearnedNativeSparse
from regard.mechanisms.sparse.nsa import TILE, NativeSparse

SIZES = {"block": 8, "budget": 4, "window": 37}
CAUSAL = Layout(causal=True)


def made(learned: bool) -> NativeSparse:
    torch.manual_seed(0)
    return (LearnedNativeSparse(5, 3, **SIZES, length=4, stride=2) if learned else NativeSparse(**SIZES)).double()


def given(mechanism: NativeSparse, tokens: int) -> dict[str, torch.Tensor]:
    """Two sequences, 4 heads over 2."""
    draw = torch.Generator().manual_seed(1)
    sizes: dict[str, tuple[int, ...]] = {"q": (4, 5), "k": (2, 5), "v": (2, 3)}
    for name in mechanism.signals:
        sizes[name] = (4,) if name in NativeSparse.signals else (2, 5 if name.endswith("key") else 3)
    shape = {name: (2, size[0], tokens, *size[1:]) for name, size in sizes.items()}
    drawn = {name: torch.randn(size, generator=draw, dtype=torch.float64) for name, size in shape.items()}
    return {name: part.sigmoid() if name in NativeSparse.signals else part for name, part in drawn.items()}


@pytest.mark.parametrize("learned", [False, True])
def test_a_long_call_is_the_definition(learned):
    """And so is one that goes on where 0, 13 (fewer than the budget's blocks) or 61 tokens are known."""
    mechanism = made(learned)
    x = given(mechanism, TILE + 74)
    if learned:
        want = mechanism.define(layout=CAUSAL, **x)
    else:
        names = {name: x[name] for name in mechanism.signals}
        weights = mechanism.rows(x["q"], x["k"], CAUSAL, slice(None), **names)
        want = weights @ x["v"].repeat_interleave(2, 1)
    assert torch.allclose(mechanism(layout=CAUSAL, **x), want, atol=1e-12)
    for first in (13, 61):
        before, after = (
            {name: part[:, :, some] for name, part in x.items()} for some in (slice(first), slice(first, None))
        )
        state = mechanism.extend(state=mechanism.start(2, dtype=torch.float64), **before)[1]
        assert torch.allclose(mechanism.extend(state=state, **after)[0], want[:, :, first:], atol=1e-12)


@pytest.mark.parametrize("learned", [False, True])
def test_the_first_queries_attend_to_all_keys(learned):
    """Through the gate of chosen blocks alone: as softmax does, as far as the blocks of the budget reach."""
    mechanism = made(learned)
    if isinstance(mechanism, LearnedNativeSparse):
        mechanism.base = None
    x = given(mechanism, 41)
    for name in NativeSparse.signals:
        x[name] = torch.full((2, 4, 41), float(name == "selected"), dtype=torch.float64)
    k, v = (x[name].repeat_interleave(2, 1) for name in ("k", "v"))
    want = torch.nn.functional.scaled_dot_product_attention(x["q"], k, v, is_causal=True)
    near = ((mechanism(layout=CAUSAL, **x) - want).abs().amax((0, 1, 3)) < 1e-12).tolist()
    assert near[:32] == [True] * 32
    assert not any(near[32:])
