"""Readers of a source at their limits and by hand: bilinear, trilinear, near a place, with a sentinel, of two."""

import math

import pytest
import torch

from regard import Layout, build
from regard.networks.multi_source import MultiSource

N, M, D, E = 3, 13, 5, 7


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_a_trilinear_score_is_a_vector_times_the_joined_pair():
    """w · [q; k; q ⊙ k], written out for every pair."""
    mechanism = build("composed", score="trilinear", heads=2, head_dim=D).double()
    q, k, v = draw((N, D), (M, D), (M, E))
    score = mechanism.scorer
    w = torch.cat([score.query, score.key, score.both], -1)
    left, right = q[..., :, None, :].expand(-1, -1, N, M, D), k[..., None, :, :].expand(-1, -1, N, M, D)
    scores = (torch.cat([left, right, left * right], -1) * w[:, None, None]).sum(-1)
    torch.testing.assert_close(mechanism(q, k, v), scores.softmax(-1) @ v)


def test_luong_scores_by_a_matrix():
    mechanism = build("luong_general", heads=2, head_dim=D).double()
    q, k, v = draw((N, D), (M, D), (M, E))
    scores = torch.einsum("bhid,hde,bhje->bhij", q, mechanism.map, k)
    torch.testing.assert_close(mechanism(q, k, v), scores.softmax(-1) @ v)


def test_local_attention_by_hand():
    """One query: the place, the window, the softmax in it, then the Gaussian."""
    mechanism = build("local_p", heads=2, head_dim=D, reach=2).double()
    q, k = draw((1, D), (M, D))
    a = mechanism.weights(q, k).detach()
    mechanism.requires_grad_(False)
    for b in range(2):
        for h in range(2):
            hidden = torch.tanh(q[b, h, 0] @ mechanism.hidden[h])
            place = M / (1 + math.exp(-float(hidden @ mechanism.place[h])))
            near = [j for j in range(M) if abs(j - place) <= 2]
            scores = torch.stack([q[b, h, 0] @ mechanism.scorer.map[h] @ k[b, h, j] for j in near])
            want = scores.softmax(0) * torch.tensor([math.exp(-((j - place) ** 2) / 2) for j in near])
            torch.testing.assert_close(a[b, h, 0, near], want)
            assert a[b, h, 0].count_nonzero() == len(near)


def test_monotonic_attention_by_hand():
    """Queries 0, 4 and 20: a softmax over two keys on either side, nothing where no key is near."""
    mechanism = build("local_m", heads=2, head_dim=D, reach=2).double()
    q, k, v = draw((N, D), (M, D), (M, E))
    place = torch.tensor([0.0, 4.0, 20.0]).expand(2, 1, -1)
    scores, want = torch.einsum("bhid,hde,bhje->bhij", q, mechanism.scorer.map, k), torch.zeros(2, 2, N, M)
    want = want.double()
    want[:, :, 0, :3], want[:, :, 1, 2:7] = scores[:, :, 0, :3].softmax(-1), scores[:, :, 1, 2:7].softmax(-1)
    torch.testing.assert_close(mechanism.weights(q, k, place=place), want)
    torch.testing.assert_close(mechanism(q, k, v, place=place), want @ v)


def test_a_wide_window_is_attention_to_all():
    near, plain = (
        build("local_p", heads=2, head_dim=D, reach=2000).double(),
        build("luong_general", heads=2, head_dim=D),
    )
    q, k, v = draw((N, D), (M, D), (M, E))
    plain.load_state_dict({"map": near.scorer.map})
    torch.testing.assert_close(near(q, k, v), plain.double()(q, k, v), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", [Layout(), Layout(key_mask=torch.arange(M).expand(2, M) < 9)])
def test_a_sentinel_far_below_is_not_there_and_far_above_is_all(layout):
    mechanism, plain = build("sentinel", score="dot", heads=2, head_dim=D), build("softmax")
    q, k, v = draw((N, D), (M, D), (M, E))
    low = -1e3 * q
    torch.testing.assert_close(mechanism(q, k, v, layout, sentinel=low), plain(q, k, v, layout))
    assert mechanism(q, k, v, layout, sentinel=-low).abs().max() < 1e-12
    shown = mechanism.looking(q, k, layout, sentinel=q)
    torch.testing.assert_close(mechanism.weights(q, k, layout, sentinel=q).sum(-1), shown)


def test_with_one_source_both_strategies_are_one():
    flat, over = (MultiSource(13, 11, 8, 1, strategy, seed=0).double() for strategy in ("flat", "hierarchical"))
    over.load_state_dict({**over.state_dict(), **flat.state_dict()})
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(13, (3, 1, 9), generator=generator), torch.randint(11, (3, 7), generator=generator)
    torch.testing.assert_close(flat(source, target), over(source, target))


def read_scores(reader, query, keys):
    """``v · tanh(query + key)`` of all keys, ``(b, m)``."""
    return torch.tanh(query + keys) @ reader.scorer.out[0]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("strategy", ["flat", "hierarchical"])
def test_the_sentinel_is_one_more_source_by_hand(strategy, shared):
    """One softmax over the tokens of both sources and the sentinel, or over two contexts and the sentinel."""
    network = MultiSource(13, 11, 8, 2, strategy, sentinel=True, shared=shared, seed=0).double()
    torch.nn.init.normal_(network.offsets)
    source = torch.randint(13, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    encoded, (hidden, gate) = network.encode(source), torch.rand(2, 3, 8, dtype=torch.float64)
    one, two = encoded.keys.chunk(2, 1)
    parts, own = [one, two], (gate * hidden)[:, None]
    reader, query, keys = network.reader, network.query(hidden), network.keys
    if strategy == "hierarchical":
        plain = zip(keys, parts, strict=True)
        scores = [read_scores(reader, query[:, None], key(part)) for key, part in plain]
        parts = [(s.softmax(1)[..., None] * part).sum(1, keepdim=True) for s, part in zip(scores, parts, strict=True)]
        reader, query, keys = network.over, network.over_query(hidden), network.over_keys
    parts = [*parts, own]
    scores = [read_scores(reader, query[:, None], key(part)) for key, part in zip(keys, parts, strict=True)]
    scores = [s + offset for s, offset in zip(scores, network.offsets, strict=True)]
    values = torch.cat([project(part) for project, part in zip(network.values, parts, strict=True)], 1)
    wanted = (torch.cat(scores, 1).softmax(1)[..., None] * values).sum(1)
    torch.testing.assert_close(network.read(hidden, encoded, gate), wanted)
    assert (network.values is keys) is shared
    shares = network.shares(source, torch.zeros(3, 4, dtype=torch.int64))
    assert shares.shape == (3, 4, 3)
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("strategy", ["flat", "hierarchical"])
def test_padding_of_one_source_changes_nothing_and_shares_sum_to_one(strategy):
    network = MultiSource(13, 11, 8, 2, strategy, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randint(13, (3, 2, 9), generator=generator), torch.randint(11, (3, 7), generator=generator)
    lengths = torch.tensor([[9, 4], [2, 9], [5, 5]])
    other = torch.where(torch.arange(9) < lengths[..., None], source, 12 - source)
    torch.testing.assert_close(network(source, target, lengths), network(other, target, lengths))
    shares = network.shares(source, target, lengths)
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))
