"""Sinks, their kinds and what steers them against their authors' code; clusters of what is planted."""

import json
from pathlib import Path

import pytest
import torch

import regard
from regard.analysis.planted import planted_model
from regard.analysis.secondary_sinks import (
    Sinks,
    networks_outputs,
    secondary_sinks,
    sink_clusters,
    sink_direction,
    sinks_of,
)
from regard.core.edit import Place
from regard.edits import SinkSteering

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "routes.json").read_text())["sinks"]
STATES = torch.tensor(VALUES["states"], dtype=torch.float64)


def test_sinks_and_their_kinds_are_the_authors():
    names = {"bos_sink": "primary", "secondary": "secondary", "noise": "noise"}
    want = {
        (int(token), about["layer"][0], len(about["layer"]), names[about["sink_type"]])
        for token, about in VALUES["found"].items()
        if token != "0"
    }
    found = sinks_of(STATES)
    assert {(sink.token, sink.start, sink.lifetime, sink.kind) for sink in found} == want
    both = Sinks((found,)).merge(Sinks((found,)))
    assert both.levels == {(5, 7): 2}
    assert {row["kind"] for row in both.table()} == {"primary", "secondary", "noise"}


def test_layers_before_the_first_tokens_own_sink_do_not_count():
    states = STATES.clone()
    states[:2, 5] = states[:2, 0]
    assert 5 not in {sink.token for sink in sinks_of(states)}
    assert 5 in {sink.token for sink in sinks_of(states, bounded=False)}


def test_steering_is_the_authors():
    x, direction = (torch.tensor(VALUES[name], dtype=torch.float64)[None] for name in ("given", "direction"))
    edit = SinkSteering(direction[0], 3.0)
    n = x.shape[1]
    rows, real = torch.arange(n), torch.ones(1, n, dtype=torch.bool)
    place = Place(0, 0, 0, rows, 0, real, real, part="mlp")
    got = torch.where(edit.where.chosen_rows(place)[..., None], edit.hidden(x, place), x)
    want = torch.tensor(VALUES["scaled"], dtype=torch.float64)
    assert float((want - x[0]).abs().max()) > 0.1
    torch.testing.assert_close(got[0], want, atol=1e-5, rtol=1e-5)


def test_steering_obeys_the_laws_of_edits_and_names_what_it_cannot_be():
    assert regard.check(SinkSteering).holds
    with pytest.raises(ValueError, match="norm: got -1"):
        SinkSteering(torch.ones(3), -1)
    model = planted_model()
    with regard.steer(model, SinkSteering(torch.ones(3), 1.0)), pytest.raises(ValueError, match="direction: got shape"):
        model(torch.arange(7)[None])


def test_directions_are_what_networks_write():
    model, ids = planted_model(), torch.arange(3, 14)
    seen = []
    hook = model.model.layers[1].mlp.register_forward_hook(lambda m, i, o: seen.append(o[0]))
    with torch.no_grad():
        model(ids[None])
    hook.remove()
    torch.testing.assert_close(sink_direction(model, ids, 1, 4), seen[0][4])
    outputs = networks_outputs(model, ids, 1)
    assert len(secondary_sinks(model, ids).found) == 1
    outputs[[2, 5, 7]] = outputs[2] + 0.01 * outputs[[2, 5, 7]] + 50
    named, right = sink_clusters(outputs, [2, 5, 7], [0, 1, 3, 4])
    assert right == 1
    assert len(set(named[:3].tolist())) == 1
    with pytest.raises(ValueError, match="at least one of each"):
        sink_clusters(outputs, [], [1])
