"""Delta correction: exact at γ = 1, dense at one query in γ, and what it wins back in a trained model."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.core.layout import Layout

CAUSAL = Layout(causal=True)


def draw(n: int, heads: int = 3, d: int = 11, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, n, d, generator=generator, dtype=torch.float64) for _ in range(3)]


def test_gamma_one_is_dense_attention():
    """With γ = 1 the corrected output is dense attention, whatever the sparse mechanism."""
    q, k, v = draw(97)
    got = regard.build("delta", of="window(size=3)", gamma=1)(q, k, v, CAUSAL)
    torch.testing.assert_close(got, regard.build("softmax")(q, k, v, CAUSAL), atol=1e-12, rtol=1e-12)


def test_anchors_are_dense_and_groups_share_their_correction():
    """Every γ-th row is the dense row; the other rows differ from the sparse ones by their anchor's difference."""
    q, k, v = draw(89)
    sparse, dense = regard.build("window", size=5)(q, k, v, CAUSAL), regard.build("softmax")(q, k, v, CAUSAL)
    got = regard.build("delta", of="window(size=5)", gamma=13)(q, k, v, CAUSAL)
    for anchor in range(0, 89, 13):
        torch.testing.assert_close(got[:, :, anchor], dense[:, :, anchor], atol=1e-12, rtol=1e-12)
        group = slice(anchor, anchor + 13)
        shift = (dense - sparse)[:, :, anchor, None]
        torch.testing.assert_close(got[:, :, group], sparse[:, :, group] + shift, atol=1e-12, rtol=1e-12)


def test_dense_scores_are_one_in_gamma(record_property):
    """The dense rows cost 1/γ of dense attention, to 10%."""
    n, gamma = 8192, 64
    shape = regard.Shape(n, head_dim=64)
    corrected = regard.build("delta", of="window(size=128, sinks=4)", gamma=gamma).cost(shape, CAUSAL).flops
    sparse = regard.build("window", size=128, sinks=4).cost(shape, CAUSAL).flops
    share = (corrected - sparse) / regard.build("softmax").cost(shape, CAUSAL).flops * gamma
    record_property("figure", f"FLOPs of the dense rows {share:.3f} / γ of dense attention's, n = {n:,}, γ = {gamma}")
    assert share == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_what_is_won_back_in_a_trained_model(record_property):
    """In regard-tiny a dense tail wins all recall back and the correction none: the gain is not reproduced."""
    from regard.hosts import small
    from regard.tasks import Recall, accuracy, plain_encoder, word_ids

    model, tokenizer = small.load("tiny")
    encode, bos = plain_encoder(tokenizer), tokenizer.bos_token_id
    task = Recall(word_ids(tokenizer), 8, 0.5, tuple(encode(" =")), tuple(encode("\n")), bos)
    text = torch.tensor(tokenizer(small.SAMPLE.read_text(), add_special_tokens=False)["input_ids"])
    ids = torch.cat([torch.tensor([bos]), text[:1023]])[None]
    window, never = "window(size=64, sinks=4)", 1 << 30

    def measured(mechanism: str) -> tuple[float, float]:
        """Recall at 1,024 tokens, and the mean cosine of the last hidden states with those of dense attention."""
        with regard.swap(model, mechanism), torch.no_grad():
            states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
            return accuracy(model, task, [1024], samples=8)[1024], torch.cosine_similarity(states, dense, dim=-1).mean()

    with torch.no_grad():
        dense = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
    full, _ = measured("softmax")
    alone, near = measured(window)
    corrected, cosine = measured(f"delta(of='{window}', gamma=16)")
    tail, _ = measured(f"delta(of='{window}', gamma={never}, tail=64)")
    both, _ = measured(f"delta(of='{window}', gamma=16, tail=64)")
    won = (corrected - alone) / (full - alone)
    record_property(
        "figure",
        f"recall at 1,024: dense {full:.1%}, sinks and window {alone:.1%}, with correction (γ = 16) {corrected:.1%}, "
        f"with a dense tail of 64 {tail:.1%}, with both {both:.1%}; share of the gap that the correction wins "
        f"back: {won:.0%}; cosine with dense {near:.3f} without and {cosine:.3f} with it",
    )
    assert full - alone > 0.5
    assert won < 0.5
    assert cosine < near
    assert tail == pytest.approx(full, abs=0.05)
