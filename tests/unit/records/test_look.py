"""What `regard look` says of a model is true of it."""

import sysconfig
from pathlib import Path
from statistics import median

import pytest

import regard
from regard.hosts import small
from regard.records.record import record
from regard.tasks import Copy, accuracy
from regard.train.tiny.heads import without_head

LENGTH = 2000
COPY = Copy(range(1, 2048), block=None, bos=0)


def test_the_induction_head_that_look_names_is_one():
    """Silencing the head that a look at 2,000 tokens names first costs more copying than another does (median)."""
    model, tokenizer = small.load("tiny")
    source = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()
    ids = tokenizer.encode(source)[:LENGTH]
    seen = record(model, tokenizer, ids, keep=False)
    (layer, head, _), *rest = seen.header["summary"]["induction"]
    others = [(at, of) for at, of, other in rest if other < 0.1][::3]

    def copied() -> float:
        return accuracy(model, COPY, (128,), samples=32, batch_size=16, seed=11)[128]

    def without(at: int, of: int) -> float:
        with without_head(model, at, of):
            return copied()

    left = without(layer, head)
    left_without_others = median(without(at, of) for at, of in others)
    assert left < left_without_others


def test_a_notebook_shows_the_page(tmp_path):
    """A name brings its tokenizer, a model that of its folder, ids need none; the model is called by its title."""
    model, tokenizer = small.load("tiny")
    given = regard.look(model, "def add(a, b):", layers=[0])
    assert given.header["model"]["name"] == "regard-tiny"
    assert given.tokens["ids"] == tokenizer("def add(a, b):").input_ids
    assert "<iframe srcdoc=" in given._repr_html_()
    named = regard.look("tiny", [3, 17, 5], layers=[0])
    assert (named.n, named.header["model"]["name"]) == (3, "regard-tiny")
    model.config.name_or_path = ""
    with pytest.raises(ValueError, match="tokenizer: got None, for a LlamaForCausalLM of no known place"):
        regard.look(model, "text")
    assert regard.look(model, [3, 17], layers=[0]).header["model"]["name"] == "LlamaForCausalLM"


def test_models_are_called_by_their_titles(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "regard" / "smollm2-5d-18").mkdir(parents=True)
    assert small.title(str(tmp_path / "mine")) == "mine"
    assert small.title(str(tmp_path / "regard" / "smollm2-5d-18")) == "SmolLM2-135M-Instruct"
    assert small.title(str(small.path("tiny"))) == "regard-tiny"
    assert (small.title("org/model"), small.title("")) == ("org/model", "")
