"""Records: what they hold is what the model did; saving is whole or nothing; every error is named."""

from __future__ import annotations

import json

import pytest
import torch

from regard.hosts import small
from regard.hosts.softmax_call import AttentionMap, SoftmaxCall
from regard.hosts.watch import Layer
from regard.probes import Links
from regard.probes.head_statistics import Moments
from regard.records.record import Record, check_folder, describes, record, weighed
from regard.records.token_texts import encode
from unit.hosts.models import bert, causal, eager, t5, tokens
from unit.probes import dense as plain
from unit.probes.test_probes import dense_of

LAYOUT = {
    "received", "entropy", "entropy_rows", "sink", "distance", "induction", "previous_token", "duplicate_token",
    "retrieval", "pooled", "edge_rows", "edge_starts", "edge_keys", "edge_weights", "value_norms",
    "ids", "probabilities", "log_probability",
}  # fmt: skip


@pytest.fixture(scope="module")
def minilm():
    return small.load("minilm")


def made(architecture: str = "Llama", n: int = 53, **options) -> tuple[Record, list[torch.Tensor]]:
    model, ids = causal(architecture), tokens(1, n)
    return record(model, None, ids, **options), eager(model, input_ids=ids).attentions


def close(found, expected, atol=1e-5) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=1e-5)


def test_the_arrays_are_those_of_the_dense_weights():
    seen, attentions = made()
    rows, ids = torch.arange(53), seen.tokens["ids"]
    assert {name.split("/")[1] for name in seen.arrays} == LAYOUT
    for layer, dense in enumerate(attentions):
        a, of = dense[0].double(), lambda name, layer=layer: seen.arrays[f"{layer}/{name}"]
        close(of("received"), a.sum(1) / (53 - rows))
        close(of("entropy_rows"), -torch.xlogy(a, a).sum(-1))
        close(of("entropy"), -torch.xlogy(a, a).sum(-1).mean(1))
        close(of("sink"), a[:, :, :4].mean(1))
        close(of("distance"), (a * (rows[:, None] - rows)).sum(-1).mean(1), atol=1e-4)
        close(of("previous_token"), a[:, rows[1:], rows[:-1]].mean(1))
        close(of("induction"), plain.induction(a, ids))
        close(of("duplicate_token"), plain.duplicate(a, ids))
        close(of("retrieval"), plain.retrieval(a, ids, 16))
        close(of("pooled"), plain.pooled(a, 53), atol=1e-3)
        links = Links(of("edge_rows"), of("edge_starts"), of("edge_keys"), of("edge_weights").float())
        found = dense_of(links, 53)
        unclear = (a - 0.01).abs() < 1e-6
        close(found.masked_fill(unclear, 0), torch.where(a >= 0.01, a, 0).masked_fill(unclear, 0), atol=1e-3)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2", "GptOss", "GPT2"])
def test_any_region_is_recomputed(name):
    seen, attentions = made(name)
    for layer, dense in enumerate(attentions):
        for head in (0, dense.shape[1] - 1):
            close(seen.region(layer, head, slice(11, 41), slice(3, 53)), dense[0, head, 11:41, 3:53])


def test_minilm_is_two_sided(minilm):
    model, tokenizer = minilm
    text = "Seven ships sailed.\nSeven ships — naïve ones — came back. "
    seen = record(model, tokenizer, text)
    dense = eager(model, **tokenizer(text, return_tensors="pt")).attentions
    for layer in (0, 5):
        a = dense[layer][0]
        close(seen.region(layer, 7, slice(None), slice(None)), a[7])
        close(seen.arrays[f"{layer}/received"], a.mean(1))
    assert seen.layers[3]["causal"] is False
    assert (seen.tokens["texts"][0], seen.tokens["names"]["0"], seen.tokens["special"][0]) == ("", "[CLS]", True)
    assert "".join(seen.tokens["texts"]) == text


def test_generated_tokens_are_recorded():
    model, ids = causal("Llama"), tokens(1, 11)
    seen = record(model, None, ids, generate=5)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[0].tolist()
    assert seen.tokens["ids"] == out
    assert (seen.header["tokens"], seen.header["prompt_tokens"]) == (len(out), 11)
    assert seen.arrays["1/entropy_rows"].shape == (6, len(out))


def test_the_header_says_what_was_done():
    said = []
    seen, _ = made(layers=[1], command="regard look", name="mine", progress=lambda *step: said.append(step))
    header = seen.header
    assert header["layers"] == [
        {
            "index": 1, "name": "model.layers.1.self_attn", "heads": 6, "kv_heads": 3, "head_dim": 4, "causal": True,
            "window": None, "softcap": None, "scaling": 0.5, "sinks": False, "mechanism": "softmax", "shares": False,
        }
    ]  # fmt: skip
    assert (header["command"], header["model"]["name"], header["rows"], header["kept"]) == (
        "regard look",
        "mine",
        None,
        True,
    )
    assert header["model"]["architecture"] == "LlamaForCausalLM"
    assert said == [("looking at layers", 1, 2), ("looking at layers", 2, 2)]
    summary = header["summary"]
    assert sum(share for _, share in summary["sink_positions"]) <= 1 + 1e-6
    scores = seen.arrays["1/induction"]
    assert summary["induction"][0] == [1, int(scores.argmax()), pytest.approx(float(scores.max()))]
    json.dumps(header, allow_nan=False)


def test_sampled_rows_leave_errors_and_unknowns():
    seen, _ = made(rows=13, seed=3)
    assert seen.header["rows"] == {"count": 13, "seed": 3}
    assert seen.arrays["0/entropy_rows"].isfinite().sum() == 6 * 13
    assert seen.arrays["0/entropy_error"].gt(0).all()
    assert seen.arrays["0/received_error"].shape == (6, 53)
    assert (seen.arrays["0/edge_rows"].diff(dim=1) > 0).any(0).sum() <= 13


def test_saving_and_loading(tmp_path):
    seen, _ = made(keep=True)
    folder = seen.save(tmp_path / "deep" / "seen", extra={"page.html": lambda new: str(len(list(new.iterdir())))})
    back = Record.load(folder)
    assert (back.header, back.tokens) == (seen.header, seen.tokens)
    for one, other in ((back.arrays, seen.arrays), (back.tensors, seen.tensors)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name].nan_to_num(9), other[name].nan_to_num(9)) for name in one)
    assert (folder / "page.html").read_text() == "4"
    assert [path.name for path in folder.parent.iterdir()] == ["seen"]
    made(keep=False)[0].save(folder)
    assert {path.name for path in folder.iterdir()} == {"record.json", "tokens.json", "arrays.safetensors"}
    with pytest.raises(ValueError, match="record: got no kept tensors, want a record made with keep=True"):
        Record.load(folder).region(0, 0, slice(0, 1), slice(0, 1))


def test_a_failed_save_leaves_nothing_half_written(tmp_path):
    seen, _ = made()
    seen.save(tmp_path / "seen")
    before = (tmp_path / "seen" / "record.json").read_text()

    def fail(_):
        raise RuntimeError("no page")

    seen.header["command"] = "another"
    with pytest.raises(RuntimeError, match="no page"):
        seen.save(tmp_path / "seen", extra={"page.html": fail})
    assert (tmp_path / "seen" / "record.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


def test_what_is_no_record_is_left_alone(tmp_path):
    seen, _ = made()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "only-copy.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match=r"folder: got .*thesis, which is no record, want a new folder"):
        seen.save(tmp_path / "thesis")
    with pytest.raises(FileExistsError, match="file, which is no record"):
        check_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="where file is a file"):
        check_folder(tmp_path / "file" / "seen")
    check_folder(tmp_path / "empty")
    assert (tmp_path / "thesis" / "only-copy.txt").exists()


def test_damaged_records_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: got .*absent, which has no record.json"):
        Record.load(tmp_path / "absent")
    folder = made()[0].save(tmp_path / "seen")
    for name, said in (("arrays.safetensors", "a broken file"), ("tokens.json", "broken JSON")):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ValueError, match=f"{name}: got {said}"):
            Record.load(folder)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"{name}: got no file"):
            Record.load(folder)
        (folder / name).write_bytes(kept)
    header = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(header | {"version": 2}))
    with pytest.raises(ValueError, match=r"record.json: got format and version \('regard-record', 2\), want"):
        Record.load(folder)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: record(t5(), None, [1, 2]), "target: got nothing, want what the decoder wrote, or generate=… tokens"),
        (lambda: record(t5(), None, [1, 2], [3], rows=2), "rows: got 2, want None: all rows of an encoder-decoder"),
        (lambda: record(causal("Llama"), None, [1], [3]), "target: got .3., want None: LlamaForCausalLM is no encoder"),
        (lambda: record(causal("Llama"), None, []), "text: got no tokens, want at least one"),
        (lambda: record(causal("Llama"), None, "text"), "tokenizer: got None, want a tokenizer, or token ids"),
        (lambda: record(causal("Llama"), None, tokens(1, 131)), "text: got 131 tokens, want at most 128"),
        (
            lambda: record(bert(), None, tokens(1, 7), generate=3),
            "generate: got 3, want 0: BertModel does not generate",
        ),
        (lambda: made()[0].region(5, 0, slice(0, 2), slice(0, 2)), r"layer: got 5, want one of \[0, 1\]"),
        (lambda: made()[0].region(0, 6, slice(0, 2), slice(0, 2)), "head: got 6, want 0 to 5"),
        (
            lambda: made()[0].region(0, 0, slice(9, 2), slice(0, 2)),
            "rows: got slice.9, 2, None., want a slice of at least",
        ),
    ],
)
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_only_what_the_header_can_say_is_kept():
    assert made("Mistral")[0].layers[0]["window"] == 7
    layer = Layer(0, "a", 2, 2, 5, True, False, 3, None, 1.0, False)
    q = torch.zeros(1, 2, 11, 5)
    i, j = torch.arange(11)[:, None], torch.arange(11)
    windowed = ((j <= i) & (j > i - 3))[None, None]
    assert describes(layer, AttentionMap(SoftmaxCall(q, q, 1.0, mask=windowed), q[..., 0]))
    assert not describes(layer, AttentionMap(SoftmaxCall(q, q, 1.0, mask=windowed & (j != 4)), q[..., 0]))
    assert not describes(layer, AttentionMap(SoftmaxCall(q, q, 1.0, causal=True), q[..., 0]))
    assert not describes(layer, AttentionMap(SoftmaxCall(q, q, 1.0, mask=windowed, bias=q[:, :, :, :1]), q[..., 0]))


def test_every_ending_of_the_document_is_kept(minilm):
    for text in ("  a b\n\n", "\n", "é", "a  b"):
        assert "".join(encode(minilm[1], text).texts) == text


def test_received_is_weighed_by_evidence():
    """With 4 queries: seen by 4 of them the mean stands, by 2 it counts 5 / 6, by 1 it counts 5 / 8, by none 0."""
    count = torch.tensor([[[4.0, 2.0, 1.0, 0.0]]])
    total = torch.tensor([[[0.8, 0.6, 0.4, 0.0]]])
    found = weighed(Moments(count, count, total, total.square()))
    close(found, torch.tensor([[0.2, 0.3 * 5 / 6, 0.4 * 5 / 8, 0]]))


@pytest.mark.parametrize("n", [40, 101, 997])
def test_what_all_attend_to_is_before_the_end(n):
    """Rows that give 0.3 to each of their last two tokens and 0.5 / √n to the middle: the mean ranks the end first."""
    count = (n - torch.arange(n)).double()
    local = 0.6 * torch.ones(n).double()
    local[-1] = 0.3
    local[n // 2] += 0.5 * n**-0.5 * (n - n // 2)
    seen = Moments(count[None, None], count[None, None], local[None, None], local[None, None])
    assert seen.estimate().value[0, 0].argmax() >= n - 2
    assert weighed(seen)[0].argmax() == n // 2
