"""Mechanisms of ours under the same probes as a host's."""

from __future__ import annotations

import pytest
import torch

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, Traits
from regard.probes import Distance, Entropy, Induction, Received, Sink, observe


class Plain(Mechanism):
    """Softmax attention by its definition, for these tests."""

    traits = Traits()

    def weights(self, q, k, layout=Layout(), **signals):
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        allowed = layout.allowed(q.shape[2], k.shape[2])
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0)


class Linear(Plain):
    """A mechanism without a softmax, whose rows are of either sign."""

    def weights(self, q, k, layout=Layout(), **signals):
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        return q @ k.transpose(2, 3) * layout.allowed(q.shape[2], k.shape[2])


def inputs(n: int, m: int, batch: int = 1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 6, n, 5, generator=generator), torch.randn(batch, 3, m, 5, generator=generator)


@pytest.mark.parametrize("make", [Plain, Linear])
@pytest.mark.parametrize(
    ("n", "m", "causal"), [(23, 23, True), (23, 23, False), (7, 19, True), (7, 19, False), (19, 7, True)]
)
def test_the_probes_see_the_rows_of_a(make, n, m, causal):
    mechanism, layout, (q, k) = make(), Layout(causal=causal), inputs(n, m)
    dense = mechanism.weights(q, k, layout)
    seen = dense if not causal else dense[:, :, max(n - m, 0) :]
    found = observe(mechanism, q, k, layout, [Entropy(), Sink(3), Received()])
    entropy = -(seen * seen.abs().clamp(min=1e-38).log()).sum(-1)
    torch.testing.assert_close(found["entropy"][0].value.float(), entropy[0].mean(1))
    torch.testing.assert_close(found["sink"][0].value.float(), seen[0, :, :, :3].mean(1))
    counts = layout.allowed(n, m)[0, 0].sum(0)
    torch.testing.assert_close(found["received"][0].value[0].float(), dense[0].sum(1) / counts)


def test_padding_and_packing():
    q, k = inputs(23, 23, batch=2)
    keys = torch.ones(2, 23, dtype=torch.bool)
    keys[1, :7] = False
    found = observe(Plain(), q, k, Layout(causal=True, keys=keys), [Distance()], layer=3)["distance"][3].value
    total = torch.zeros(6)
    for row, start in ((0, 0), (1, 7)):
        dense = Plain().weights(q[row : row + 1, :, start:], k[row : row + 1, :, start:], Layout(causal=True))
        place = torch.arange(23 - start)
        total += (dense[0] * (place[:, None] - place)).sum((1, 2))
    torch.testing.assert_close(found.float(), total / (23 + 16))


def test_token_scores_need_ids():
    q, k = inputs(7, 7)
    ids = torch.tensor([[1, 2, 3, 1, 2, 3, 1]])
    found = observe(Plain(), q, k, Layout(causal=True), [Induction()], ids=ids)["induction"][0].value
    dense = Plain().weights(q, k, Layout(causal=True))[0]
    expected = torch.stack([dense[:, i, i - 2] for i in range(3, 7)]).mean(0)
    torch.testing.assert_close(found.float(), expected)
    with pytest.raises(ValueError, match=r"ids: got shape \(1, 5\), want \(batch, m\) = \(1, 7\)"):
        observe(Plain(), q, k, Layout(causal=True), [Induction()], ids=ids[:, :5])
    with pytest.raises(TypeError, match="decay: got an unknown signal"):
        observe(Plain(), q, k, Layout(causal=True), [], decay=q)
