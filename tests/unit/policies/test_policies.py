"""Policies by numbers worked out by hand, and by their definitions written down once more."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from regard.core.policy import View, levelled
from regard.policies import (
    H2O,
    TOVA,
    AdaKV,
    Attendre,
    Delta,
    HyLRA,
    KNorm,
    LazyEviction,
    PyramidKV,
    Quest,
    Random,
    SnapKV,
    Streaming,
    TaskKV,
)
from regard.policies.hylra import planned


def view(t=7, rows=3, group=2, budget=0, head=0, seed=0, **about):
    """A view of random keys whose last ``rows`` tokens are the queries."""
    draw = torch.Generator().manual_seed(seed + 10 * head)
    q, k, v = (torch.randn(*shape, generator=draw) for shape in ((group, rows, 5), (t, 5), (t, 3)))
    out = torch.randn(group, 3, generator=draw)
    return View(0, 4, head, 3, q, k, v, torch.arange(t), t, 0.7, out=out, budget=budget, **about)


def dense(one: View):
    """A of a view, by its definition."""
    found = torch.zeros(*one.q.shape[:2], one.size)
    for g in range(one.q.shape[0]):
        for r in range(one.q.shape[1]):
            seen = one.size - one.q.shape[1] + r + 1
            found[g, r, :seen] = (0.7 * one.q[g, r] @ one.keys[:seen].T).softmax(0)
    return found


def with_stats(policy, one: View):
    """The view after it was observed."""
    for name, fill in policy.keeps.items():
        one.stats[name] = torch.full((one.size,), fill)
    policy.observe(one)
    return one


def test_a_view_gives_the_rows_of_its_call():
    one = view()
    torch.testing.assert_close(one.weights(), dense(one))
    torch.testing.assert_close(one.columns(), dense(one).sum(1))
    sunk = view(sunk=torch.tensor([0.5, -1.0]), softcap=0.8)
    scores = 0.8 * torch.tanh(0.7 * sunk.q @ sunk.keys.T / 0.8)
    last = torch.cat([scores[:, -1], torch.tensor([[0.5], [-1.0]])], 1).softmax(1)[:, :-1]
    torch.testing.assert_close(sunk.weights(slice(-1, None))[:, 0], last)


def test_snapkv_pools_what_the_window_attends_to():
    one, policy = view(t=11, rows=2), SnapKV(window=2, kernel=3)
    mean = dense(one).mean((0, 1))[:9]
    padded = torch.cat([torch.zeros(1), mean, torch.zeros(1)])
    pooled = torch.stack([padded[i : i + 3].mean() for i in range(9)])
    torch.testing.assert_close(policy.scores(one)[:9], pooled)
    assert policy.scores(one)[9:].tolist() == [torch.inf] * 2
    highest = SnapKV(window=2, kernel=3, pooling="max").scores(one)[:9]
    torch.testing.assert_close(highest, torch.stack([padded[i : i + 3].max() for i in range(9)]))


def test_simple_scores():
    one = view(budget=4)
    assert Streaming().scores(one).tolist() == list(range(7))
    torch.testing.assert_close(KNorm().scores(one), -one.keys.pow(2).sum(1).sqrt())
    heavy = with_stats(H2O(), view(budget=4))
    torch.testing.assert_close(H2O().scores(heavy)[:5], dense(heavy).sum(1).mean(0)[:5])
    assert H2O().scores(heavy)[5:].tolist() == [torch.inf] * 2
    heads = [view(head=head) for head in range(3)]
    last = torch.stack([dense(one)[:, -1].mean(0) for one in heads]).mean(0)
    for found in TOVA().layer_scores(heads):
        torch.testing.assert_close(found, last)
    draws = Random().scores(view(t=1000))
    assert abs(draws.mean() - 0.5) < 0.05
    assert draws.unique().numel() == 1000
    assert not torch.equal(draws, Random(seed=1).scores(view(t=1000)))


def test_the_pyramid_of_the_authors_and_its_sum():
    """C 128, w 8, β 20, 8 layers of a long prompt: from 234 down to 6, beside the window."""
    policy = PyramidKV(window=8)
    budgets = [policy.budget(128, layer, 8, 10**4) for layer in range(8)]
    assert budgets == [242, 209, 177, 144, 112, 79, 47, 14]
    assert sum(budgets) == 128 * 8
    assert [policy.budget(128, layer, 8, 230) for layer in range(8)] == [128] * 8
    clipped = [policy.budget(128, layer, 8, 240) for layer in range(8)]
    assert clipped[0] == 240
    assert sum(clipped) == 128 * 8


def test_heads_share_a_budget():
    scores = [torch.tensor([9.0, 8, 7, 6]), torch.tensor([5.0, 4, 3, 2]), torch.tensor([1.0, 0.9, 0.8, 0.7])]
    views = [view(t=4, head=head) for head in range(3)]
    assert AdaKV(alpha=0.0).allot(views, scores, 2) == [4, 2, 0]
    assert AdaKV(alpha=0.5).allot(views, scores, 2) == [4, 1, 1]
    assert AdaKV(alpha=1.0).allot(views, scores, 2) == [2, 2, 2]
    assert levelled([2, 9, 9], 12) == [2, 5, 5]
    assert levelled([9, 9, 9], 13) == [4, 4, 5]


def test_far_heads_keep_everything():
    views = [view(t=10, head=head) for head in range(3)]
    views[1].out.add_(50)
    assert TaskKV(window=1, sinks=0).allot(views, [], 5) in ([2, 10, 3], [3, 10, 2])
    assert TaskKV(window=1, sinks=0, share=0.0).allot(views, [], 5) == [5, 5, 5]
    assert TaskKV(window=1, sinks=3).allot(views, [], 5) == [5, 5, 5], "the others would have less than they must"
    views = [view(t=size, head=head) for head, size in enumerate((10, 1, 10))]
    for one, far in zip(views, (90, 0, 20), strict=True):
        one.out.add_(far)
    assert TaskKV(window=1, sinks=2, share=0.67).allot(views, [], 5) == [7, 1, 7], "no head before a farther one"


class Planted(View):
    rows = torch.zeros(0)

    def weights(self, rows=slice(None)):
        return self.rows[None, self.query_positions[rows]][..., self.positions]


def planted(rows, t, first):
    one = view(t=t, rows=t - first, group=1)
    made = Planted(*(getattr(one, name) for name in View.__dataclass_fields__))
    object.__setattr__(made, "rows", torch.tensor(rows))
    return made


A = [
    [1, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 0],
    [0.5, 0, 0.5, 0, 0, 0],
    [0, 0.2, 0, 0.8, 0, 0],
    [0, 0, 0, 0, 1.0, 0],
    [0.6, 0, 0, 0, 0, 0.4],
]
"""Token 0 is attended to at 0, 2 and 5, token 1 at 1 and 3, the others by themselves alone."""


@pytest.mark.parametrize("cut", [[0], [0, 2], [0, 3, 4]])
def test_intervals_of_tokens_that_come_back(cut):
    policy, stats = LazyEviction(alpha=0.1, every=4), {}
    for start, stop in zip(cut, [*cut[1:], 6], strict=True):
        one = planted(A, stop, start)
        fresh = stop - start
        for name, fill in policy.keeps.items():
            one.stats[name] = torch.cat([stats.get(name, torch.zeros(0)), torch.full((fresh,), fill)])
        policy.observe(one)
        stats = one.stats
    assert stats["fired"].tolist() == [5, 3, 2, 3, 4, 5]
    assert stats["interval"].tolist() == [3, 2, 0, 0, 0, 0]
    assert policy.scores(one).tolist() == [0, -1, -3, -2, -1, 0]


def test_memories_count_what_is_retrieved():
    for order, expected in {"lra": [5, 3, 2, 3, 4, 5], "lfa": [3, 2, 1, 1, 1, 1], "fifo": [0, 1, 2, 3, 4, 5]}.items():
        policy = Attendre(order=order, top=2)
        one = with_stats(policy, planted(A, 6, 0))
        assert policy.scores(one).tolist() == expected
    with pytest.raises(ValueError, match="order, top"):
        Attendre(order="lru")


@pytest.mark.parametrize("policy", [Attendre(order="lra", top=2), Attendre(order="lfa", top=2), LazyEviction(every=4)])
@pytest.mark.parametrize("entries", [1, 3 * 24])  # of A in one band: a row each, and three with two heads of twelve
def test_what_is_observed_in_bands_of_rows_is_what_is_in_one(policy, entries, monkeypatch):
    one = with_stats(policy, view(t=12, rows=11))
    monkeypatch.setattr("regard.core.policy.BLOCK", entries)
    banded = view(t=12, rows=11)
    assert sum(1 for _ in banded.blocks()) == -(-11 // max(1, entries // 24))
    with_stats(policy, banded)
    for name, values in one.stats.items():
        assert banded.stats[name].tolist() == values.tolist(), name


def test_quest_bounds_every_key_and_looks_at_whole_pages_once():
    policy = Quest(page=3, whole=0)
    grown = view(t=8, rows=1, budget=6)
    first = policy.bounds(grown)
    assert grown.pages["high"].shape == (2, 5)
    later = view(t=11, rows=1, budget=6, pages=dict(grown.pages))
    object.__setattr__(later, "keys", torch.cat([grown.keys, later.keys[8:]]))
    bound = policy.bounds(later)
    assert later.pages["low"].shape == (3, 5)
    exact = (later.q[:, 0] @ later.keys.T).amax(0)
    assert all(bound[j // 3] >= exact[j] - 1e-5 for j in range(11))
    assert first.shape == (3,)
    (places,) = policy.select([later])
    assert places.tolist() == [j for j in range(11) if j // 3 in (3, int(bound[:3].argmax()))]
    assert policy.select([view(t=6, budget=6)]) is None


def test_delta_sums_the_largest_head_of_each_token():
    policy = Delta(page=2, last=1, chosen=(0.0, 0.5))
    views = [view(t=7, head=head, budget=4) for head in range(3)]
    largest = torch.stack([dense(one)[:, -1] for one in views]).flatten(0, 1).amax(0)
    pages = [largest[at : at + 2].sum().item() for at in (0, 2, 4)]
    best = max(range(3), key=lambda page: pages[page])
    for places in policy.select(views):
        assert places.tolist() == [2 * best, 2 * best + 1, 6]
    alike = view(t=12, budget=4)
    alike.keys.zero_()
    (places,) = policy.select([alike])
    assert places.tolist() == [0, 1, 10, 11]  # of equal pages the first
    assert [Delta().source(layer, 28) for layer in (0, 1, 2, 3, 13, 14, 15, 22, 27)] == [
        None,
        None,
        None,
        2,
        2,
        None,
        14,
        None,
        22,
    ]
    with pytest.raises(ValueError, match="chosen"):
        Delta(chosen=(0.5, 0.2))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_plan_is_the_best_of_all(count):
    layers, errors = 8, torch.rand(8, 8, generator=torch.Generator().manual_seed(count))

    def cost(plan):
        return sum(errors[max(f for f in plan if f < r), r].item() for r in range(layers) if r not in plan)

    every = [(0, *rest) for rest in combinations(range(1, layers), count - 1)]
    plan, found = planned(errors, count)
    assert plan in every
    assert found == pytest.approx(min(map(cost, every)), abs=1e-6)
    assert cost(plan) == pytest.approx(found, abs=1e-6)
    assert [HyLRA(full=(0, 3)).source(layer, 6) for layer in range(6)] == [None, 0, 0, None, 3, 3]
    with pytest.raises(ValueError, match="count"):
        planned(errors, 9)


def test_what_a_layer_chooses_serves_itself_best():
    from regard.hosts.reuse import reuse_errors, reusing
    from unit.hosts.models import causal, tokens

    model, ids = causal("Llama"), tokens(1, 21)
    errors = reuse_errors(model, list(ids), 6)
    assert (errors.diagonal() <= errors + 1e-6).all()
    assert reusing(model, list(ids), 6, 1) == HyLRA(full=(0,))


def test_keys_move_up_by_what_goes_behind_them():
    kept = torch.tensor([0, 1, 4, 5, 9])
    assert Streaming(positions="cache").moved(kept, 11).tolist() == [6, 6, 4, 4, 1]
    assert Streaming(positions="cache").moved(torch.arange(4), 4).tolist() == [0] * 4
    assert not Streaming().moves
    assert AdaKV(of=Streaming(positions="cache")).moves
    with pytest.raises(ValueError, match="positions: got 'place', want 'text' or 'cache'"):
        Streaming(positions="place")
