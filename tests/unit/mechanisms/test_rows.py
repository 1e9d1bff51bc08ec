"""Rows of A across chunks, and in memory that grows with the keys and not with their square."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from regard.core.layout import Layout
from regard.networks import LM, Config

LAYERS = [
    "softmax", "alibi", "sigmoid", "tapa", "window(size=37)", "pattern(of='Blocks(8)')", "power(window=31)",
    "delta(of='window(size=29)')", "linear", "based", "retnet", "gla", "mamba", "mamba2", "deltanet", "gated_deltanet",
    "rwkv6", "softmax_rnn", "lightning", "flow", "composed(score=distance, bias=t5, normaliser=laplace)",
]  # fmt: skip


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def call(layers: str, n: int, dtype: torch.dtype = torch.float32):
    """A mechanism with what a layer gives it of ``n`` random hidden states."""
    model = LM(Config(vocabulary=7, width=16, heads=2, layers=layers), seed=0).to(dtype)
    layer = model.layers[0].attention
    x = torch.randn(1, n, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, k, _, signals = layer.inputs(x, Layout(causal=True))
    return layer.mechanism, q, k, signals


@pytest.mark.parametrize("layers", LAYERS)
def test_rows_take_memory_for_themselves_alone(layers):
    """16 rows at the end of 3,001 tokens: no tensor comes near to 3,001 × 3,001."""
    n = 3001
    mechanism, q, k, signals = call(layers, n)
    with torch.no_grad(), Largest() as largest:
        rows = mechanism.rows(q, k, Layout(causal=True), slice(n - 16, n), **signals)
    assert rows.shape == (1, q.shape[1], 16, n)
    assert largest.most < n * n / 8


@pytest.mark.parametrize("layers", ["linear", "mamba", "mamba2", "gated_deltanet", "rwkv6", "flow", "window(size=37)"])
@pytest.mark.parametrize("of", ["plain", "padded", "packed"])
def test_rows_across_chunks_are_those_of_the_definition(layers, of):
    n = 151
    mechanism, q, k, signals = call(layers, n, torch.float64)
    place = torch.arange(n)[None]
    layout = {
        "plain": Layout(causal=True),
        "padded": Layout(causal=True, key_mask=(place >= 7) & (place < 149)),
        "packed": Layout(causal=True, segments=(place >= 61).long() + (place >= 97)),
    }[of]
    dense = mechanism.weights(q, k, layout, **signals)
    for rows in (slice(0, 3), slice(59, 131), slice(n - 1, n)):
        found = mechanism.rows(q, k, layout, rows, **signals)
        torch.testing.assert_close(found, dense[:, :, rows], atol=1e-9, rtol=0)
