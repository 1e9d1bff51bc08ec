"""Work in a process of its own: what it gives and shows arrives, what it keeps does not."""

from __future__ import annotations

import os
import sys

import pytest

from regard.experiments.apart import apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")
KEPT: list[int] = []


def counting(show):
    for number in range(3):
        KEPT.append(number)
        show(f"at {number}")
        yield number, os.getpid()


def test_what_is_given_and_shown_arrives_in_order_from_another_process():
    shown = []
    found = list(apart(counting, shown.append))
    assert [number for number, _ in found] == [0, 1, 2]
    assert {process for _, process in found}.isdisjoint({os.getpid()})
    assert shown == ["at 0", "at 1", "at 2"]
    assert KEPT == []


def test_a_process_that_dies_is_an_error_after_what_it_gave():
    def work(show):
        yield 1
        os._exit(7)

    found = apart(work, lambda text: None)
    assert next(found) == 1
    with pytest.raises(RuntimeError, match="ended with 7"):
        next(found)


def test_a_process_of_which_no_more_is_wanted_is_ended():
    def work(show):
        while True:
            yield os.getpid()

    found = apart(work, lambda text: None)
    process = next(found)
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
