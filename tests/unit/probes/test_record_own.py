"""Records of models of ours: the same arrays, of shares where A has either sign."""

from __future__ import annotations

import pytest
import torch

from regard.probes import Links
from regard.records.record import Record, record
from unit.hosts.test_own import MIXED, defined, model, tokens
from unit.probes import dense as plain
from unit.probes.test_probes import dense_of
from unit.probes.test_record import LAYOUT, close

N = 53


@pytest.fixture(scope="module")
def seen():
    lm, ids = model(), tokens(N)
    dense = [a[0].double() for a in defined(lm, ids)]
    return record(lm, None, ids[0]), [
        a if i < 2 else a.abs() / a.abs().sum(-1, keepdim=True) for i, a in enumerate(dense)
    ]


def test_the_arrays_are_those_of_the_dense_weights(seen):
    seen, dense = seen
    rows, ids = torch.arange(N), seen.tokens["ids"]
    assert {name.split("/")[1] for name in seen.arrays} == LAYOUT
    assert seen.tokens["texts"][0] == f"⟨{ids[0]}⟩"
    for layer, a in enumerate(dense):
        of = {name.split("/")[1]: x for name, x in seen.arrays.items() if name.startswith(f"{layer}/")}.__getitem__
        counts = (N - rows).clamp(max=5) if layer == 1 else N - rows
        close(of("received"), a.sum(1) / counts)
        close(of("entropy_rows"), -torch.xlogy(a, a).sum(-1))
        close(of("sink"), a[:, :, :4].mean(1))
        close(of("distance"), (a * (rows[:, None] - rows)).sum(-1).mean(1), atol=1e-4)
        close(of("induction"), plain.induction(a, ids))
        close(of("previous_token"), a[:, rows[1:], rows[:-1]].mean(1))
        close(of("pooled"), plain.pooled(a, N), atol=1e-3)
        links = Links(of("edge_rows"), of("edge_starts"), of("edge_keys"), of("edge_weights").float())
        unclear = (a - 0.01).abs() < 1e-6
        close(
            dense_of(links, N).masked_fill(unclear, 0), torch.where(a >= 0.01, a, 0).masked_fill(unclear, 0), atol=1e-3
        )


def test_any_region_is_recomputed_also_from_the_folder(seen, tmp_path):
    seen, dense = seen
    for of in (seen, Record.load(seen.save(tmp_path / "seen"))):
        for layer, a in enumerate(dense):
            for head in (0, 3):
                close(of.region(layer, head, slice(11, 41), slice(3, N)), a[head, 11:41, 3:])
        close(of.region(2, 1, slice(0, 1), slice(0, 1)), torch.ones(1, 1))


def test_the_header_says_what_was_done(seen):
    header = seen[0].header
    assert header["model"] == {
        "name": "LM",
        "architecture": f"LM of {MIXED}",
        "parameters": model().parameter_count,
        "layers": 4,
    }
    assert header["kept"]
    assert header["layers"][2] == {
        "index": 2, "name": "blocks.2.attention", "heads": 4, "kv_heads": 4, "head_dim": 6, "causal": True,
        "window": None, "softcap": None, "scaling": None, "sinks": False, "mechanism": "mamba2", "shares": True,
    }  # fmt: skip
    assert [(layer["window"], layer["shares"]) for layer in header["layers"][:2]] == [(None, False), (5, False)]


def test_generated_tokens_are_recorded_and_rows_sampled():
    lm, ids, said = model("gla, window(size=5, sinks=2)"), tokens(11), []
    seen = record(
        lm, None, ids[0], generate=5, rows=7, keep=False, layers=[1], progress=lambda *step: said.append(step)
    )
    assert seen.tokens["ids"] == [*ids[0].tolist(), *lm.generate(ids, 5)[0].tolist()]
    assert (seen.header["tokens"], seen.header["prompt_tokens"], seen.header["kept"]) == (16, 11, False)
    assert seen.arrays["1/entropy_rows"].isfinite().sum() == 4 * 7
    assert said == [("generating 5 tokens", 0, 0), ("looking at layers", 1, 2), ("looking at layers", 2, 2)]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="ids: got 1 to 31, want 0 to 30"):
        record(model(), None, [1, 31])
    with pytest.raises(ValueError, match="tokenizer: got None, want a tokenizer, or token ids"):
        record(model(), None, "text")
    with pytest.raises(TypeError, match="model: got a Linear, want a Transformers model"):
        record(torch.nn.Linear(2, 3), None, [1])
