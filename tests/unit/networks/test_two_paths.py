"""Two paths on the same weights: by hand, where they are one, and what a step keeps."""

import math

import pytest
import torch

from regard.networks.freeswim import TwoPaths, sharper

GRID, HALF = (2, 5, 4), (1, 1)


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, n, 8, generator=generator, dtype=torch.float64) for n in (40, 3)]


def near(size, half, place, other):
    """Whether a cell lies in the window of 2 half + 1 cells around another, moved inward at the borders."""
    first = min(max(place - half, 0), size - 2 * half - 1)
    return first <= other <= first + 2 * half


def attended(attention, h, context, scale, seen=None):
    p = attention.projection
    q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in (p.q(h), p.k(context), p.v(context)))
    scores = scale * q @ k.mT
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return p.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("trained", [None, 18])
def test_by_hand(trained):
    net, (x, text) = TwoPaths(GRID, HALF, 8, 2, 2, 12, trained).double(), drawn()
    scale = 0.5 if trained is None else math.sqrt(math.log(40) / math.log(18) / 4)
    cells = [(y, c) for _ in range(2) for y in range(5) for c in range(4)]
    seen = torch.tensor([[near(5, 1, a[0], b[0]) and near(4, 1, a[1], b[1]) for b in cells] for a in cells])
    wide = narrow = x
    for block in net.blocks:
        first, last, crossed = block.norms
        narrow = narrow + attended(block.attention, first(narrow), first(narrow), scale, seen)
        wide = wide + attended(block.attention, first(wide), first(wide), scale)
        told = attended(block.cross, crossed(wide), text, 0.5)
        narrow, wide = narrow + told, wide + told
        narrow, wide = (path + block.network(last(path)) for path in (narrow, wide))
    torch.testing.assert_close(net(x, text), narrow)
    assert (narrow - wide).abs().max() > 1e-3


def test_windows_of_all_are_one_path():
    """The paths are the same where windows reach everything: the cross-attention is the block's own."""
    net, (x, text) = TwoPaths((2, 5, 3), (2, 1), 8, 2, 2, 12).double(), drawn()
    x, want = x[:, :30], x[:, :30]
    for block in net.blocks:
        want = block(want, context=text)
    torch.testing.assert_close(net(x, text), want)


def test_what_is_kept_comes_back():
    """A step that keeps gives what both paths gave; with another text's it differs."""
    net, (x, text) = TwoPaths(GRID, HALF, 8, 2, 2, 12).double(), drawn()
    out, told = net.run(x, text)
    again, same = net.run(x, text, told)
    torch.testing.assert_close(again, out)
    assert all(a is b for a, b in zip(told, same, strict=True))
    _, other = net.run(x, text + 1)
    assert (net.run(x, text, other)[0] - out).abs().max() > 1e-3
    with pytest.raises(ValueError, match="kept: got 1 of them, want one for each of the 2 layers"):
        net.run(x, text, told[:1])


def test_scores_are_sharpened_by_the_logarithm():
    assert sharper(256, 16, 4) == pytest.approx(math.sqrt(2 / 4))
    with pytest.raises(ValueError, match="tokens, trained: got 1, 5"):
        sharper(1, 5, 4)
