"""Self-attention needs no n × n memory: exact results and gradients, tile by tile."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard.core.layout import Layout
from regard.kernels import tiled


def textbook(q, k, v, causal):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(
            ~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]), -1e30
        )
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(523, 523), (257, 601)])
def test_forward_and_gradients_match_dense_to_1e5(n, m, causal):
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 3, length, 17, requires_grad=True) for length in (n, m, m))
    upstream = torch.randn(2, 3, n, 17)
    got, want = tiled.attend(q, k, v, Layout(causal=causal)), textbook(q, k, v, causal)
    assert (got - want).abs().max() < 1e-5
    found, wanted = (torch.autograd.grad(out, (q, k, v), upstream) for out in (got, want))
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).abs().max() < 1e-5


def test_any_score_with_parameters_trains_through_the_tiles():
    class Additive:
        """``s_ij = w · tanh(q_i + k_j)``: it has no product form, and a parameter."""

        def __init__(self, w):
            self.parameters = (w,)

        def __call__(self, q, k, span):
            return torch.tanh(q[:, :, :, None] + k[:, :, None]) @ self.parameters[0]

    torch.manual_seed(5)
    q, k, v = (torch.randn(1, 2, length, 5, dtype=torch.float64, requires_grad=True) for length in (281, 307, 307))
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    got = tiled.attend(q, k, v, score=Additive(w))
    want = Additive(w)(q, k, None).softmax(-1) @ v
    assert (got - want).abs().max() < 1e-12
    leaves = (q, k, v, w)
    for mine, theirs in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (got, want)), strict=True):
        assert (mine - theirs).abs().max() < 1e-10


MEASURE = """
import sys, torch
from pathlib import Path
from regard.kernels import tiled

def inputs(n):
    return [torch.randn(1, 1, n, 64, requires_grad=sys.argv[1] == "step") for _ in range(3)]

def run(leaves):
    out = tiled.attend(*leaves)
    return torch.autograd.grad(out.sum(), leaves) if out.requires_grad else out

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

torch.set_num_threads(1)
run(inputs(700))
leaves = inputs(16384)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
before = resident("VmRSS")
run(leaves)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's memory counters")
@pytest.mark.parametrize("what", ["forward", "step"])
def test_peak_memory_at_16384_is_a_thirtieth_of_the_dense_matrix(what, record_property):
    """Beyond the inputs, output and gradients included; the dense matrix of one head takes 1 GiB."""
    run = subprocess.run([sys.executable, "-c", MEASURE, what], check=True, capture_output=True, text=True)
    record_property(what, f"{int(run.stdout) / 2**20:.1f} MiB")
    assert 0 < int(run.stdout) < 16384**2 * 4 / 30, f"{int(run.stdout) / 2**20:.1f} MiB"
