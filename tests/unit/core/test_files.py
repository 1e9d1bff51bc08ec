"""Files are whole or not there, and an error says where and why."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from regard.core.files import check_file, write_text, write_whole


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "failed writing file"),
        (KeyboardInterrupt(), ""),
        (ZeroDivisionError("mine"), "mine"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error, said):
    place = tmp_path / "table.json"
    place.write_text("old")

    def fail(draft):
        draft.write_text("half")
        raise error

    with pytest.raises(OSError if "f" in said else type(error), match=said or None) as told:
        write_whole(place, fail)
    assert ("file: got " + str(place) in str(told.value)) == ("f" in said)
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    assert place.read_text() == "old"


def test_what_no_folder_can_hold_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file: got .*file/x.json: something else stands there, want"):
        write_text(tmp_path / "file" / "x.json", "{}")


def test_folders_are_made_and_links_lead_to_what_is_written(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "é")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b.txt")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "new"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join()
    assert read == ["through"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_system_error_without_a_file_is_said_in_words():
    script = "import errno, regard.cli as cli\ndef app(): raise OSError(errno.ENOSPC, 'No space left on device')\n"
    script += "cli.app = app; cli.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "regard: the disk is full\n")


def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    check_file(tmp_path / "new" / "folder" / "table.json", made=True)
    (tmp_path / "file").write_text("")
    check_file(tmp_path / "file")
    for path in (tmp_path, tmp_path / "file" / "table.json", tmp_path / "new" / "table.json"):
        with pytest.raises(OSError, match=r"^--output: got .*, want a file in a folder that is there"):
            check_file(path, "--output")
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(OSError, match=r"^file: got .*no permission to write, want one that can be written"):
        check_file(tmp_path / "table.json")
