"""Every probe against its definition over a dense map, whatever the tiles; merging; padding; sampling; errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.tile import Tokens
from regard.probes import (
    Distance,
    DuplicateToken,
    Edges,
    Entropy,
    EntropyRows,
    Induction,
    Pooled,
    PreviousToken,
    Received,
    Retrieval,
    Sink,
    Spans,
)  # fmt: skip
from unit.probes import dense as plain
from unit.probes.dense import fed, make_map, tiles

N, HEADS = 43, 3
CUTS = (0, 5, 18, 31)
A = make_map(HEADS, N)
IDS = torch.randint(0, 7, (1, N), generator=torch.Generator().manual_seed(5))
LIST = IDS[0].tolist()
ROWS = torch.arange(N)


def mean_of(probe, **how) -> torch.Tensor:
    return fed(probe, A, IDS, CUTS, start=True, **how).result()[0].value


def close(found, expected) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-6, rtol=1e-6)


def test_entropy():
    expected = -torch.xlogy(A[0], A[0]).sum(-1)
    close(mean_of(Entropy()), expected.mean(1))
    close(fed(EntropyRows(), A, None, CUTS, start=True).result()[0][0], expected)


def test_sink_and_previous_token():
    close(mean_of(Sink(5)), A[0, :, :, :5].mean(1))
    close(mean_of(PreviousToken()), A[0, :, ROWS[1:], ROWS[:-1]].mean(1))


def test_distance():
    close(mean_of(Distance()), (A[0] * (ROWS[:, None] - ROWS)).sum(-1).mean(1))


def test_spans_are_a_lookback_ratio():
    found = mean_of(Spans({"context": (2, 11), "new": (11, None)}))
    close(found, torch.stack([A[0, :, :, 2:11].sum(-1), A[0, :, :, 11:].sum(-1)], -1).mean(1))


def test_what_a_head_is_for():
    close(mean_of(Induction()), plain.induction(A[0], LIST))
    close(mean_of(DuplicateToken()), plain.duplicate(A[0], LIST))
    close(mean_of(Retrieval(11)), plain.retrieval(A[0], LIST, 11))


def test_the_scores_of_perfect_heads_are_one():
    ids = torch.arange(3, 20).repeat(3)[None]
    n = ids.shape[1]
    rows = torch.arange(n)
    copying = torch.zeros(1, 1, n, n)
    copying[0, 0, rows, (rows - 16).clamp(min=0)] = 1
    assert fed(Induction(), copying, ids).result()[0].value.item() == 1
    assert fed(Retrieval(), copying, ids).result()[0].value.item() == 1
    same = torch.zeros(1, 1, n, n)
    same[0, 0, rows, torch.where(rows < 17, rows, rows - 17)] = 1
    assert fed(DuplicateToken(), same, ids).result()[0].value.item() == 1
    assert fed(Retrieval(), same, ids).result()[0].value.item() == 0


def test_received_is_the_mean_over_those_who_may_see():
    close(fed(Received(), A, None, CUTS, start=True).result()[0].value[0], A[0].sum(1) / (N - ROWS))
    bidirectional = make_map(HEADS, N, causal=False)
    close(fed(Received(), bidirectional, None, CUTS, causal=False).result()[0].value[0], bidirectional[0].mean(1))


@pytest.mark.parametrize("cells", [1, 7, 16, N])
def test_pooled_cells(cells):
    close(fed(Pooled(N, cells), A, None, CUTS, start=True).result()[0][0], plain.pooled(A[0], cells))


def dense_of(links, n: int) -> torch.Tensor:
    heads = len(links.starts) - 1
    out = torch.zeros(heads, n, n, dtype=links.weights.dtype)
    for head in range(heads):
        own = slice(int(links.starts[head]), int(links.starts[head + 1]))
        keys, weights = links.keys[own].long(), links.weights[own]
        for row in range(links.rows.shape[1] - 1):
            part = slice(int(links.rows[head, row]), int(links.rows[head, row + 1]))
            assert keys[part].tolist() == sorted(keys[part].tolist())
            out[head, row, keys[part]] = weights[part]
    return out


def test_edges_are_the_heavy_entries():
    found = fed(Edges(0.03), A, None, CUTS, start=True).result()[0]
    close(dense_of(found, N), torch.where(A[0] >= 0.03, A[0], 0))
    assert found.rows.dtype == torch.int32


def test_edges_keep_the_largest_of_a_row():
    found = dense_of(fed(Edges(0.001, most=4), A, None, CUTS, start=True).result()[0], N)
    heavy = torch.where(A[0] >= 0.001, A[0], 0)
    best = heavy.topk(4, -1)
    close(found, torch.zeros_like(heavy).scatter_(-1, best.indices, best.values))


def test_edges_of_wide_tiles_with_a_ragged_end():
    wide = make_map(2, 131)
    close(dense_of(fed(Edges(0.05), wide).result()[0], 131), torch.where(wide[0] >= 0.05, wide[0], 0))


def test_no_edges_at_all():
    links = fed(Edges(0.9), torch.full((1, 2, 11, 11), 1 / 11), causal=False).links(0, 11)
    assert links.rows.shape == (2, 12)
    assert links.starts.tolist() == [0, 0, 0]


PROBES = [
    Entropy, Sink, Distance, PreviousToken, Induction, DuplicateToken, Retrieval, Received, EntropyRows,
    lambda: Pooled(N, 7), lambda: Edges(0.02), lambda: Spans({"a": (0, 3)}),
]  # fmt: skip


def plain_values(result) -> list[torch.Tensor]:
    value = result[0]
    names = [
        name
        for name in ("value", "error", "rows", "starts", "keys", "weights")
        if name in vars(type(value)).get("__annotations__", {})
    ]
    return [getattr(value, name) for name in names] or [value]


@pytest.mark.parametrize("make", PROBES)
@given(cut=st.integers(1, N - 1))
@settings(max_examples=7, deadline=None)
def test_merging_parts_equals_the_whole(make, cut):
    whole, one, other = make(), make(), make()
    parts = list(tiles(A, IDS, (0, cut), start=True))
    for probe, chosen in ((whole, parts), (one, parts[:1]), (other, parts[1:])):
        for tile in chosen:
            probe.update(tile)
    other.merge(one)
    for found, expected in zip(plain_values(other.result()), plain_values(whole.result()), strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_probes_that_differ_do_not_merge():
    with pytest.raises(ValueError, match=r"other: got .*'first': 5.*, want a probe like this one, .*'first': 4"):
        Sink(4).merge(Sink(5))
    with pytest.raises(ValueError, match=r"other: got .*Distance"):
        Entropy().merge(Distance())


@pytest.mark.parametrize(
    "make", [Entropy, Sink, Distance, PreviousToken, Induction, DuplicateToken, lambda: Retrieval(5)]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(make, side):
    short, pad = 29, 7
    alone = make_map(HEADS, short, seed=2)
    padded = torch.rand(1, HEADS, short + pad, short + pad, dtype=torch.float64)
    place = slice(pad, None) if side == "left" else slice(0, short)
    padded[:, :, place, :] = 0
    padded[:, :, place, place] = alone
    ids = torch.zeros(1, short + pad, dtype=torch.long)
    ids[:, place] = IDS[:, :short]
    keys = torch.zeros(1, short + pad, dtype=torch.bool)
    keys[:, place] = True
    found = fed(make(), padded, ids, (0, 13), keys=keys).result()[0].value
    close(found, fed(make(), alone, IDS[:, :short]).result()[0].value)


@pytest.mark.parametrize("make", [Entropy, Received, lambda: Pooled(N, 7)])
def test_sampled_rows_are_unbiased(make):
    whole = plain_values(fed(make(), A).result())[0]
    total, samples = torch.zeros_like(whole), 400
    seen = torch.zeros_like(whole)
    generator = torch.Generator().manual_seed(1)
    for _ in range(samples):
        rows = torch.randperm(N, generator=generator)[:23].sort().values
        probe = make()
        (tile,) = tiles(A)
        chosen = {"weights": tile.weights[:, :, rows], "rows": rows, "queries": tile.queries[:, rows], "share": 23 / N}
        probe.update(type(tile)(**{**vars(tile), **chosen}))
        value = plain_values(probe.result())[0]
        total += value.nan_to_num(0)
        seen += ~value.isnan()
    often = seen > samples / 3
    torch.testing.assert_close((total / seen)[often], whole[often], atol=0.02, rtol=0.05)


def test_a_key_that_no_sampled_row_sees_is_unknown():
    probe = Received()
    (tile,) = tiles(A)
    part = {"weights": tile.weights[:, :, 3:11], "rows": ROWS[3:11], "queries": tile.queries[:, 3:11], "share": 8 / N}
    probe.update(type(tile)(**{**vars(tile), **part}))
    assert probe.result()[0].value[0, 0, 11:].isnan().all()
    assert probe.result()[0].error[0, 0, :4].gt(0).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=31))
@settings(max_examples=31, deadline=None)
def test_tokens_find_their_earlier_occurrences(ids):
    tokens = Tokens(torch.tensor([ids, ids[::-1]]))
    slots = torch.arange(len(ids))
    found = set(zip(*(part.tolist() for part in tokens.occurrences(slots)), strict=True))
    pairs = [(b, row) for b, row in enumerate((ids, ids[::-1]))]
    assert found == {(b, i, j) for b, row in pairs for i in range(len(row)) for j in range(i) if row[i] == row[j]}
    for b, row in pairs:
        last = [plain.last_before(row, i, row[i]) for i in range(len(row))]
        assert tokens.last[b].tolist() == [-1 if j is None else j for j in last]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sink(0), "first: got 0, want at least one token"),
        (lambda: Retrieval(-1), "beyond: got -1, want a distance in tokens"),
        (lambda: Spans({"a": (5, 3)}), r"spans\['a'\]: got \(5, 3\), want 0 <= start < stop"),
        (lambda: Pooled(5, 7), "cells: got 7, want 1 to 5, the number of tokens"),
        (lambda: Edges(0), "threshold: got 0, want a weight above 0 and at most 1"),
        (lambda: Edges(0.5, 0), "most: got 0, want at least one edge a row"),
        (lambda: fed(Induction(), A), "tile.tokens: got None, want token ids: induction compares tokens"),
        (lambda: fed(Pooled(41, 7), A), "tokens: got 41, want the length of the sequence, which is at least 43"),
        (lambda: fed(Edges(), make_map(2, 5, batch=3)), "tile: got a batch of 3, want one sequence"),
    ],
)
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
