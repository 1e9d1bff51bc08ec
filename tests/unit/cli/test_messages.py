"""What a person reads when a name is misspelled, a file is missing, or a disk is full."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys

import pytest
import transformers
from safetensors import SafetensorError

import regard
from command_line import regard as command
from regard import cli
from regard.experiments.store import Store
from regard.hosts import small
from regard.records import format as folders
from regard.records.format import Record, free_name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("swap-report", "windo(size=64)"), "did you mean 'window'?"),
        (("swap-report", "window(sise=64)"), "did you mean 'size'?"),
        (("compare", "sofmax", "--lengths", "64"), "did you mean 'softmax'?"),
        (("compare", "window(sizes=3)", "--lengths", "64"), "did you mean 'size'?"),
        (("compare", "softmax", "--task", "recal"), "did you mean 'recall'?"),
        (("draw", "Causal & (Windw(8) | Sinks(4))"), "did you mean 'Window'?"),
        (("swap-report", "Window(64) | Sink(4)"), "did you mean 'Sinks'?"),
        (("plan", "qwen3-8b", "--device", "h10"), "did you mean 'h100'?"),
        (("plan", "qwen3-8"), "did you mean 'qwen3-8b'?"),
        (("look", "--model", "tinny"), "did you mean 'tiny'?"),
        (("laws", "lightening"), "did you mean 'lightning'?"),
        (("plan", "qwen3-8b", "--context", "0"), "--context: got '0', want numbers of tokens from 1"),
        (("compare", "softmax", "--lengths", "0"), "--lengths: got '0'"),
        (("swap-report", "window(size=64)", "--file", "absent.txt"), "absent.txt: no such file or folder"),
        (("look", "--file", "absent.txt"), "absent.txt: no such file or folder"),
        (("look", "--file", "."), ".: a folder, not a file"),
    ],
)
def test_a_slip_is_one_line_with_the_way_out_and_its_place(arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if arguments[0] != "look":
        monkeypatch.setattr(small, "load", lambda *_: pytest.fail("a model was loaded first"))
    done = command(*arguments)
    error = done.stderr
    assert done.returncode == 2
    assert error.startswith("regard: ")
    assert said in error.splitlines()[0]
    assert not error.splitlines()[1:] or error.splitlines()[2].strip(" ^") == ""
    assert not list(tmp_path.iterdir())


def test_a_wrong_argument_is_underlined():
    error = command("compare", "softmax", "window(sise=3) with gates", "--lengths", "64").stderr
    assert error.splitlines()[1:] == ["  window(sise=3) with gates", "         ^^^^^^"]


def test_names_near_enough_are_offered_and_no_others():
    with pytest.raises(LookupError, match=r"\(did you mean 'gated_deltanet'\?\)$"):
        regard.build("gated_delta_net")
    with pytest.raises(LookupError, match=r"`regard atlas` lists all$"):
        regard.build("zzzz")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/somewhere/.seen.x7/new/arrays"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/somewhere/.seen.x7"), "the file system is read-only"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_a_record_that_cannot_be_written_says_why_and_leaves_nothing(error, reason, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Record, "write", fail)
    with pytest.raises(OSError, match=reason) as told:
        Record({}, {}, {}).save(tmp_path / "seen")
    assert str(tmp_path / "seen") in str(told.value)
    assert ".seen." not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_permission_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="no permission to write"):
        folders.check_folder(tmp_path / "seen")


def test_a_cell_that_cannot_be_kept_says_so(tmp_path, monkeypatch):
    from unit.compare.test_results import Slow

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "whatever")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OSError, match="the disk is full, want one that can be written"):
        Store(tmp_path / "kept").add(Slow(3), {"square": 9}, "command")


def test_an_earlier_look_stays_unless_it_is_to_be_replaced(tmp_path):
    target = tmp_path / "seen"

    def look(*more: str) -> str:
        done = command("look", "--text", "a b a b", "--no-keep", "-o", str(target), *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    look()
    first = (target / "record.json").read_bytes()
    assert "seen-2" in look()
    assert (target / "record.json").read_bytes() == first
    assert (tmp_path / "seen-2" / "page.html").is_file()
    assert free_name(target) == tmp_path / "seen-3"
    look("--replace")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seen", "seen-2"]


def test_a_model_that_cannot_be_read_is_one_line(tmp_path):
    model = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=3000, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    )
    model.save_pretrained(tmp_path / "rwkv")
    tokenizer = str(small.path("tiny"))
    done = command("look", "--model", str(tmp_path / "rwkv"), "--tokenizer", tokenizer, "--text", "a b")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("regard: model: got RwkvForCausalLM, which ran a whole forward pass without calling")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fail() -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        cli.main()


def test_no_name_is_made_up_for_a_folder_that_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(type(tmp_path), "with_name", lambda *_: pytest.fail("a name that nobody needs"))
    assert free_name(tmp_path / "seen") == tmp_path / "seen"


def test_the_package_lists_its_verbs_and_things_show_their_arguments():
    assert dir(regard) == sorted({*regard.__all__, "graph", "network", "objective", "pattern", "pool", "projection"})
    assert {"build", "watch", "swap", "check"} <= set(dir(regard))
    assert repr(regard.build("window", size=64, sinks=4)) == "SlidingWindow(size=64, sinks=4)"
    assert repr(regard.build("softmax")) == "Softmax()"


@pytest.mark.parametrize("module", ["regard", "regard.cli"])
def test_the_package_runs_as_the_script_does(module):
    """``python -m regard`` is ``regard``; importing the module runs nothing."""
    found = subprocess.run([sys.executable, "-m", module, "atlas", "sofmax"], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("regard: query: got 'sofmax'")
    assert importlib.import_module("regard.__main__")
