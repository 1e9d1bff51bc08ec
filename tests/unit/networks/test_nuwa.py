"""NÜWA: a decoder that reads what is near on two grids, against plain attention under masks by hand."""

import itertools

import pytest
import torch

from regard.networks.nuwa import Nuwa

GRID, GIVEN, NEAR = (2, 3, 5), (1, 2, 3), (1, 0, 2)


def close(x, y, queries, keys):
    """Whether a cell's scaled place is within the extent of another's."""
    return all(abs(a * k // q - b) <= near for a, b, q, k, near in zip(x, y, queries, keys, NEAR, strict=True))


def places(grid):
    return list(itertools.product(*map(range, grid)))


def plain(attention, norm, x, context, seen):
    """Two heads of softmax attention where ``seen`` is True."""
    p, h = attention.projection, norm(x)
    c = h if context is None else context
    out = []
    for q, k, v in zip(*(part.chunk(2, -1) for part in (p.q(h), p.k(c), p.v(c))), strict=True):
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
        out.append(scores.softmax(-1) @ v)
    return x + p.out(torch.cat(out, -1))


def test_by_hand():
    torch.manual_seed(0)
    net = Nuwa(7, GRID, 11, GIVEN, NEAR, 8, 2, 2, 12).double()
    ids, given = torch.randint(7, (2, 30)), torch.randint(11, (2, 6))
    masks = {}
    for name, (queries, keys) in {"own": (GRID, GRID), "told": (GIVEN, GIVEN), "across": (GRID, GIVEN)}.items():
        masks[name] = torch.tensor([[close(x, y, queries, keys) for y in places(keys)] for x in places(queries)])
    masks["own"] = masks["own"].tril()
    c = torch.stack([net.read.embed.weight[i] for i in given.flatten()]).view(2, 6, 8)
    c = c + torch.stack([sum(net.read.axes[a][i] for a, i in enumerate(p)) for p in places(GIVEN)])
    for block in net.encoder:
        c = plain(block.attention, block.norms[0], c, None, masks["told"])
        c = c + block.network(block.norms[1](c))
    c = net.norms[0](c)
    y = torch.cat([net.first.expand(2, 1, -1), net.write.embed(ids)[:, :-1]], 1)
    y = y + torch.stack([sum(net.write.axes[a][i] for a, i in enumerate(p)) for p in places(GRID)])
    for block in net.decoder:
        y = plain(block.attention, block.norms[0], y, None, masks["own"])
        y = plain(block.cross, block.norms[2], y, c, masks["across"])
        y = y + block.network(block.norms[1](y))
    torch.testing.assert_close(net(ids, given), net.logits(net.norms[1](y)))


def test_no_code_is_told_by_itself_or_later_ones():
    net = Nuwa(7, GRID, 11, GIVEN, NEAR, 8, 2, 2, 12)
    ids, given = torch.randint(7, (1, 30)), torch.randint(11, (1, 6))
    changed = ids.clone()
    changed[0, 17:] = (changed[0, 17:] + 1) % 7
    before, after = net(ids, given), net(changed, given)
    torch.testing.assert_close(before[:, :18], after[:, :18])
    assert (before[:, 18:] - after[:, 18:]).abs().max() > 1e-4


def test_generates_the_likeliest():
    """Each code is the likeliest after those before it."""
    net = Nuwa(7, (2, 2, 2), 5, (1, 1, 3), 1, 8, 2, 1, 12)
    given = torch.randint(5, (3, 3))
    ids = net.generate(given)
    assert torch.equal(net(ids, given).argmax(-1), ids)
    drawn = net.generate(given, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 8)
    assert not torch.equal(drawn, ids)


def test_other_grids_are_named():
    with pytest.raises(ValueError, match="ids: got 5 of them, want those of a grid"):
        Nuwa(7, (2, 2, 2), 5, (1, 1, 3), 1, 8, 2, 1, 12)(torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 3).long())
