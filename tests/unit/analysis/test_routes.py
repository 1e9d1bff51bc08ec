"""What heads add sums to what attention adds; shares of a state sum to one; routes follow what is planted."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from regard.analysis.flow_routes import LEAST, Routes, TracedStates, routes, shares
from regard.analysis.planted import planted_model
from regard.analysis.weights import head_weights, unembedding
from regard.cli import main


@given(parts=st.integers(1, 7), channels=st.integers(1, 11), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_shares_sum_to_one_and_follow_the_largest(parts, channels, seed):
    given = torch.randn(parts, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = shares(given.sum(0), given)
    assert float(found.sum()) == pytest.approx(1)
    assert (found > 0).all()
    alone = shares(given[0], torch.stack([given[0], 0 * given[0]]))
    assert float(alone[0]) == pytest.approx(1, abs=2 * LEAST / (float(given[0].abs().sum()) + LEAST))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_what_heads_take_is_what_attention_adds(groups):
    """Of every layer and row, whether heads share keys and values or not."""
    torch.manual_seed(groups)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": groups}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=29, intermediate_size=7, initializer_range=0.5, **sizes)).eval()
    states = TracedStates(model, torch.randint(29, (11,), generator=torch.Generator().manual_seed(3)))
    for layer in range(states.layers):
        for slot in (0, 4, 10):
            parts, _ = states.parts(layer, slot)
            assert parts.shape[::2] == (6, 24)
            torch.testing.assert_close(parts.sum((0, 1)), states.state("attn", layer, slot), atol=1e-5, rtol=1e-4)


def test_silent_heads_have_no_edges_and_a_threshold_takes_edges_away():
    model, ids = planted_model(), torch.randint(29, (9,), generator=torch.Generator().manual_seed(5))
    many, few = (routes(model, ids, threshold=threshold) for threshold in (0.01, 0.2))
    assert set(many.heads) <= {(0, 1), (1, 0)}
    assert set(few.edges) <= set(many.edges)
    assert all(edge.weight > 0.01 and edge.source <= edge.to for edge in many.edges)
    other = routes(model, ids, [3], 0.01)
    both = many.merge(other)
    assert both.tokens == (3, 8)
    assert set(both.edges) == set(many.edges) | set(other.edges)
    with pytest.raises(ValueError, match=r"other: got threshold 0\.2"):
        many.merge(few)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"threshold": 0}, "threshold: got 0"), ({"to": []}, "to: got \\[\\]"), ({"to": [9]}, "some of the 5 tokens")],
)
def test_routes_want_tokens_and_a_share(arguments, said):
    with pytest.raises(ValueError, match=said):
        routes(planted_model(), torch.arange(5), **arguments)


def test_weights_of_heads_are_the_models_and_others_are_refused():
    model = planted_model()
    (first, _), attention = head_weights(model), model.model.layers[0].self_attn
    x = torch.randn(18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((first.q @ x).flatten(), attention.q_proj(x))
    z = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.einsum("hce,he->c", first.o, z), attention.o_proj(z.flatten()))
    normed = model.model.norm(x)
    torch.testing.assert_close(
        unembedding(model) @ (x / x.square().mean().sqrt()), model.lm_head(normed), atol=1e-4, rtol=1e-4
    )
    fused = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=7, n_embd=6, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"without q_proj, k_proj, v_proj, output or norm"):
        head_weights(fused)


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["regard", "flow", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_says_where_a_state_comes_from(monkeypatch, capsys, tmp_path):
    text = "one two three one two"
    assert run(monkeypatch, "--text", text, "--way", "routes", "-o", str(tmp_path / "routes.json")) == 0
    said = capsys.readouterr().out
    assert "edges from 0.04 up" in said
    assert "head" in said
    rows = json.loads((tmp_path / "routes.json").read_text())
    assert {row["part"] for row in rows} <= {"attn", "mlp", "resid"}
    assert run(monkeypatch, "--text", text, "--way", "routes", "--neurons", "2") == 0
    assert "neurons, with their share" in capsys.readouterr().out
    for way in ("rollout", "maxflow"):
        assert run(monkeypatch, "--text", text, "--way", way, "--to", "2", "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert all(row["to"] == 2 for row in rows)
        assert max(row[way] for row in rows if row["from"] > 2) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--way", "up"), "--way: got 'up', want one of rollout, maxflow, routes"),
        (("--neurons", "2"), "--neurons: got 2"),
        (("--without", "a"), "--without: got 'a'"),
        (("--way", "routes", "--without", "0"), "want none: routes leave out"),
        (("--to", "99", "--text", "a b"), "to: got [99]"),
        (("-o", "nowhere/flow.json"), "--output: got nowhere/flow.json"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_routes_are_a_table_beside_a_record():
    found = routes(planted_model(), torch.arange(7), threshold=0.05)
    assert isinstance(found, Routes)
    assert json.loads(json.dumps(found.table()))[0]["layer"] == 1
