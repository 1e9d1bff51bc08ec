"""The corpus and the tokenizer, on a library of a few files."""

import pytest
import torch

from regard.train.tiny.corpus import is_held_out, read_corpus
from regard.train.tiny.make import Text, token_stream
from regard.train.tiny.tokenizer import BEGIN, train_tokenizer


@pytest.fixture
def library(tmp_path):
    for i in range(31):
        (tmp_path / f"m{i}.py").write_text(f"value = {i}\n\n\ndef function_{i}():\n    return value + {i}\n")
    for left_out in ("test", "site-packages"):
        (tmp_path / left_out).mkdir()
        (tmp_path / left_out / "x.py").write_text("secret = 1\n")
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data/topics.py").write_text("# made\ntopics = {'a': 'The \"a\"\\n', 'b': 'The b'}\n")
    return tmp_path


def test_every_file_is_on_one_side_and_tests_on_none(library):
    corpus = read_corpus(0, library, share=0.3)
    documents = [*corpus.train, *corpus.held_out]
    assert len(documents) == len(set(documents)) == 33
    assert len(corpus.held_out) >= 3
    assert not any("secret" in document for document in documents)
    assert {'The "a"', "The b"} < set(documents)
    assert "32 files" in corpus.fingerprint


def test_the_seed_chooses_the_files_and_content_does_not(library):
    first = read_corpus(0, library).fingerprint
    (library / "m3.py").write_text("changed = True\n")
    assert read_corpus(0, library).fingerprint != first
    sides = [[is_held_out(f"m{i}.py", seed) for i in range(997)] for seed in (0, 0, 1)]
    assert sides[0] == sides[1] != sides[2]
    assert 70 < sum(sides[0]) < 130


def test_no_source_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"root: got .*, with no Python source, want the folder of the standard"
    ):
        read_corpus(0, tmp_path)


def test_any_text_comes_back_from_the_tokenizer(library):
    tokenizer = train_tokenizer(read_corpus(0, library).train, 307)
    text = "def f():\n\treturn 'naïve 漢字 😀'\r\n   1234 \x00"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == [0, *ids]
    assert tokenizer.decode([0]) == BEGIN
    assert len(tokenizer.encode("137", add_special_tokens=False)) == 3
    assert len(tokenizer) <= 307


def test_every_document_begins_with_the_beginning_and_so_does_every_window(library):
    tokenizer = train_tokenizer(read_corpus(0, library).train, 307)
    stream = token_stream(("ab", "c"), tokenizer)
    assert tokenizer.decode(stream) == f"{BEGIN}ab{BEGIN}c"
    example = Text(torch.arange(5, 100), bos=0).sample(torch.Generator().manual_seed(1), 13)
    assert example.ids[0] == 0
    assert example.ids[1:].diff().eq(1).all()
    assert example.answers.tolist() == [False] + [True] * 12


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="size: got 100 entries, want at least 257: all bytes and"):
        train_tokenizer(["a"], 100)
