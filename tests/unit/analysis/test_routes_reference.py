"""Routes, signals and paths in a small model against what their authors' code computes of the same weights."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from regard.analysis.flow_routes import routes, shares
from regard.analysis.head_paths import PathsToHeads, into_every
from regard.analysis.path_patching import PathPatching
from regard.analysis.planted import planted_model
from regard.analysis.route_neurons import by_neuron, neurons
from regard.analysis.signal_graph import Signals, signal_graph, strongest
from regard.analysis.sparse_decomposition import decompose
from regard.analysis.sweep import LogitDifference, Pair, heads_of

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "routes.json").read_text())
BASE, DONOR = (torch.tensor(VALUES[name]) for name in ("base", "donor"))


@pytest.fixture(scope="module")
def model():
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=13, intermediate_size=5, **sizes)).double().eval()
    made.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES["weights"].items()})
    return made


def test_shares_are_the_tools():
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES["contributions"].items()}
    attn = shares(given["middle"], torch.cat([given["heads"].flatten(0, 1), given["before"][None]]))
    torch.testing.assert_close(attn[:-1].view(3, 2), given["attn"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attn[-1], given["resid"], atol=1e-5, rtol=1e-4)
    state = given["middle"] + given["neurons"].sum(0)
    network = shares(state, torch.cat([given["neurons"], given["middle"][None]]))
    torch.testing.assert_close(network[:-1], given["shares"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network[-1], given["rest"], atol=1e-5, rtol=1e-4)


def test_what_heads_wrote_for_a_pair_is_as_the_authors_code_has_it(model):
    signals = Signals(model, BASE)
    fired = [(layer, *pair) for layer in (1, 2) for pair in signals.firing[layer]]
    assert {tuple(one["pair"]) for one in VALUES["signals"]} <= set(fired)
    assert len(VALUES["signals"]) >= 5
    for one in VALUES["signals"]:
        pair = tuple(one["pair"])
        found = decompose(model, BASE, pair[:2], *pair[2:])
        if len(found.fewest()) != one["used"]:  # theirs are of 99% of the score, where the last term is that small
            continue
        for got, want in zip(signals.writers(pair), (one["query"], one["key"]), strict=True):
            torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), atol=1e-5, rtol=1e-4)


def test_a_graph_goes_from_pair_to_pair_that_heads_fire_on(model):
    signals = Signals(model, BASE)
    root = next((2, *pair) for pair in sorted(signals.firing[2]))
    graph = signal_graph(model, BASE, [root])
    (edges,) = graph.found
    assert edges
    assert {edge.writer[0] < edge.layer for edge in edges} == {True}
    pairs = {(edge.layer, edge.head, edge.query, edge.key) for edge in edges}
    assert root in pairs
    for layer, head, query, key in pairs - {root}:
        readers = [e for e in edges if e.writer == (layer, head) and (e.query if e.side == "query" else e.key) == query]
        assert readers
        assert (head, query, key) in signals.firing[layer]
    both = graph.merge(graph)
    assert both.between()[0][-1] == 2
    assert len(both.table()) == 2 * len(edges)
    assert signal_graph(model, BASE, [(2, 0, 0, 0)]).found == ((),)  # the first token is not traced


def test_the_strongest_heads_have_the_share_together():
    weights = torch.tensor([[5.0, 1.0], [3.0, 1.0]])
    assert strongest(weights, 0.4) == [(0, 0)]
    assert strongest(weights, 0.7) == [(0, 0), (1, 0)]
    assert strongest(weights, 0.85) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("arguments", "said"), [({"share": 1.0}, "share: got 1"), ({"roots": [(2, 0, 3, 4)]}, "roots: got")]
)
def test_graphs_want_pairs_and_a_share(model, arguments, said):
    with pytest.raises(ValueError, match=said):
        signal_graph(model, BASE, **({"roots": [(2, 0, 4, 3)]} | arguments))


def test_scores_with_biases_are_refused():
    made = LlamaForCausalLM(
        LlamaConfig(vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, attention_bias=True)
    )
    with pytest.raises(ValueError, match="q_proj has a bias"):
        decompose(made, BASE, (0, 0), 4, 3)


@pytest.mark.parametrize("one", VALUES["paths"], ids=lambda one: f"{one['into']} {one['slot']} {one['receivers']}")
def test_paths_into_heads_are_the_authors(model, one):
    pair = Pair(BASE, DONOR, LogitDifference(3, 8))
    receivers = [tuple(head) for head in one["receivers"]]
    found = PathsToHeads(receivers, one["into"], one["slot"], rows=3).run(model, [pair])
    want = torch.tensor(one["effects"], dtype=torch.float64)
    torch.testing.assert_close(found.values.view(2, 2), want, atol=2e-5, rtol=1e-4)


def test_a_receivers_queries_are_not_its_keys(model):
    pair = Pair(BASE, DONOR, LogitDifference(3, 8))
    found = into_every(model, [pair], [(2, 1)])
    assert float((found["q"].values - found["k"].values).abs().max()) > 1e-6
    assert float((found["q"].values - PathPatching().run(model, [pair]).values[:, :4]).abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(([],), "receivers: got"), (([(0, 1)],), "second layer"), (([(1, 0)], "z"), "into: got 'z'")],
)
def test_paths_that_nobody_walks_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        PathsToHeads(*arguments)


def test_neurons_of_a_network_add_up_and_are_its_state(model):
    found = neurons(model, BASE, 1, 4)
    assert float(found.shares.sum()) + found.resid == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        hidden = model(BASE[None], output_hidden_states=True).hidden_states
        block = model.model.layers[1]
        seen = []
        hook = block.mlp.register_forward_hook(lambda m, i, o: seen.append((i[0][0, 4], o[0, 4])))
        model(BASE[None])
        hook.remove()
    (given, added), *_ = seen
    gated = block.mlp.act_fn(block.mlp.gate_proj(given)) * block.mlp.up_proj(given)
    torch.testing.assert_close(found.activations.double(), gated.detach(), atol=1e-5, rtol=1e-4)
    parts = torch.cat([gated[:, None] * block.mlp.down_proj.weight.T, (hidden[2][0, 4] - added)[None]])
    want = shares(hidden[2][0, 4], parts.detach())
    torch.testing.assert_close(found.shares.double(), want[:-1], atol=1e-5, rtol=1e-4)
    graph = routes(model, BASE, threshold=0.05)
    strong = by_neuron(model, BASE, graph, 2)
    assert set(strong) == {edge for edge in graph.edges if edge.part == "mlp"}
    assert all(len(some) == 2 for some in strong.values())


def test_networks_of_experts_and_absent_tokens_are_refused(model):
    with pytest.raises(ValueError, match="layer, slot: got 3, 0"):
        neurons(model, BASE, 3, 0)
    bare = planted_model(heads_of(planted_model()))
    for block in bare.model.layers:
        block.mlp = torch.nn.Identity()
    with pytest.raises(ValueError, match="with 0 matrices"):
        neurons(bare, BASE, 0)
