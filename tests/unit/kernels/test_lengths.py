"""The block-sparse kernel at ever-new lengths, and at long ones."""

import pytest
import torch

from regard import patterns as p
from regard.kernels import masked_rows as whole
from regard.kernels.block_sparse import plan as block_sparse


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Rows of a kept mask serve no more than 512 tokens by their number alone."""
    monkeypatch.setattr(whole, "SIDE", 512)


@pytest.mark.parametrize(
    "text", ["Causal & (Window(64) | Sinks(4))", "Window(9) | GlobalKeys(600)", "Blocks(50) & Strided(3)"]
)
def test_new_lengths_find_a_plan(text, monkeypatch):
    """Every length is right, and an octave of them needs eight plans at most."""
    monkeypatch.setattr(whole, "WIDE", 0)
    pattern = p.parse_pattern(text)
    block_sparse.planned.cache_clear()
    for n in (521, 523, 541, 577, 641, 769, 1021):
        q = torch.randn(1, 1, n, 3, dtype=torch.float64, requires_grad=True)
        k, v = torch.randn(2, 1, 1, n, 3, dtype=torch.float64)
        got = block_sparse.attend(q, k, v, pattern)
        scores = (q @ k.mT * 3**-0.5).masked_fill(~pattern.dense(n), -torch.inf)
        want = torch.softmax(scores, -1) @ v
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), q)[0] for x in (got, want)))
    assert block_sparse.planned.cache_info().misses == 5
    assert len({block_sparse.roomy(pattern, n, n) for n in range(512, 1024)}) <= 9
    assert all(n <= block_sparse.roomy(pattern, n, n) <= 1.13 * n for n in range(512, 20_000, 7))


@pytest.mark.parametrize("more", [0, 79])
def test_masked_calls_and_queries_before_the_first_key_find_a_plan_too(more, monkeypatch):
    monkeypatch.setattr(whole, "WIDE", 0)
    pattern = p.parse_pattern("Causal & (Window(64) | Sinks(4))")
    block_sparse.planned.cache_clear()
    for n in (521, 541, 569):
        generator = torch.Generator().manual_seed(n)
        q, k, v = (torch.randn(2, 3, size, 3, dtype=torch.float64, generator=generator) for size in (n + more, n, n))
        mask = torch.rand(2, 1, n + more, n, generator=generator) < 0.7
        seen = torch.nn.functional.pad(pattern.dense(n), (0, 0, more, 0)) & mask
        for given, shown in ((mask, seen), (None, seen | torch.nn.functional.pad(pattern.dense(n), (0, 0, more, 0)))):
            scores = (q @ k.mT * 3**-0.5).masked_fill(~shown, -1e9)
            want = torch.softmax(scores, -1).masked_fill(~shown, 0) @ v
            torch.testing.assert_close(block_sparse.attend(q, k, v, pattern, mask=given), want, atol=1e-9, rtol=1e-9)
    assert block_sparse.planned.cache_info().misses == 1


@pytest.mark.parametrize(("n", "m"), [(541, 541), (1031, 1031), (7, 603), (620, 541)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_pattern_that_leaves_few_blocks_out_runs_in_rows(n, m, masked):
    """One plan tells so, for all lengths up to the next power of two; what it computes is masked attention."""
    pattern = p.parse_pattern("Causal & ~Strided(11)")
    assert block_sparse.in_rows(pattern, m, torch.device("cpu"))
    assert not block_sparse.in_rows(p.parse_pattern("Causal & (Window(64) | Sinks(4))"), 1031, torch.device("cpu"))
    generator = torch.Generator().manual_seed(n)
    q, k, v = (torch.randn(1, 2, size, 3, dtype=torch.float64, generator=generator) for size in (n, m, m))
    q.requires_grad_()
    mask = torch.rand(1, 2, n, m, generator=generator) < 0.7 if masked else None
    seen = torch.nn.functional.pad(pattern.dense(min(n, m), m), (0, 0, max(n - m, 0), 0))
    seen = seen if mask is None else seen & mask
    before = block_sparse.planned.cache_info().misses
    got = block_sparse.attend(q, k, v, pattern, mask=mask)
    scores = (q @ k.mT * 3**-0.5).masked_fill(~seen, -1e9)
    want = torch.softmax(scores, -1).masked_fill(~seen, 0) @ v
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), q)[0] for x in (got, want)))
    assert block_sparse.planned.cache_info().misses == before


def test_cells_of_long_inputs_are_estimated_well():
    pattern = p.parse_pattern("Causal & (Window(300) | Sinks(8))")
    short = block_sparse.cells(pattern, 1 << 13, 1 << 13)
    exact = pattern.cover(1 << 17, rows=128, cols=32)
    assert block_sparse.cells(pattern, 1 << 17, 1 << 17) == pytest.approx(exact.blocks * 128 * 32, rel=0.02)
    assert short < exact.cells


def test_a_mask_is_kept_for_all_lengths_up_to_its_side(monkeypatch):
    """Three masks serve all lengths up to 1,024; one that would be too large for the memory is not made."""
    monkeypatch.undo()
    pattern = p.parse_pattern("Causal & (Window(31) | Sinks(2))")
    whole.Square.of.cache_clear()
    for n in (1, 7, 64, 65, 200, 256, 257, 500, 513, 700, 1024):
        q, k, v = torch.randn(3, 1, 2, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        scores = (q @ k.mT * 3**-0.5).masked_fill(~pattern.dense(n), -torch.inf)
        torch.testing.assert_close(block_sparse.attend(q, k, v, pattern), scores.softmax(-1) @ v, atol=1e-9, rtol=1e-9)
    assert whole.Square.of.cache_info().misses == 3
    heads = p.PerHead(*(p.Causal() & p.Window(3 + head) for head in range(32)))
    cpu = torch.device("cpu")
    assert block_sparse.in_rows(heads, 512, cpu)
    assert not block_sparse.in_rows(heads, 513, cpu)
    assert not block_sparse.in_rows(p.PerHead(*[p.parse_pattern("Causal & ~Strided(11)")] * 32), 2000, cpu)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 300, 520])
@pytest.mark.parametrize("text", ["Causal & (Window(8) | Sinks(1))", "Causal", "Window(8) | GlobalKeys(1)"])
def test_few_tokens_that_see_all_before_them_are_plain_causal_attention(n, text, monkeypatch):
    """Up to the first token from which something before it is hidden, and not one further; a length anew likewise."""
    monkeypatch.setattr(whole, "LENGTHS", 2)
    pattern, causal = p.parse_pattern(text), text.startswith("Causal")
    square = whole.Square.of(pattern, whole.side_of(n))
    assert square.triangle == {"Causal": whole.side_of(n)}.get(text, 9 if causal else 0)
    for generator in (torch.Generator().manual_seed(seed) for seed in (n, n + 1)):
        for tokens, rows in ((n, n), (n, max(n - 3, 1)), (n + 5, n + 5), (n, n)):
            q = torch.randn(1, 2, rows, 3, dtype=torch.float64, generator=generator, requires_grad=True)
            k, v = torch.randn(2, 1, 2, tokens, 3, dtype=torch.float64, generator=generator)
            got = block_sparse.attend(q, k, v, pattern)
            scores = (q @ k.mT * 3**-0.5).masked_fill(~pattern.dense(rows, tokens), -torch.inf)
            want = torch.softmax(scores, -1) @ v
            torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), q)[0] for x in (got, want)))
    plain = [piece.causal for piece in whole.pieces(pattern, n, n, 0, None)]
    assert any(plain) is (n <= square.triangle)
    assert len(square.found) <= 2
