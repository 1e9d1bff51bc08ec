"""Attention through a small matrix or a few agents: exact products, rows that sum to one, cost linear in the length."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import regard
from regard.blocks.attention import Attention
from regard.blocks.spatial import NonLocal
from regard.core.sizes import Sizes
from regard.projections.base import Grouped


def draw(n: int, m: int):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, size, 7, generator=generator, dtype=torch.float64) for size in (n, m, m)]


def test_with_scaling_efficient_attention_is_the_plain_product():
    """With scaling the output is (Q Kᵀ / m) V, to 1e-12."""
    q, k, v = draw(13, 29)
    got = regard.build("efficient", normaliser="scaling")(q, k, v)
    torch.testing.assert_close(got, (q @ k.mT / 29) @ v, atol=1e-12, rtol=1e-12)


def test_with_softmax_the_implied_rows_sum_to_one():
    """Softmax over channels and over positions makes rows that sum to one, read out by the identity."""
    q, k, _ = draw(13, 29)
    rows = regard.build("efficient")(q, k, torch.eye(29, dtype=torch.float64).expand(2, 3, -1, -1))
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 3, 13, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(rows, q.softmax(3) @ k.softmax(2).mT, atol=1e-12, rtol=1e-12)


def test_agent_attention_is_the_product_of_two_softmax_matrices():
    """The output is that of the two explicit softmax matrices around the pooled queries, to 1e-12."""
    q, k, v = draw(35, 35)
    agents = q.unflatten(2, (5, 7)).mean(3)
    scale = 7**-0.5
    want = (q @ agents.mT * scale).softmax(-1) @ ((agents @ k.mT * scale).softmax(-1) @ v)
    torch.testing.assert_close(regard.build("agent", agents=5)(q, k, v), want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["efficient", "agent", "linear"])
def test_twice_the_tokens_cost_twice(name):
    """Counted FLOPs double with the length."""
    costs = [regard.build(name).cost(regard.Shape(n), regard.Layout()).flops for n in (8192, 16_384)]
    assert costs[1] == 2 * costs[0]


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all that operations make anew."""

    total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = operation(*args, **kwargs or {})
        made = (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, torch.Tensor))
        self.total += sum(x.nbytes() for x in made if x.data_ptr() not in given)
        return out


@pytest.mark.parametrize("normaliser", ["softmax", "scaling"])
def test_memory_is_linear_in_the_length(normaliser):
    """All that a step makes, gradients included, grows by the same bytes for each token from 1,024 to 4,096."""
    mechanism, found = regard.build("efficient", normaliser=normaliser), []
    for n in (1024, 2048, 4096):
        leaves = [torch.randn(1, 2, n, 16, requires_grad=True) for _ in range(3)]
        with Allocated() as allocated:
            mechanism(*leaves).sum().backward()
        found.append(allocated.total)
    assert found[2] - found[1] == 2 * (found[1] - found[0]) > 0


@pytest.mark.parametrize("normaliser", ["softmax", "scaling"])
def test_the_module_is_its_convolutions_written_out(normaliser):
    """The module for feature maps equals 1 × 1 convolutions, normalisations and the sum, on 5 × 7 cells, to 1e-12."""
    torch.manual_seed(0)
    projection = Grouped(Sizes(12, 3, 3, 4, 2))
    module = NonLocal(Attention(regard.build("efficient", normaliser=normaliser), projection)).double()
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    maps = {name: getattr(projection, name).weight[:, :, None, None] for name in ("q", "k", "v", "out")}
    read = []
    for head in range(3):
        q, k, v = (F.conv2d(x, maps[name].unflatten(0, (3, -1))[head]).flatten(2) for name in ("q", "k", "v"))
        q, k = (q.softmax(1), k.softmax(2)) if normaliser == "softmax" else (q / 35**0.5, k / 35**0.5)
        read.append((v @ k.mT @ q).unflatten(2, (5, 7)))
    want = x + F.conv2d(torch.cat(read, 1), maps["out"])
    torch.testing.assert_close(module(x), want, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(module(x), x)


def test_the_module_takes_any_mechanism_and_map():
    """Windows over the grid stand in the same module; maps of other sides need no other module."""
    torch.manual_seed(0)
    local = NonLocal(Attention(regard.build("neighborhood", window=3), Grouped(Sizes(8, 2, 2, 4, 4))))
    for rows, columns in ((5, 9), (11, 4)):
        x = torch.randn(1, 8, rows, columns)
        moved = x.clone()
        moved[:, :, 0, 0] += 1
        changed = (local(moved) != local(x)).any(1)[0].nonzero()
        assert changed.max() <= 2
    assert sum(parameter.numel() for parameter in local.parameters()) == 4 * 8 * 8
