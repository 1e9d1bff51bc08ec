"""Packed documents in the kernels: what is computed, and that nothing is lost, over drawn batches."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from regard import Layout
from regard.kernels import dense, packing, tiled


@st.composite
def batches(draw):
    """Inputs and a layout of documents of any lengths, with or without padding, a mask and fewer queries than keys."""
    batch, m = draw(st.integers(1, 3)), draw(st.sampled_from([1, 29, 83, 601]))
    n = draw(st.sampled_from([m, max(m // 3, 1), 1]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    opens = torch.rand(batch, m, generator=generator) < draw(st.sampled_from([0.0, 0.01, 0.2, 1.0]))
    keys = (torch.rand(batch, m, generator=generator) < 0.8) if draw(st.booleans()) else None
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, 2])), n, m, generator=generator)
        mask = mask < 0.7
    shapes = ((batch, 2, n, 5), (batch, 1, m, 5), (batch, 1, m, 3))
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return *inputs, Layout(draw(st.booleans()), keys, opens.cumsum(1), mask=mask)


@pytest.mark.parametrize("attend", [dense.attend_lse, tiled.attend_lse])
@hypothesis.given(batches())
@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_packed_is_masked(monkeypatch, attend, call):
    monkeypatch.setattr(dense, "SMALL", 0)
    monkeypatch.setattr(packing, "LEAST", 11)
    monkeypatch.setattr(dense, "MASKED_ROWS", 13)
    q, k, v, layout = call
    got, seen = attend(q, k, v, layout), layout.allowed(q.shape[2], k.shape[2])
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(got.lse, scores.logsumexp(-1), atol=1e-9, rtol=1e-9)
    want = torch.softmax(scores.masked_fill(~seen, -1e9), -1).masked_fill(~seen, 0) @ v
    torch.testing.assert_close(got.out, want, atol=1e-9, rtol=1e-9)
    weight = torch.randn_like(want)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (got.out, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("size", "most"), [(16, 144), (64, 192), (509, 509), (4099, 4099)])
@pytest.mark.parametrize("causal", [True, False])
def test_nothing_is_computed_between_documents(size, most, causal):
    """Pairs a query, over all pieces and all tiles: a document, or a run of short ones."""
    n = 4099
    layout = Layout(causal, segments=(torch.arange(n) // size).expand(2, n))
    pieces = dense.pieces(n, n, layout)
    pairs = sum((p.rows.stop - p.rows.start) * (p.cols.stop - p.cols.start) for p in pieces)
    assert pairs <= 2 * n * most
    assert all(piece.mask is None for piece in pieces) or size < packing.LEAST
    blocks = list(tiled.split(0, n, tiled.ROWS))
    widths = [last - first for first, last in packing.reach(layout, n, n, blocks)]
    assert max(widths) <= min(n, tiled.ROWS + 2 * size)


def test_runs_are_whole_documents_and_every_token_is_in_one():
    segments = torch.tensor([[0] * 300 + [1] * 5 + [2] * 60 + [3] * 200 + [4] * 3, [7] * 568])
    found = [(run.sequence, run.keys.start, run.keys.stop, run.alone) for run in packing.runs(segments)]
    assert found == [
        (0, 0, 300, True),
        (0, 300, 365, False),
        (0, 365, 565, True),
        (0, 565, 568, True),
        (1, 0, 568, True),
    ]


@hypothesis.given(batches())
@hypothesis.settings(max_examples=40, deadline=None)
def test_documents_of_one_length_are_one_call(call):
    """A softmax over each document's own tokens is the masked one; there are as many calls as there are lengths."""
    q, k, v, layout = call
    n, m, lengths = q.shape[2], k.shape[2], []

    def run(q, k, v, mask=None):
        lengths.append((q.shape[2], k.shape[2]))
        seen = Layout(layout.causal, mask=mask).allowed(q.shape[2], k.shape[2])
        scores = (q @ k.mT).masked_fill(~seen, -1e9)
        return torch.softmax(scores, -1).masked_fill(~seen, 0) @ v

    got, seen = packing.per_sequence(run, q, k, v, layout), layout.allowed(n, m)
    want = torch.softmax((q @ k.mT).masked_fill(~seen, -1e9), -1).masked_fill(~seen, 0) @ v
    real = torch.ones(len(q), m, dtype=torch.bool) if layout.key_mask is None else layout.key_mask
    want = want * real[:, None, m - n :, None]
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    assert len(lengths) == len(set(lengths))
    weight = torch.randn_like(want)
    if got.requires_grad:
        for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (got, want)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)
