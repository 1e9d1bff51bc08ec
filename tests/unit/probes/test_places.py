"""Probes of where a head looks, against their definitions over a dense map, whatever the tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.probes import ColumnMeans, Lags, NeedleHits, Offsets, OnTokens, SpanMeans
from unit.probes.dense import fed, last_before, make_map

N, HEADS, CUTS = 43, 3, (0, 5, 18, 31)
A = make_map(HEADS, N)
IDS = torch.randint(0, 7, (1, N), generator=torch.Generator().manual_seed(5))
LIST = IDS[0].tolist()


def close(found, expected) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-6, rtol=1e-6)


def test_offsets_are_the_diagonals():
    two = make_map(HEADS, N, causal=False)
    found = fed(Offsets((-2, 0, 3)), two, IDS, CUTS, causal=False).result()[0].value
    rows = torch.arange(2, N - 3)
    close(found, torch.stack([two[0, :, rows, rows + o].mean(1) for o in (-2, 0, 3)], 1))


@given(reach=st.integers(1, 5), vocabulary=st.integers(2, 11), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_lags_are_around_the_last_occurrence(reach, vocabulary, seed):
    ids = torch.randint(0, vocabulary, (1, N), generator=torch.Generator().manual_seed(seed))
    rows = [(i, last_before(ids[0].tolist(), i, int(ids[0, i]))) for i in range(N)]
    rows = [(i, p) for i, p in rows if p is not None and p - reach >= 0 and p + reach < i]
    found = fed(Lags(reach), A, ids, CUTS, start=True).result()[0].value
    if rows:
        close(found, torch.stack([A[0, :, i, p - reach : p + reach + 1] for i, p in rows]).mean(0))
    else:
        assert found.isnan().all()


def test_weight_on_kinds_of_tokens():
    found = fed(OnTokens({"few": [2], "more": [0, 5, 6]}), A, IDS, CUTS, start=True).result()[0].value
    masks = [torch.isin(IDS[0], torch.tensor(group)) for group in ([2], [0, 5, 6])]
    close(found, torch.stack([A[0][:, :, mask].sum(-1).mean(1) for mask in masks], 1))


def test_span_means_divide_by_the_keys_that_a_row_sees():
    keys = torch.ones(1, N, dtype=torch.bool)
    keys[0, :3] = False
    map_ = A.masked_fill(~keys[:, None, None], 0)
    found = fed(SpanMeans({"context": (1, 11), "new": (11, None)}), map_, IDS, CUTS, keys=keys, start=True).result()[0]
    for i in range(3, N):
        close(found[0, :, i, 0], map_[0, :, i, 1:11].sum(-1) / (min(i, 10) - 2))
        if i >= 11:
            close(found[0, :, i, 1], map_[0, :, i, 11:].sum(-1) / (i - 10))
    assert found[0, :, :3].isnan().all()
    assert found[0, :, 3:11, 1].isnan().all()


def test_column_means_count_heads_above_the_threshold():
    probe = ColumnMeans(N, 0.06)
    other = ColumnMeans(N, 0.06)
    fed(probe, A, IDS, CUTS, start=True)
    fed(other, make_map(HEADS, N, seed=1), IDS, CUTS, start=True)
    probe.merge(other)
    means = [torch.stack([a[0, :, k:, k].mean(-1) for k in range(N)], 1) for a in (A, make_map(HEADS, N, seed=1))]
    close(probe.result()[0], torch.stack([m > 0.06 for m in means]).double().mean(0))
    assert 0 < probe.result()[0].mean() < 1
    with pytest.raises(ValueError, match="tile: got 43 keys, want every row of sequences of 41 tokens"):
        fed(ColumnMeans(41), A, IDS)


def test_a_copying_head_has_the_whole_needle():
    n, needle, answer = 29, (7, 12), 23
    ids = torch.arange(100, 100 + n)[None].clone()
    ids[0, answer : answer + 5] = ids[0, needle[0] : needle[1]]
    perfect = torch.full((1, 2, n, n), 0.01).tril()
    for step in range(5):
        perfect[0, 0, answer - 1 + step, needle[0] + step] = 0.9  # head 0 looks at what comes next
        perfect[0, 1, answer + step, needle[0] + step] = 0.9  # head 1 at what the row itself is
    found = fed(NeedleHits(needle, answer), perfect, ids, (0, 11, 24), start=True).result()[0]
    assert found.tolist() == [[1.0, 0.0]]
    assert fed(NeedleHits((7, 11), answer), perfect, ids).result()[0][0, 0] == 1.0
    assert fed(NeedleHits((8, 13), answer), perfect, ids).result()[0][0, 0] == 0.8


def test_a_needle_and_a_span_may_begin_with_the_text_and_end_where_the_answer_begins():
    ids = torch.arange(100, 110)[None].clone()
    ids[0, 6:10] = ids[0, :4]
    copied = torch.full((1, 2, 10, 10), 0.01).tril()
    for step in range(4):
        copied[0, 0, 5 + step, step] = 0.9
    assert fed(NeedleHits((0, 4), 6), copied, ids).result()[0][0, 0] == 1.0
    assert fed(NeedleHits((0, 6), 6), copied, ids).result()[0][0, 0].item() == pytest.approx(4 / 6)
    found = fed(SpanMeans({"first": (0, 1)}), copied, ids).result()[0]
    close(found[0, :, :, 0], copied[0, :, :, 0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Offsets(()), "offsets: got none"),
        (lambda: Lags(0), "reach: got 0"),
        (lambda: OnTokens({"a": []}), r"groups\['a'\]: got no token ids"),
        (lambda: SpanMeans({"a": (3, 3)}), r"spans\['a'\]: got \(3, 3\)"),
        (lambda: ColumnMeans(threshold=1.0), r"threshold: got 1\.0"),
        (lambda: NeedleHits((3, 9), 8), r"needle: got \(3, 9\) before an answer at 8"),
        (lambda: NeedleHits((-1, 3), 8), r"needle: got \(-1, 3\)"),
        (lambda: NeedleHits((3, 3), 8), r"needle: got \(3, 3\)"),
        (lambda: SpanMeans({"a": (-1, 3)}), r"spans\['a'\]: got \(-1, 3\)"),
    ],
)
def test_bad_settings_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
