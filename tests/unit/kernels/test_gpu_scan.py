"""The Triton programs that carry a scan's state, under the interpreter, against the recurrence, with all gradients."""

import pytest
import torch

from regard.kernels import device as gpu
from regard.kernels.scan import scan

from .test_scan_gated import KINDS, draw, step_by_step

pytest.importorskip("regard.kernels.scan.triton", reason="Triton is not built for this system")


@pytest.mark.parametrize(("decay", "kind", "packed"), KINDS)
@pytest.mark.parametrize("n", [3, 131])
def test_the_public_call_is_the_recurrence(n, decay, kind, packed, monkeypatch):
    monkeypatch.setattr(gpu, "usable", lambda x: True)
    x, state = draw(n, decay, kind, packed, b=2 if n == 3 else 1, h=2, e=5 if n == 131 else 40)
    leaves = [tensor.requires_grad_() for tensor in x.tensors if tensor.is_floating_point()] + [state.requires_grad_()]
    found = []
    for run in (scan, step_by_step):
        out, after = run(x, state)
        loss = (out * torch.sin(torch.arange(out.numel()).view_as(out))).sum() + after.square().sum()
        found.append([out, after, *torch.autograd.grad(loss, leaves)])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-8)


def test_single_precision_stays_close(monkeypatch):
    x, state = draw(200, "channel", "delta", True)
    wanted = scan(x, state)
    monkeypatch.setattr(gpu, "usable", lambda x: True)
    single = x.like([t.float() if t.is_floating_point() else t for t in x.tensors])
    for mine, want in zip(scan(single, state.float()), wanted, strict=True):
        torch.testing.assert_close(mine.double(), want, atol=1e-4, rtol=1e-4)
