"""Files are whole or not there."""

import pytest

from regard.core.files import write_whole
from regard.train.checkpoint import load_checkpoint, save_checkpoint


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "file"
    place.write_text("old")

    def fail(draft):
        draft.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(place, fail)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert place.read_text() == "old"


def test_a_checkpoint_comes_back(tmp_path):
    assert load_checkpoint(tmp_path / "c.pt", "r") is None
    save_checkpoint(tmp_path / "c.pt", {"recipe": "r", "step": 7})
    assert load_checkpoint(tmp_path / "c.pt", "r") == {"recipe": "r", "step": 7}
