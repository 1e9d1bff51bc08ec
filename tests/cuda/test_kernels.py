"""The kernels as they run on CUDA, forward and backward, against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from regard import patterns as p
from regard.kernels import device as gpu
from regard.kernels.block_sparse import plan as block_sparse
from regard.kernels.scan import decayed, fla, scan
from regard.patterns.cover import Cover
from unit.kernels.test_block_sparse import TEXTS, batched, draw, masked
from unit.kernels.test_scan_gated import KINDS
from unit.kernels.test_scan_gated import draw as drawn_scan

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = [(130, 130, 3), (1, 77, 3), (70, 141, 1), (50, 20, 3), (3, 3, 3), (300, 300, 1)]


def there(tensors, dtype=torch.float32):
    """The tensors on the GPU, with gradients back to where they came from."""
    return [x.to("cuda", dtype) if x.is_floating_point() else x.to("cuda") for x in tensors]


def close(found, wanted, tolerance):
    """Each to ``tolerance`` of its largest entry."""
    for mine, want in zip(found, wanted, strict=True):
        assert mine.shape == want.shape
        mine, want = (x.detach().double().cpu() for x in (mine, want))
        assert (mine - want).abs().max() <= tolerance * want.abs().max().clamp(min=1)


def with_gradients(out, leaves):
    """Outputs and the gradients of a sum of them in which each counts otherwise."""
    weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("n", "m", "groups"), SIZES)
def test_patterns_equal_masked_dense_attention(n, m, groups, text, dtype):
    pattern, (q, k, v) = p.parse_pattern(text), draw(n, m, groups=groups)
    mine = there((q, k, v), dtype)
    assert gpu.usable(mine[0])
    got = with_gradients(block_sparse.attend(*mine, pattern), (q, k, v))
    close(got, with_gradients(masked(q, k, v, pattern.dense(n, m)), (q, k, v)), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("d", "e"), [(16, 16), (64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)])
def test_heads_of_any_size(d, e, dtype):
    torch.manual_seed(1)
    q, k = (torch.randn(1, 2, 200, d, dtype=torch.float64, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 2, 200, e, dtype=torch.float64, requires_grad=True)
    pattern = p.parse_pattern("Causal & (Window(70) | Sinks(2))")
    got = with_gradients(block_sparse.attend(*there((q, k, v), dtype), pattern), (q, k, v))
    close(got, with_gradients(masked(q, k, v, pattern.dense(200)), (q, k, v)), TOLERANCE[dtype])


@pytest.mark.parametrize("pattern", [p.Neighborhood((9, 11), 5, dilation=(1, 2)), p.Neighborhood((5, 4, 6), 3)])
def test_grids(pattern):
    n = pattern.grid[0] * pattern.grid[1] * (pattern.grid[2] if len(pattern.grid) > 2 else 1)
    q, k, v = draw(n)
    got = with_gradients(block_sparse.attend(*there((q, k, v)), pattern), (q, k, v))
    close(got, with_gradients(masked(q, k, v, pattern.dense(n)), (q, k, v)), TOLERANCE[torch.float32])


@pytest.mark.parametrize("heads", [1, 3])
def test_covers_of_each_sequence(heads):
    cover, mask = batched(heads)
    q, k, v = draw(70, 90, groups=1)
    got = with_gradients(block_sparse.attend_blocks(*there((q, k, v)), cover).out, (q, k, v))
    close(got, with_gradients(masked(q, k, v, mask), (q, k, v)), TOLERANCE[torch.float32])


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_routers_lists_of_any_block_size(causal, where):
    index = torch.randint(-1, 5, (3, 7, 2), generator=torch.Generator().manual_seed(1))
    cover = Cover.from_index(index.to(where), 70, 90, 10, 20)
    q, k, v = draw(70, 90)
    got = with_gradients(block_sparse.attend_blocks(*there((q, k, v)), cover, causal).out, (q, k, v))
    want = block_sparse.attend_blocks(q, k, v, Cover.from_index(index, 70, 90, 10, 20), causal).out
    close(got, with_gradients(want, (q, k, v)), TOLERANCE[torch.float32])


def through(run, x, state, on_gpu):
    """Outputs, the last state and all gradients of a scan."""
    leaves = [t.requires_grad_() for t in (*x.tensors, state) if t.is_floating_point()]
    given = x.like(there(x.tensors)) if on_gpu else x
    out, after = run(given, state.to("cuda", torch.float32) if on_gpu else state)
    weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out)
    return [out, after, *torch.autograd.grad((out * weights).sum() + after.square().sum(), leaves)]


@pytest.mark.parametrize(("decay", "kind", "packed"), KINDS)
@pytest.mark.parametrize("n", [3, 131, 1100])
def test_scans(n, decay, kind, packed):
    x, state = drawn_scan(n, decay, kind, packed, h=2)
    close(through(scan, x, state, True), through(scan, x, state, False), 1e-4)


@pytest.mark.parametrize("kind", ["plain", "delta", "removal"])
@pytest.mark.parametrize(("d", "e"), [(64, 64), (128, 128), (256, 512), (512, 64)])
def test_states_of_any_size(d, e, kind):
    x, state = drawn_scan(150, "channel", kind, False, b=1, h=2, d=d, e=e)
    close(through(scan, x, state, True), through(scan, x, state, False), 1e-4)


@pytest.fixture
def rounded():
    """PyTorch may round float32 in products, which lets flash-linear-attention's kernels in."""
    pytest.importorskip("fla.ops", reason="flash-linear-attention is not installed", exc_type=ImportError)
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("decay", "kind"), [(d, k) for d in ("none", "head", "channel") for k in ("plain", "delta")])
@pytest.mark.parametrize(("n", "packed"), [(67, False), (300, True)])
def test_scans_handed_to_flash_linear_attention(n, packed, decay, kind, rounded):
    x, state = drawn_scan(n, decay, kind, packed, h=2, d=64, e=64)
    assert fla.usable(state.to("cuda", torch.float32))
    close(through(scan, x, state, True), through(scan, x, state, False), 5e-3)


def test_constant_decays_handed_over(rounded):
    x, state = drawn_scan(131, "none", "plain", False, d=64, e=64)
    rates = -torch.tensor([0.0, 0.3, 20.0], dtype=torch.float64)

    def run(x, state):
        return decayed(x.q, x.k, x.v, rates.to(state), state)

    close(through(run, x, state, True), through(run, x, state, False), 5e-3)
