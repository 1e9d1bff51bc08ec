"""Keys that reach a bound: the tree against all products, and weights by hand."""

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.sparse.half_space import HalfSpace
from regard.routers.ball_tree import BallTree

CAUSAL = Layout(causal=True)


@pytest.mark.parametrize(("m", "leaf"), [(1, 3), (7, 3), (100, 4), (257, 32)])
def test_leaves_hold_every_key_that_reaches_the_bound(m, leaf):
    torch.manual_seed(0)
    q, k, least = torch.randn(2, 4, 23, 5), torch.randn(2, 2, m, 5), torch.randn(2, 4, 23)
    tree = BallTree.of(k, leaf)
    assert torch.equal(tree.order.sort(2).values[..., :m], torch.arange(m).expand(2, 2, -1))
    at, looked = tree.leaves(q, least)
    reached = torch.zeros(2, 4, 23, tree.order.shape[2], dtype=torch.bool)
    reached[(*(x[:, None] for x in at[:3]), tree.keys(at, 2))] = True
    products = q @ k.repeat_interleave(2, 1).mT
    assert not ((products >= least[..., None]) & ~reached[..., :m]).any()
    assert looked <= q[..., 0].numel() * sum(x.shape[2] for x in tree.radii)


def test_few_leaves_are_looked_at_where_keys_are_apart():
    """Of 16 clumps on a line, one reaches the bound."""
    k = torch.arange(16.0).repeat_interleave(32).view(1, 1, 512, 1)
    tree = BallTree.of(k[:, :, torch.randperm(512, generator=torch.Generator().manual_seed(0))], 32)
    at, looked = tree.leaves(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1), 14.5))
    assert (len(at[0]), looked) == (1, 9)  # the root, and two of each level below


@pytest.mark.parametrize("way", ["weights", "forward"])
def test_by_hand(way):
    """Scores 0, 1, 2 and 3 with a bound of 1: softmax of the last three, or squares 0, 1 and 4 of what is above."""
    k = torch.arange(4.0).view(1, 1, 4, 1).repeat(1, 1, 5, 1)
    q, v = torch.ones(1, 1, 20, 1), torch.eye(20)[None, None]
    for given, kept in (({}, torch.tensor([0, 1, 2, 3.0]).exp() * torch.tensor([0, 1, 1, 1])), ({"power": 2}, None)):
        kept = torch.tensor([0, 0, 1.0, 4]) if kept is None else kept
        mechanism = HalfSpace(bound=1.0, leaf=2, **given)
        got = mechanism.weights(q, k, CAUSAL) if way == "weights" else mechanism(q, k, v, CAUSAL)
        want = kept.repeat(5) / kept.sum() / 5
        torch.testing.assert_close(got[0, 0, -1], want)
        assert not got[0, 0, 0].any()


def test_the_bound_by_hand():
    """8 keys, a query of length 3, four coordinates: 0.5 · 3 · √(0.4 ln 8) / 2."""
    q = torch.tensor([1.0, 2, 2, 0]).view(1, 1, 1, 4)
    torch.testing.assert_close(HalfSpace(0.5).bounds(q, torch.tensor([8.0])).item(), 0.684013, atol=1e-5, rtol=0)


def test_refusals():
    for given, said in (({"spread": -1}, "spread"), ({"power": 0}, "power")):
        with pytest.raises(ValueError, match=f"{said}: got"):
            HalfSpace(**given)
    with pytest.raises(ValueError, match="leaf: got 0"):
        BallTree.of(torch.zeros(1, 1, 3, 2), 0)


def test_decoding_makes_the_tree_anew_when_keys_have_doubled_alone(monkeypatch):
    """69 steps over leaves of 4: trees of 4, 8, 16, 32 and 64 keys, and each row is that of all scores."""
    sizes, made = [], BallTree.of.__func__

    def counted(cls, k, leaf=32):
        sizes.append(k.shape[2])
        return made(cls, k, leaf)

    monkeypatch.setattr(BallTree, "of", classmethod(counted))
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 4, 69, 5, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 69, 5, generator=generator, dtype=torch.float64)
    mechanism, rows = HalfSpace(0.4, leaf=4), []
    state = mechanism.start(2, dtype=torch.float64)
    for t in range(69):
        one = slice(t, t + 1)
        row, state = mechanism.extend(q[:, :, one], k[:, :, one], v[:, :, one], state)
        rows.append(row)
    assert [size for size in sizes if size] == [4, 8, 16, 32, 64]
    wanted = mechanism.weights(q, k, CAUSAL) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(torch.cat(rows, 2), wanted)
    assert torch.equal(state.order.sort(2).values, torch.arange(64).expand(2, 2, -1))


def test_a_tree_of_balls_cuts_along_the_axis_on_which_keys_are_farthest_apart():
    """First along the second axis, then, in the half of small numbers there, along the third."""
    keys = torch.tensor([[0.0, 1, 5], [1, 90, 0], [2, 0, 9], [3, 99, 1], [4, 2, 0], [5, 70, 2], [6, 3, 7], [7, 80, 3]])
    tree = BallTree.of(keys[None, None].double(), leaf=2)
    leaves = tree.order.reshape(4, 2).tolist()
    assert [set(leaf) for leaf in leaves] == [{0, 4}, {2, 6}, {5, 7}, {1, 3}]
