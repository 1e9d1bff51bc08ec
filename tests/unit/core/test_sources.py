"""Digests of the code: what decides a figure changes them, what does not leaves them alone."""

from __future__ import annotations

import pytest

from regard.core import sources

FILE = """
'''A file.'''
from regard.core.layout import Layout
from regard.beside import other

SIZE = 3
def used():
    '''Says.'''
    return SIZE + other()  # adds
def unused():
    return Layout
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files; what is given writes one of them anew."""

    def write(text=FILE, name="mine"):
        (tmp_path / f"{name}.py").write_text(text)
        for cached in (sources.path_of, sources.tree, sources.imports, sources.slice_of, sources.digest):
            cached.cache_clear()

    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "entries", lambda: {"named": "entry"})
    write("def other():\n    return 1", "beside")
    write("X = 1", "entry")
    write()
    yield write
    monkeypatch.undo()
    write()


def test_a_cell_uses_its_own_part_of_its_file_and_what_this_imports(package):
    assert set(sources.used("mine", "used")) == {"mine:used", "beside"}
    assert set(sources.used("mine", "used", ["named*2"])) == {"mine:used", "beside", "entry"}
    assert set(sources.used("mine", "unused")) == {"mine:unused"}  # there is no layout in this package


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'''Says.'''", "'''Tells.'''"),
        ("  # adds", ""),
        ("return SIZE + other()", "return (SIZE\n        + other())"),
        ("return Layout", "return 2"),
        ("def used", "@measured(x=(1,))\ndef used"),
    ],
)
def test_what_decides_nothing_changes_no_digest(package, old, new):
    before = sources.used("mine", "used")
    package(FILE.replace(old, new))
    assert sources.used("mine", "used") == before
    assert sources.changed(before) == []


@pytest.mark.parametrize(("old", "new"), [("SIZE = 3", "SIZE = 4"), ("+ other()", "- other()")])
def test_what_decides_a_figure_is_named(package, old, new):
    before = sources.used("mine", "used")
    package(FILE.replace(old, new))
    assert sources.changed(before) == ["mine:used"]


def test_a_change_of_an_imported_file_is_named_and_a_file_that_is_gone(package, tmp_path):
    before = sources.used("mine", "used")
    package("def other():\n    return 2", "beside")
    assert sources.changed(before) == ["beside"]
    (tmp_path / "beside.py").unlink()
    package()
    assert sources.changed(before) == ["beside"]


def test_what_the_package_gives_late_is_found():
    used = sources.used("claims.nexus", "first_order")
    assert {"core.build", "projections.nexus", "mechanisms.scored.softmax"} <= used.keys()
    assert not {"mechanisms.linear.gla", "core.atlas", "claims.figures"} & used.keys()
