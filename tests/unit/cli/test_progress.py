"""Progress of long commands where there is no terminal."""

from __future__ import annotations

import pytest

from regard.cli import progress
from regard.cli.progress import Steps, duration, plain_line


def test_a_line_counts_the_steps_and_foresees_the_rest():
    assert plain_line("looking", 0, 0, 3.0) == "looking"
    assert plain_line("looking", 0, 7, 3.0) == "looking (0 of 7)"
    assert plain_line("looking", 2, 7, 6.0) == "looking (2 of 7, about 15 s left)"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (180, "3 min"), (4790, "1 h 20 min")])
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_a_log_gets_a_line_now_and_then_and_short_work_none(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Steps() as steps:
        for done in range(7):
            steps("measuring", done, 7)
            now[0] += 2.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["measuring (3 of 7, about 8 s left)", "measuring (6 of 7, about 2 s left)"]
    with Steps() as steps:
        steps("measuring", 1, 2)
    assert capsys.readouterr().err == ""
