"""`regard look` end to end, and what it says of bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from command_line import regard
from regard.hosts import small
from regard.hosts.load import check_name
from regard.networks import LM, Config
from regard.records.format import Record


def test_a_look_leaves_a_whole_record_and_prints_a_summary(tmp_path):
    target = tmp_path / "seen"
    done = regard("look", "--text", "for item in items:\n    print(item)\n" * 5, "--generate", "3", "-o", str(target))
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for word in ("regard-tiny", "induction", "previous token", "sink", "mass by position", "receive most", "page.html"):
        assert word in said
    assert {path.name for path in target.iterdir()} == {
        "record.json", "tokens.json", "arrays.safetensors", "tensors.safetensors", "page.html",
    }  # fmt: skip
    header = json.loads((target / "record.json").read_text())
    assert header["tokens"] == header["prompt_tokens"] + 3
    assert header["command"].startswith("regard look --text")


def test_a_process_of_its_own_reads_standard_input_and_says_nothing_beside_its_summary(tmp_path):
    run = "from regard.cli import main, progress; progress.QUIET = float('inf'); main()"  # a slow machine's lines
    call = [sys.executable, "-c", run, "look", "--file", "-", "-o", str(tmp_path / "seen")]
    done = subprocess.run(call, input=b"a b c a b c a b c", capture_output=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "".join(Record.load(tmp_path / "seen").tokens["texts"]) == "a b c a b c a b c"


def test_roles_and_an_earlier_record_go_onto_the_page(own, tmp_path, monkeypatch):
    """What is left out is said, and `serve` is offered only where there is something to recompute."""
    monkeypatch.chdir(tmp_path)
    rows = [{"layer": i, "head": h, "roles": ["sink"] * h, "sink": 0.9 * h} for i in range(4) for h in range(2)]
    about = {"format": "regard-heads", "version": 1, "thresholds": {"sink": 0.5}, "notes": []}
    Path("roles.json").write_text(json.dumps({**about, "heads": rows}))
    ids = ("--model", str(own), "--text", "3 4 5 3 4 5 9")

    def looked(*arguments: str) -> tuple[int, str]:
        done = regard("look", *ids, *arguments)
        return done.returncode, done.stdout + done.stderr

    code, said = looked("-o", "before")
    assert (code, "regard serve before" in said) == (0, True)
    assert "weights below 0.01 are left out of the page" in said
    code, said = looked("--no-keep", "--layers", "0,1", "-o", "some")
    assert code == 0
    assert "regard serve" not in said
    assert "queries and keys were not kept" in said
    assert "2 of 4 layers were looked at" in said
    code, said = looked("--roles", "roles.json", "--beside", "before", "-o", "after")
    assert code == 0, said
    assert Record.load("after").header["analyses"]["heads"] == rows
    assert 'id="beside/0/rest"' in Path("after/page.html").read_text()
    for arguments, wanted in (
        (("--beside", "some"), "beside: got a record of other heads"),
        (("--beside", "nowhere"), "'nowhere', which has no record.json"),
        (("--roles", "roles.json", "--model", "tiny", "--text", "a b"), "--roles: got a table without head (0, 2)"),
        (("--roles", "before/tokens.json"), "want a table that `regard heads` wrote"),
    ):
        code, said = looked(*arguments, "-o", "never")
        assert (code, wanted in said) == (2, True), said
        assert not Path("never").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--model", "nosuchfolder/at-all"),
            "--model: got 'nosuchfolder/at-all', want tiny, smollm2, minilm, a folder",
        ),
        (("--text", "  "), "--text: got an empty text, want at least one word"),
        (("--text", "a", "--file", "b"), "--text: got a text and a --file, want one of them"),
        (("--file", "BINARY"), "which is not UTF-8 text, want a text file"),
        (("--file", "absent.txt"), "absent.txt"),
        (("--text", "word " * 9000), "want at most 8,192"),
        (("--text", "a b", "--layers", "x"), "--layers: got 'x', want numbers and ranges such as 0,2-4"),
        (("--text", "a b", "--layers", "9"), "want"),
        (("--text", "a b", "--neurons", "3"), "--neurons: got '3', want layers and heads such as 9.4,18.6"),
        (("--text", "a b", "--neurons", "3.1", "--no-keep"), "--neurons: got 3.1 with --no-keep, want"),
        (("--text", "a b", "--neurons", "3.8"), "--neurons: got head 8 of layer 3, softmax, want heads 0 to 7"),
        (("--text", "a b", "-o", "BINARY/seen"), "BINARY"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_half_written(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BINARY").write_bytes(bytes(range(256)))
    given = arguments if "-o" in arguments else (*arguments, "-o", "seen")
    done = regard("look", *given)
    assert done.returncode == 2, done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["BINARY"]


def test_what_can_be_refused_at_once_is_refused_before_what_takes_seconds_to_import():
    """One process: texts, layers and heads without PyTorch, then a model that nothing has without Transformers."""
    script = "\n".join(
        [
            "import sys; from regard.cli import main",
            "def refused(heavy, *arguments):",
            "    sys.argv = ['regard', 'look', *arguments]",
            "    try: main()",
            "    except SystemExit as end: assert (end.code, heavy in sys.modules) == (2, False), arguments",
            "for option in (('--text', ' '), ('--file', 'absent'), ('--layers', 'x'), ('--neurons', '3')):",
            "    refused('torch', *option)",
            "import regard.hosts.load; regard.hosts.load.hub_answers = lambda: False",
            "refused('transformers', '--model', 'nosuchfolder/at-all')",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(": got")[0] for line in done.stderr.splitlines()] == [
        "regard: --text", "regard: absent: no such file or folder", "regard: --layers", "regard: --neurons",
        "regard: --model",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kept", "answers"),
    [("tiny", None, False), (".", None, False), ("of/a-hub", "config.json", False), ("of/a-hub", None, True)],
)
def test_what_may_be_a_model_is_not_refused_by_its_name(name, kept, answers, monkeypatch):
    """What ships, a folder, what the hub's cache has, and whatever a hub that answers may have."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: kept)
    monkeypatch.setattr("regard.hosts.load.hub_answers", lambda: answers)
    check_name(name)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The folder of a model of ours, of four mechanisms."""
    folder = tmp_path_factory.mktemp("own") / "lm"
    layers = "softmax, window(size=9), mamba2, gated_deltanet"
    LM(Config(vocabulary=2048, width=16, heads=2, layers=layers), seed=0).save_pretrained(folder)
    return folder


def test_a_model_of_ours_is_looked_at_by_ids_or_by_words(own, tmp_path):
    done = regard("look", "--model", str(own), "--text", "3 4 5, 3 4 5", "--generate", "2", "-o", str(tmp_path / "ids"))
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for word in ("LM of softmax, window(size=9)", "layers 2, 3: shares", "induction", "⟨3⟩", "page.html"):
        assert word in said
    record = Record.load(tmp_path / "ids")
    assert (record.tokens["ids"][:6], record.n, record.header["model"]["name"]) == ([3, 4, 5, 3, 4, 5], 8, str(own))
    words = ("--tokenizer", "tiny", "--text", "one two one two")
    done = regard("look", "--model", str(own), *words, "-o", str(tmp_path / "words"))
    assert done.returncode == 0, done.stderr
    assert "".join(Record.load(tmp_path / "words").tokens["texts"]) == "one two one two"


def changed(folder: Path, name: str, change) -> None:
    """One file of the folder, its bytes changed."""
    (folder / name).write_bytes(change((folder / name).read_bytes()))


@pytest.mark.parametrize(
    ("arguments", "harm", "said"),
    [
        ((), None, "--text: got nothing, want token ids such as '3 17 5', or a --tokenizer"),
        (("--text", "3 four"), None, "--text: got 'four', want token ids such as '3 17 5', or a --tokenizer"),
        (("--text", "3 -4"), None, "--text: got '-4', want token ids"),
        (("--text", "3 2048"), None, "ids: got 3 to 2048, want 0 to 2047"),
        (("--text", "a", "--tokenizer", "nowhere"), None, "--tokenizer: got 'nowhere', want a folder with"),
        (("--text", "3"), ("config.json", lambda x: x.replace(b'"eps"', b'"epsilon"')), "json is of another model"),
        (("--text", "3"), ("config.json", lambda x: x[:20]), "--model: got 'lm', want tiny, smollm2, minilm, a folder"),
        (("--text", "3"), ("config.json", lambda x: x.replace(b"mamba2", b"mamba7")), "name: got 'mamba7'"),
        (("--text", "3"), ("config.json", lambda x: x.replace(b'"width": 16', b'"width": 18')), "weights differ in"),
        (("--text", "3"), ("model.safetensors", lambda x: x[:99]), "lm, whose model.safetensors is broken"),
    ],
)  # fmt: skip
def test_bad_input_to_a_model_of_ours_is_one_clear_line(arguments, harm, said, own, tmp_path, monkeypatch):
    shutil.copytree(own, tmp_path / "lm")
    if harm is not None:
        changed(tmp_path / "lm", *harm)
    monkeypatch.chdir(tmp_path)
    done = regard("look", "--model", "lm", *arguments, "-o", "seen")
    lines = done.stderr.strip().splitlines()
    underlined = 2 if "mamba7" in said else 0  # a text of layers is shown, its faulty part underlined
    assert (done.returncode, len(lines)) == (2, 1 + underlined)
    assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_an_encoder_decoder_is_looked_at_with_two_texts(tmp_path, monkeypatch):
    """It comes with its head, so that it can write; a text for its decoder and tokens of its own make one text."""
    _, words = small.load("tiny")
    sizes = {"d_model": 24, "d_kv": 4, "d_ff": 31, "num_layers": 2, "num_heads": 3, "vocab_size": len(words)}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))
    model.save_pretrained(tmp_path / "t5")
    words.save_pretrained(tmp_path / "t5")
    monkeypatch.chdir(tmp_path)

    def looked(*arguments: str) -> str:
        done = regard("look", "--model", "t5", "--text", "def f(x):", *arguments)
        return done.stdout + done.stderr

    assert "target: got nothing, want what the decoder wrote" in looked("-o", "nothing")
    assert not Path("nothing").exists()
    looked("--target", "return x", "--generate", "2", "-o", "seen")
    seen = Record.load("seen")
    assert "".join(seen.tokens["source"]["texts"]) == "def f(x):"
    assert "".join(seen.tokens["texts"][: seen.header["prompt_tokens"]]).endswith("return x")
    assert [layer["reads"][1] for layer in seen.layers].count("source") == 4


def test_the_routes_and_what_a_policy_keeps_go_into_the_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def looked(*arguments: str) -> str:
        done = regard("look", "--text", "def f(x):\n    return x", *arguments)
        return done.stdout + done.stderr

    looked("--routes-to", "-1", "--policy", "streaming", "--budget", "7", "-o", "seen")
    seen = Record.load("seen")
    assert set(seen.header["analyses"]) == {"routes", "kept"}
    assert {edge["to"] for edge in seen.header["analyses"]["routes"] if edge["layer"] == 3} == {seen.n - 1}
    assert seen.arrays["2/kept"].sum(1).tolist() == [7] * 8
    assert "to: got [99], want some of the" in looked("--routes-to", "99", "-o", "none")
    assert "budget: got 'some', want" in looked("--policy", "streaming", "--budget", "some", "-o", "none")
    assert not Path("none").exists()
