"""Digests of the code: what decides a figure changes them, what does not leaves them alone."""

from __future__ import annotations

import pytest

from regard.core import code, sources

FILE = """
'''A file.'''
from regard.core.layout import Layout
from regard.beside import Shape, other

SIZE = 3
def used(x: int):
    '''Says.'''
    return SIZE + other() + Square(x).area()  # adds
def unused():
    return Layout
class Square(Shape):
    sides = 4
    def __init__(self, x):
        self.x = x
    def area(self):
        return self.x**2
    def around(self):
        return 4 * self.x
"""
BESIDE = """
def other():
    return 1
class Shape:
    def doubled(self):
        return 2 * self.area()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few files; what is given writes one of them anew."""

    def forget():
        code.forget()
        sources.digests.cache_clear()

    def write(text=FILE, name="mine"):
        (tmp_path / f"{name}.py").write_text(text)
        forget()

    monkeypatch.setattr(code, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "entries", lambda: {"named": ("entry", "X")})
    write(BESIDE, "beside")
    write("X = 1\nY = 2", "entry")
    write()
    yield write
    monkeypatch.undo()
    forget()


def test_a_cell_uses_what_it_reaches_and_the_entries_that_its_texts_name(package):
    assert set(sources.used("mine", "used")) == {"of", "mine", "beside"}
    assert set(sources.used("mine", "used", ["named*2"])) == {"of", "mine", "beside", "entry"}
    assert set(sources.used("mine", "unused")) == {"of", "mine"}  # there is no layout in this package


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'''Says.'''", "'''Tells.'''"),
        ("  # adds", ""),
        ("return SIZE + other()", "return (SIZE\n        + other())"),
        ("return Layout", "return 2"),
        ("def used", "@measured(x=(1,))\ndef used"),
        ("x: int", "x: float"),
        ("return 4 * self.x", "return 3 * self.x"),  # a method that nobody calls
        ("SIZE = 3", "from regard.beside import nothing\nSIZE = 3"),
    ],
)
def test_what_decides_nothing_changes_no_digest(package, old, new):
    before = sources.used("mine", "used")
    package(FILE.replace(old, new))
    assert sources.used("mine", "used") == before
    assert sources.changed(before) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SIZE = 3", "SIZE = 4"),
        ("+ other()", "- other()"),
        ("self.x**2", "self.x**3"),
        ("sides = 4", "sides = 5"),
        ("self.x = x", "self.x = 2 * x"),
        (".area()", ".around()"),
        ("SIZE = 3", "SIZE = 3\nprint(SIZE)"),
    ],
)
def test_what_decides_a_figure_is_named(package, old, new):
    before = sources.used("mine", "used")
    package(FILE.replace(old, new))
    assert sources.changed(before) == ["mine"]


def test_a_method_is_reached_where_anything_names_it(package):
    package(FILE.replace("other()", "getattr(Square(1), 'around')()"))
    before = sources.used("mine", "used")
    package(FILE.replace("other()", "getattr(Square(1), 'around')()").replace("4 * self.x", "5 * self.x"))
    assert sources.changed(before) == ["mine"]


def test_all_methods_count_where_a_class_has_a_base_from_elsewhere(package):
    file = FILE.replace(
        "from regard.beside import Shape, other", "from regard.beside import other\nfrom box import Shape"
    )
    package(file)
    before = sources.used("mine", "used")
    package(file.replace("4 * self.x", "5 * self.x"))
    assert sources.changed(before) == ["mine"]


def test_a_new_override_of_a_method_that_is_called_is_a_change(package):
    package(FILE.replace(".area()", ".doubled()"))
    before = sources.used("mine", "used")
    package(FILE.replace(".area()", ".doubled()") + "    def doubled(self):\n        return 7\n")
    assert sources.changed(before) == ["mine"]


def test_a_change_of_an_imported_file_is_named_and_a_file_that_is_gone(package, tmp_path):
    before = sources.used("mine", "used")
    package(BESIDE.replace("return 1", "return 2"), "beside")
    assert sources.changed(before) == ["beside"]
    (tmp_path / "beside.py").unlink()
    package()
    assert sources.changed(before) == ["beside"]


def test_digests_that_do_not_say_whose_they_are_are_old():
    assert sources.changed({"core.layout": "12345678"}) == ["the code"]


def test_what_the_package_gives_late_is_found():
    used = sources.used("claims.nexus", "first_order")
    assert {"core.build", "projections.nexus", "mechanisms.scored.softmax"} <= used.keys()
    assert not {"mechanisms.linear.gla", "core.atlas", "claims.figures"} & used.keys()


def test_a_method_for_callers_from_before_decides_nothing(package):
    before = sources.used("mine", "used")
    old = "class Square(Shape):\n    @former('area')\n    def __len__(self):\n        return 4\n"
    package(FILE.replace("class Square(Shape):\n", old))
    assert sources.used("mine", "used") == before
    package(FILE.replace("class Square(Shape):\n", old.replace("    @former('area')\n", "")))
    assert sources.used("mine", "used") != before
