"""Experts routed over a graph of tokens, and recurrences over vertices, by hand and by what must change nothing."""

import pytest
import torch

from regard.claims.anticipation import ACTIONS, CHANNELS, OBJECTS, VERBS, VERTICES, clips
from regard.networks.token_experts import ExpertsLM, GraphOfTokens
from regard.networks.unified_recurrence import UnifiedRecurrence

GRAPHS = ["none", "similarity", "attention"]
EDGES = ["full", "learned", "states", "template"]


def layer(graph, temperature=1.0):
    torch.manual_seed(0)
    made = GraphOfTokens(6, 5, 2, 3, graph, temperature).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    attention = torch.randn(2, 3, 7, 7, dtype=torch.float64).tril().abs()
    return made, x, attention / attention.sum(-1, keepdim=True)


@pytest.mark.parametrize("graph", GRAPHS)
def test_experts_are_the_sum_over_the_best_two(graph):
    made, x, attention = layer(graph, 0.7)
    out, shares = made(x, attention)
    own = (x @ made.router.weight.T).softmax(-1)
    for b in range(2):
        for i in range(7):
            if graph == "none":
                row = torch.eye(7, dtype=torch.float64)[i]
            elif graph == "attention":
                row = attention[b, :, i].mean(0)
            else:
                scores = torch.stack([x[b, j] @ (made.alike.weight @ x[b, i]) / 0.7 for j in range(i + 1)])
                row = torch.cat([scores.softmax(0), torch.zeros(6 - i, dtype=torch.float64)])
            mixed = row @ own[b]
            torch.testing.assert_close(shares[b, i], mixed)
            best = mixed.argsort(descending=True)[:2]
            wanted = sum(
                mixed[e] / mixed[best].sum() * (torch.nn.functional.gelu(x[b, i] @ made.into[e]) @ made.out[e])
                for e in best
            )
            torch.testing.assert_close(out[b, i], wanted)


def test_tokens_that_hear_themselves_alone_are_plain_experts():
    made, x, _ = layer("attention")
    itself = torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7)
    out, shares = made(x, itself)
    made.graph = "none"
    assert torch.equal(shares, made(x, itself)[1])
    assert torch.equal(out, made(x, itself)[0])


@pytest.mark.parametrize("graph", GRAPHS)
def test_later_tokens_change_nothing(graph):
    model = ExpertsLM(13, 8, 2, 2, 3, 2, 5, graph, seed=0).double()
    ids = torch.randint(13, (2, 11), generator=torch.Generator().manual_seed(0))
    other = torch.cat([ids[:, :6], (ids[:, 6:] + 1) % 13], 1)
    torch.testing.assert_close(model(other)[:, :6], model(ids)[:, :6])
    assert (model(other)[:, 6:] - model(ids)[:, 6:]).abs().max() > 1e-3


@pytest.mark.parametrize("edges", EDGES)
def test_later_frames_change_nothing_and_edges_learn(edges):
    network = UnifiedRecurrence(5, 3, 7, 8, 2, edges, seed=0).double()
    clip = torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = torch.cat([clip[:, :4], clip[:, 4:].flip(0)], 1)
    torch.testing.assert_close(network(other)[:, :4], network(clip)[:, :4])
    network(clip).square().sum().backward()
    names = {
        "learned": ["matrix"],
        "states": ["pair.weight", "edge.maps.weight"],
        "template": ["matrices", "choose.weight"],
    }
    for name in names.get(edges, []):
        assert network.get_parameter(name).grad.abs().max() > 0, name


def test_a_frame_passes_messages_as_its_equations_say():
    network = UnifiedRecurrence(5, 3, 7, 8, 2, "states", seed=0).double()
    generator = torch.Generator().manual_seed(0)
    state, frame = (torch.randn(1, 3, x, dtype=torch.float64, generator=generator) for x in (8, 5))
    x = network.join(torch.cat([state, network.embed(frame) + network.places], -1)).relu()[0]

    def block(part, x, weights):
        q, k, v = (part.norm(x) @ part.maps.weight.T).unflatten(1, (3, 2, 4)).permute(1, 2, 0, 3)
        a = (q @ k.mT / 2).exp() * weights
        return x + ((a / a.sum(-1, keepdim=True)) @ v).transpose(0, 1).flatten(1) @ part.join.weight.T

    a, b = (block(network.edge, x, 1.0) @ network.pair.weight.T).chunk(2, -1)
    edges = (a @ b.T * 8**-0.5).softmax(-1)
    message = block(network.message, x, edges)
    gate = torch.sigmoid(network.gate(torch.cat([state[0], message], -1)))
    wanted = state[0] + gate * (block(network.update, message, 1.0) - state[0])
    torch.testing.assert_close(network.advance(state, frame)[0], wanted)


def test_what_comes_next_follows_from_what_was():
    clip, told = clips(400, torch.Generator().manual_seed(0))
    assert clip.shape == (400, 8, VERTICES, CHANNELS)
    assert int(told.max()) < ACTIONS
    verb, kind = told // OBJECTS, told % OBJECTS
    right = (verb[:, 2:] == (verb[:, 1:-1] + 1 + kind[:, :-2]) % VERBS) & (
        kind[:, 2:] == (kind[:, 1:-1] + 1 + verb[:, 1:-1]) % OBJECTS
    )
    assert 0.93 < right.double().mean() < 0.98
