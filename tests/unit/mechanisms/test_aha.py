"""All-or-here attention: its two ends, what the router saves, and how it is trained."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.core.layout import Layout

CAUSAL = Layout(causal=True)


def draw(n: int, heads: int = 3, d: int = 11):
    torch.manual_seed(5)
    return [torch.randn(2, heads, n, d, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize(("route", "same"), [(1.0, ("softmax", {})), (0.0, ("window", {"size": 7}))])
def test_all_is_softmax_attention_and_here_is_the_window(route, same):
    """Routing every query to all keys is softmax attention, routing none is the window: to 1e-12."""
    q, k, v = draw(61)
    got = regard.build("aha", of="window(size=7)")(q, k, v, CAUSAL, route=torch.full((2, 3, 61), route))
    torch.testing.assert_close(got, regard.build(same[0], **same[1])(q, k, v, CAUSAL), atol=1e-12, rtol=1e-12)


def test_only_routed_queries_are_computed_over_all_keys():
    """Without gradients the FLOPs beyond the window's are those of the routed queries, head by head."""
    n, d = 1021, 16
    q, k, v = (torch.randn(1, 2, n, d) for _ in range(3))
    mechanism, shares = regard.build("aha", of="window(size=32)"), {}
    for share in (0.0, 0.07, 1.0):
        route = (torch.rand(1, 2, n, generator=torch.Generator().manual_seed(3)) < share).float()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            mechanism(q, k, v, CAUSAL, route=route)
        shares[share] = counter.get_total_flops()
    cost = (shares[0.07] - shares[0.0]) / (shares[1.0] - shares[0.0])
    assert cost < 0.15


def test_the_router_learns_through_its_threshold():
    """The gradient of a route is what the output gains by it: descent opens the routes that lower the loss."""
    q, k, v = draw(31)
    mechanism, softmax = regard.build("aha", of="window(size=2)"), regard.build("softmax")
    target = softmax(q, k, v, CAUSAL).detach()
    route = torch.full((2, 3, 31), 0.4, dtype=torch.float64, requires_grad=True)
    (mechanism(q, k, v, CAUSAL, route=route) - target).square().sum().backward()
    gained = route.grad[:, :, 2:]
    assert (gained < 0).all()
    opened = (route - 10 * route.grad).detach().clamp(0, 1)
    assert (mechanism(q, k, v, CAUSAL, route=opened) - target).abs().max() < 1e-9
