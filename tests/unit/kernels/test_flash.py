"""The fused operator is given what it can read, whatever the strides; what it can read is not copied."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.kernels import flash

ORDERS = list(itertools.permutations(range(4)))
SCALE = 0.3


def stored(x, order):
    """``x`` with its axes in this order in memory."""
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])


def both_ways(tensors):
    q, k, v, grad, out = tensors
    found, lse = flash.attend(q, k, v, False, None, SCALE)
    return [found, lse, *flash.gradients(grad, q, k, v, out, lse, False, None, SCALE)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", range(5), ids=["q", "k", "v", "grad", "out"])
def test_any_order_of_axes_in_memory(which, dtype):
    generator = torch.Generator().manual_seed(which)
    drawn = [torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for tokens in (5, 7, 7, 5, 5)]
    want = both_ways(drawn)
    for order in ORDERS:
        given = [stored(x, order) if place == which else x for place, x in enumerate(drawn)]
        for got, wanted in zip(both_ways(given), want, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("axis", range(4))
def test_expanded_axes_and_overlapping_tokens(axis):
    generator = torch.Generator().manual_seed(axis)
    drawn = [torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64) for _ in range(5)]
    expanded = [x.narrow(axis, 0, 1).expand_as(x) for x in drawn]
    overlapping = [torch.randn(2, 3, 14, generator=generator, dtype=torch.float64).unfold(2, 8, 1) for _ in range(5)]
    for given in (expanded, overlapping):
        for got, wanted in zip(both_ways(given), both_ways([x.contiguous() for x in given]), strict=True):
            torch.testing.assert_close(got, wanted)


def test_only_what_cannot_be_read_is_copied():
    x = torch.randn(2, 3, 7, 8)
    for fine in (x, stored(x, (0, 2, 1, 3)), stored(x, (2, 1, 0, 3)), x[:, :1].expand(-1, 5, -1, -1), x[:, :, ::2]):
        assert flash.readable(fine) is fine
    for copied in (x.mT, x[..., ::2], x[..., :1].expand(-1, -1, -1, 8)):
        assert flash.readable(copied).is_contiguous()


@pytest.mark.parametrize("n", [1, 5])
def test_heads_that_share_keys(n):
    draw = torch.Generator().manual_seed(0)
    q, bias = torch.randn(2, 6, n, 7, generator=draw), torch.randn(2, 1, n, 11, generator=draw)
    k, v = torch.randn(2, 2, 2, 11, 7, generator=draw).requires_grad_()
    grads = []
    for keys, values in ((k, v), (k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))):
        with FlopCounterMode(display=False) as counted:
            out, lse = flash.attend(q, keys, values, False, bias, SCALE)
        assert counted.get_total_flops() == 2 * 2 * 2 * 6 * n * 11 * 7
        grads.append([out, lse, *torch.autograd.grad(out.square().sum(), (k, v), retain_graph=True)])
    for got, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("keys", "values"), [(6, 6), (2, 2), (6, 2), (1, 3)])
def test_keys_and_values_may_be_shared_by_other_numbers_of_heads(keys, values):
    q, k, v = (torch.randn(2, heads, 9, 8, dtype=torch.float64, requires_grad=True) for heads in (6, keys, values))
    out, _ = flash.attend(q, k, v, True, None, None)
    each = [x.repeat_interleave(6 // x.shape[1], 1) for x in (k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(q, *each, is_causal=True)
    torch.testing.assert_close(out, want, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (out, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
