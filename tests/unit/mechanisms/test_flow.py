"""Flow attention: conservation, and the authors' formulas token by token."""

import pytest
import torch

import regard
from regard.mechanisms.linear.flow import EPSILON

CAUSAL = regard.Layout(causal=True)


def draw(n=41, m=None):
    torch.manual_seed(0)
    return [torch.randn(1, 2, size, 6, dtype=torch.float64) for size in (n, m or n, m or n)]


@pytest.mark.parametrize(("n", "m"), [(41, 41), (13, 29)])
def test_flows_are_conserved(n, m):
    """With the other side's capacity fixed to one, each query takes in and each key gives out a flow of one."""
    q, k, _ = draw(n, m)
    left, right = q.sigmoid(), k.sigmoid()
    into = left @ right.sum(2)[..., None]
    out_of = right @ left.sum(2)[..., None]
    conserved = (left / into) @ right.sum(2)[..., None]
    torch.testing.assert_close(conserved, torch.ones_like(conserved))
    weights = regard.build("flow").weights(q, k)
    sink = left @ (right / out_of).sum(2)[..., None]
    source = (right @ (left / into).sum(2)[..., None])[..., 0].clamp(-1, 1)
    share = torch.softmax(source, -1) * m
    want = torch.sigmoid(sink * n / m) * (left @ right.mT) / into * share[..., None, :]
    torch.testing.assert_close(weights, want, atol=20 * EPSILON, rtol=20 * EPSILON)
    torch.testing.assert_close(
        (weights / share[..., None, :]).sum(-1), torch.sigmoid(sink * n / m)[..., 0], atol=1e-5, rtol=1e-5
    )


def test_causal_flows_token_by_token():
    """Causal, each token's factors are those of the tokens so far alone."""
    q, k, v = draw()
    left, right = q.sigmoid() + EPSILON, k.sigmoid() + EPSILON
    out = regard.build("flow")(q, k, v, CAUSAL)
    shares, kept_in, kept_out, weight = [], 0, 0, 0
    for t in range(q.shape[2]):
        place = t + 1
        into = (left[:, :, t] * (k.sigmoid()[:, :, :place].sum(2) + EPSILON)).sum(-1) / place
        out_of = (right[:, :, t] * (q.sigmoid()[:, :, :place].sum(2) + EPSILON)).sum(-1) / place
        kept_out = kept_out + k.sigmoid()[:, :, t] / out_of[..., None]
        kept_in = kept_in + q.sigmoid()[:, :, t] / into[..., None]
        sink = (left[:, :, t] * (kept_out + EPSILON)).sum(-1) / place
        source = ((right[:, :, t] * (kept_in + EPSILON)).sum(-1) / place).clamp(-1, 1).exp()
        weight = weight + source
        shares.append(source / weight * place)
        scores = torch.einsum("bhd,bhjd->bhj", q.sigmoid()[:, :, t], k.sigmoid()[:, :, :place])
        row = torch.sigmoid(sink)[..., None] * scores / (into * place)[..., None] * torch.stack(shares, -1)
        torch.testing.assert_close(out[:, :, t], (row[..., None] * v[:, :, :place]).sum(2), atol=1e-9, rtol=1e-7)
