"""Short-long convolutions before gated linear attention: one function in several forms, as fast at any length."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.networks import Config
from regard.networks.lightning.chela import ChelaLM
from regard.networks.lightning.chela_block import ChelaBlock, ShortLong

CAUSAL = Layout(causal=True)


def weighted_sum(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """``y_i = Σ_t kernel_t ⊙ x_{i−t}``, tap by tap."""
    n = x.shape[1]
    return sum((F.pad(x, (0, 0, t, 0))[:, :n] * kernel[t] for t in range(min(n, len(kernel)))), torch.zeros_like(x))


def norm(x, scale):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale


def quadratic(block: ChelaBlock, x: torch.Tensor) -> torch.Tensor:
    """The equations of the block with both convolutions tap by tap and all of q kᵀ."""
    attention, network = cast(Any, block.attention), block.network
    p, feed = attention.projection, attention.feed
    y = norm(x, block.norms[0].weight)
    z = weighted_sum(y, feed.short.weight) + weighted_sum(y, feed.weight)
    q, k, v = (F.silu(layer(z)).unflatten(-1, (p.heads, -1)).transpose(1, 2) for layer in (p.q, p.k, p.v))
    out = norm((q @ k.mT).tril() @ v, attention.output.norm.weight).transpose(1, 2).flatten(2)
    h = x + p.out(out * F.silu(attention.output.gate(z)))
    y = norm(h, block.norms[1].weight)
    return h + network.down(F.silu(network.gate(y)) * network.up(y))


@pytest.mark.parametrize(("n", "length", "taps"), [(131, 131, 3), (131, 29, 7), (29, 131, 5), (1, 11, 3)])
def test_the_merged_kernel_equals_the_two_convolutions(n, length, taps):
    """One kernel gives what the two convolutions give together to 1e-5 in float32, and both what their taps sum to."""
    torch.manual_seed(0)
    both = ShortLong(7, length, taps)
    x = torch.randn(3, n, 7)
    exact = weighted_sum(x.double(), both.short.weight.double()) + weighted_sum(x.double(), both.weight.double())
    merged = both.merged()
    assert type(merged) is not ShortLong
    assert sum(p.numel() for p in merged.parameters()) == length * 7
    apart = (merged(x) - both(x)).abs().max().item()
    assert apart < 1e-5
    torch.testing.assert_close(both(x).double(), exact, atol=1e-5, rtol=0)


def test_tiles_are_quadratic_linear_attention():
    """Output and gradients of the block equal its equations with all of q kᵀ: to 1e-4 in float32, 1e-9 in float64."""
    torch.manual_seed(0)
    worst = {}
    for dtype, most in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        block = ChelaBlock(24, 3, 20, length=53).to(dtype)
        x = torch.randn(2, 131, 24, dtype=dtype, requires_grad=True)
        found = []
        for out in (block(x, CAUSAL), quadratic(block, x)):
            found.append([out, *torch.autograd.grad((out * out.detach().sin()).sum(), [x, *block.parameters()])])
        worst[dtype] = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True))
        assert worst[dtype] < most


def test_the_language_model_continues_what_it_has_read():
    """Any split into chunks, padded too, gives the logits of one call, before and after merging; so do documents."""
    model = ChelaLM(Config(31, width=24, layers="lightning*2", heads=3), length=17, seed=0).double().eval()
    ids = torch.randint(31, (2, 67), generator=torch.Generator().manual_seed(1))
    whole = model(ids).detach()
    padded = torch.cat([ids[:, :5], torch.zeros(2, 3, dtype=torch.int64), ids[:, 5:]], 1)
    keys = ((torch.arange(70) < 5) | (torch.arange(70) >= 8)).repeat(2, 1)
    packed = torch.cat([ids[:1, :40], ids[1:, :27]], 1)
    segments = (torch.arange(67) >= 40).long()[None]
    for merged in (False, True):
        if merged:
            model.merge()
        assert model(ids).sub(whole).abs().max() < 1e-9
        for sizes in ([1, 40, 26], [20, 1, 1, 45], [67]):
            state, parts = model.start(2), []
            for part in ids.split(sizes, dim=1):
                out, state = model.extend(part, state)
                parts.append(out)
            torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-9, rtol=1e-9)
        assert sum(layer.bytes for layer in state.layers) == model.state_bytes(67, 2)
        torch.testing.assert_close(model(padded, keys)[keys].view_as(whole), whole, atol=1e-9, rtol=1e-9)
        state, parts = model.start(2), []
        for part in (slice(0, 4), slice(4, 7), slice(7, 8), slice(8, 70)):
            out, state = model.extend(padded[:, part], state, keys[:, part])
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, 1)[keys].view_as(whole), whole, atol=1e-9, rtol=1e-9)
        documents = torch.cat([whole[:1, :40], whole[1:, :27]], 1)
        torch.testing.assert_close(model(packed, segments=segments), documents, atol=1e-9, rtol=1e-9)
        again = ids
        for _ in range(3):
            again = torch.cat([again, model(again)[:, -1:].argmax(-1)], 1)
        assert torch.equal(model.generate(ids, 3), again[:, 67:])


def test_rows_of_unequal_padding_go_on_alike():
    """Sequences of one batch with padding in different places continue as each would alone."""
    torch.manual_seed(0)
    block = ChelaBlock(12, 2, 8, length=7).double()
    x = torch.randn(2, 19, 12, dtype=torch.float64)
    keys = torch.rand(2, 19) < 0.6
    state, parts = block.start(2, dtype=torch.float64), []
    for part in (slice(0, 6), slice(6, 7), slice(7, 8), slice(8, 19)):
        out, state = block.extend(x[:, part], state, keys[:, part])
        parts.append(out)
    together = torch.cat(parts, 1)
    for row in range(2):
        alone = block(x[row : row + 1, keys[row]], CAUSAL)[0]
        torch.testing.assert_close(together[row, keys[row]], alone, atol=1e-9, rtol=1e-9)


def test_bad_sizes_and_layouts_are_refused():
    """What does not fit is named."""
    with pytest.raises(ValueError, match="taps: got 5, want at most the length, 4"):
        ShortLong(8, 4, 5)
    with pytest.raises(ValueError, match="length: got 0"):
        ShortLong(8, 0, 1)
    with pytest.raises(ValueError, match="width: got 24, want a multiple of the 5 heads"):
        ChelaBlock(24, 5, 20, 16)
    with pytest.raises(ValueError, match="layers: got 'softmax\\*2'"):
        ChelaLM(Config(31, width=24, layers="softmax*2", heads=3), 16)
    block, x = ChelaBlock(24, 3, 20, 16), torch.randn(1, 5, 24)
    with pytest.raises(ValueError, match=r"layout\.causal: got False"):
        block(x, Layout())
    with pytest.raises(ValueError, match="context: got another sequence"):
        block.attention(x, CAUSAL, x)
    with pytest.raises(TypeError, match="state: got AttentionState"):
        block.attention.extend(x, Attention.start(block.attention, 1))
