"""Mechanisms of ours under the same probes as a host's."""

from __future__ import annotations

import pytest
import torch

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, Traits
from regard.networks import LM, Config
from regard.probes import Distance, Entropy, Induction, Received, Sink, observe, observe_model


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
    found = observe(Plain(), q, k, Layout(causal=True, key_mask=keys), [Distance()], layer=3)["distance"][3].value
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


@pytest.mark.parametrize(
    "layers", ["gla, softmax", "gated_deltanet, window(size=5)", "mamba2, pattern(of='Blocks(8)')"]
)
def test_a_language_model_of_any_layers_is_observed(layers):
    """Every layer's rows reach the probes, and the logits are those of an unobserved pass."""
    model = LM(Config(vocabulary=31, width=24, heads=4, layers=layers), seed=0)
    ids = torch.randint(31, (1, 17), generator=torch.Generator().manual_seed(1))
    logits, found = observe_model(model, ids, [Received(), Sink(3)])
    assert torch.equal(logits, model(ids))
    x, layout = model.embed(ids), Layout(causal=True)
    for index, block in enumerate(model.layers):
        q, k, _, signals = block.attention.inputs(block.norms[0](x), layout)
        weights = block.attention.mechanism.weights(q, k, layout, **signals)[0]
        torch.testing.assert_close(found["sink"][index].value.float(), weights[:, :, :3].mean(1))
        x = block(x, layout)
    assert set(found["received"]) == {0, 1}
    assert not any(block.attention._forward_pre_hooks for block in model.layers)


def test_padding_is_left_out_of_what_is_observed():
    """A padded batch gives the mean of its sequences."""
    model = LM(Config(vocabulary=31, width=24, heads=4, layers="gla"), seed=0)
    ids = torch.randint(31, (1, 17), generator=torch.Generator().manual_seed(1))
    keys = torch.arange(17)[None] >= 4
    _, padded = observe_model(model, ids, [Sink(2)], keys)
    _, alone = observe_model(model, ids[:, 4:], [Sink(2)])
    torch.testing.assert_close(padded["sink"][0].value, alone["sink"][0].value, atol=1e-6, rtol=1e-5)
