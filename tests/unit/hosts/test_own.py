"""Models of ours under a watch: the rows of every layer's A, whatever its mechanism."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.core.layout import Layout
from regard.hosts.mechanism_call import normalised_magnitude, spans
from regard.networks import LM, Config
from regard.probes import Received, Sink
from unit.hosts.test_watch import Dense

MIXED = "softmax, window(size=5), mamba2, gated_deltanet"


def model(layers: str = MIXED) -> LM:
    return LM(Config(vocabulary=31, width=24, heads=4, kv_heads=2, layers=layers), seed=0).eval()


def tokens(n: int = 23) -> torch.Tensor:
    return torch.randint(31, (1, n), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def defined(lm: LM, ids: torch.Tensor) -> list[torch.Tensor]:
    """A of every layer, dense, by its definition."""
    x, layout, found = lm.embed(ids), Layout(causal=True), []
    for block in lm.layers:
        q, k, _, signals = block.attention.inputs(block.norms[0](x), layout)
        found.append(block.attention.mechanism.weights(q, k, layout, **signals))
        x = block(x, layout)
    return found


def test_a_watched_model_computes_what_it_did_and_every_layer_is_seen():
    lm, ids = model(), tokens()
    with regard.watch(lm, [Dense(23)]) as session:
        logits = lm(ids)
    assert torch.equal(logits, lm(ids))
    for layer, want in enumerate(defined(lm, ids)):
        torch.testing.assert_close(session["dense"][layer], want, atol=1e-6, rtol=1e-5)
    assert [(layer.mechanism, layer.window, layer.shares) for layer in session.layers] == [
        ("softmax", None, False), ("window(size=5)", 5, False), ("mamba2", None, False),
        ("gated_deltanet", None, False),
    ]  # fmt: skip
    assert not lm._forward_pre_hooks
    assert "extend" not in vars(lm)


def test_shares_are_shown_where_rows_are_none_by_themselves():
    lm, ids = model(), tokens()
    with regard.watch(lm, [Dense(23)], shares=True) as session:
        lm(ids)
    assert [layer.shares for layer in session.layers] == [False, False, True, True]
    for layer, want in enumerate(defined(lm, ids)):
        want = want.abs() / want.abs().sum(-1, keepdim=True) if layer > 1 else want
        torch.testing.assert_close(session["dense"][layer], want, atol=1e-6, rtol=1e-5)
    assert torch.equal(
        normalised_magnitude(torch.tensor([[0.0, 0.0], [3.0, -1.0]])), torch.tensor([[0.0, 0.0], [0.75, 0.25]])
    )


def test_layers_heads_and_rows_are_chosen():
    lm, ids = model(), tokens()
    with regard.watch(lm, [Dense(23)], layers={2: [3, 1]}) as session:
        lm(ids)
    assert set(session["dense"]) == {2}
    torch.testing.assert_close(session["dense"][2], defined(lm, ids)[2][:, [3, 1]], atol=1e-6, rtol=1e-5)
    with regard.watch(lm, [Dense(23)], rows=7) as session:
        lm(ids)
    for layer, want in enumerate(defined(lm, ids)):
        rows = session["dense"][layer][0].abs().sum((0, 2)) > 0
        assert rows.sum() == 7
        torch.testing.assert_close(session["dense"][layer][:, :, rows], want[:, :, rows], atol=1e-6, rtol=1e-5)
    assert spans(torch.tensor([2, 3, 4, 9, 11, 12])) == [slice(2, 5), slice(9, 10), slice(11, 13)]


def test_a_key_out_of_the_window_is_no_pair():
    lm, ids = model("window(size=5)"), tokens()
    with regard.watch(lm, [Received()]) as session:
        lm(ids)
    dense = defined(lm, ids)[0][0].double()
    counts = (23 - torch.arange(23)).clamp(max=5)
    torch.testing.assert_close(session["received"][0].value[0], dense.sum(1) / counts, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_shown_is_refused():
    lm, ids = model(), tokens()
    with (
        regard.watch(lm, [Sink()]),
        pytest.raises(RuntimeError, match="extend: got a call under a watch, want a whole"),
    ):
        lm.generate(ids, 3)
    said = "model: got an LM, which is being watched already"
    with regard.watch(lm), pytest.raises(RuntimeError, match=said), regard.watch(lm):
        pass
    with regard.watch(lm, layers=[1, 7]), pytest.raises(ValueError, match=r"layers: got \[7\], want some of 0 to 3"):
        lm(ids)
    with (
        regard.watch(lm, layers={2: [4]}),
        pytest.raises(ValueError, match=r"layers\[2\]: got heads \[4\], want some of"),
    ):
        lm(ids)
    assert lm.generate(ids, 3).shape == (1, 3)
