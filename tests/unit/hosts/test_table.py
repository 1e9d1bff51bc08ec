"""What a watch has seen, as a table at the prompt and in a notebook."""

from __future__ import annotations

import pytest
import torch

from regard.hosts.watch import watch
from regard.probes import Edges, Entropy, Pooled, Received
from regard.records.record import record
from unit.hosts.models import causal, tokens


def test_a_session_shows_its_layers_and_the_mean_of_each_probe():
    model = causal("Llama")
    with watch(model, [Received(), Entropy(), Edges(0.5), Pooled(13, 5)]) as session:
        assert "nothing seen yet" in repr(session)
        model(tokens(1, 13))
    lines = repr(session).splitlines()
    assert lines[0].split()[:4] == ["layer", "module", "mechanism", "heads"]
    assert len(lines) == 1 + len(session.layers)
    mean = float(session["entropy"][1].value.mean())
    assert f"{mean:.4g}" in lines[2].split()
    html = session._repr_html_()
    assert html.count("<tr>") == len(lines)
    assert f"<td>{mean:.4g}</td>" in html


@pytest.mark.parametrize("probes", [["entropy"], [Entropy], [torch.zeros(3)]])
def test_what_is_no_probe_is_named(probes):
    with pytest.raises(TypeError, match=r"^probes: got .*, want probes as objects, such as regard.probes.Entropy\(\)"):
        watch(causal("Llama"), probes).__enter__()


def test_a_record_is_its_page_in_a_notebook():
    seen = record(causal("Llama"), None, tokens(1, 11), name="<script>alert(1)</script>")
    html = seen._repr_html_()
    assert html.startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert html.count("<") == 2
    assert "11 tokens" in repr(seen)
