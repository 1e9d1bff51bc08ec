"""Digests of the code: what decides a figure changes them, what does not leaves them alone."""

from __future__ import annotations

import gc

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


BRANCH = """
from regard.beside import other
SIZE, MORE = 3, 4
def used(x, deep=False):
    return far(x) if deep else Square(x).area()
@other
def far(x):
    return MORE * x
class Shape:
    def area(self):
        return 1
    def width(self):
        return SIZE
class Square(Shape):
    def __init__(self, x):
        self.x = x
    def area(self):
        return self.width() * self.x
    def width(self):
        return super().width()
    def __repr__(self):
        return str(MORE)
"""
RAN = {
    "mine:*",
    "beside:*",
    "mine:used",
    "mine:Square.__init__",
    "mine:Square.area",
    "mine:Square.width",
    "mine:Shape.width",
}


@pytest.fixture
def branched(package):
    """The digests of a run in which a branch was not taken, and what writes the file anew."""
    package(BRANCH)
    return package, sources.used("mine", "used", ran=RAN.__contains__)


def test_what_never_ran_is_named(branched):
    _, before = branched
    assert before["idle"] == "mine:Shape.area,Square.__repr__,far"
    assert before.keys() == {"of", "idle", "mine"}  # what decorates an idle function is not followed
    assert sources.changed(before) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return MORE * x", "return MORE + used(x)"),  # of a function that never ran
        ("def far(x):", "def far(x, y=2):"),
        ("SIZE, MORE = 3, 4", "SIZE, MORE = 3, 4\nLEAST = 5"),
        ("return 1", "return 2"),  # of a method that is overridden
        ("return str(MORE)", "return str(SIZE)"),
        ("class Square(Shape):", "class Square(Shape):\n    def corners(self):\n        return 4"),
        ("def used", "def unused():\n    return 2\ndef used"),
    ],
)
def test_what_never_ran_changes_no_digest(branched, old, new):
    package, before = branched
    package(BRANCH.replace(old, new))
    assert sources.changed(before) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return super().width()", "return 7"),
        ("return SIZE", "return SIZE + 1"),
        ("deep=False", "deep=True"),
        ("SIZE, MORE = 3, 4", "SIZE, MORE = 4, 4"),
        ("@other\n", ""),  # decorators run when a file is imported
        ("def far(x)", "def farther(x)"),  # gone: what looks it up would fail
        ("    def __repr__", "    def __getattribute__(self, name):\n        return 2\n    def __repr__"),
        ("class Square(Shape):", "class Square(Shape):\n    def __mul__(self, x):\n        return 2"),
        ("    def __init__", "    def super(self):\n        return 2\n    def __init__"),  # a name that is used
    ],
)
def test_what_ran_or_might_run_now_is_a_change(branched, old, new):
    package, before = branched
    package(BRANCH.replace(old, new))
    assert sources.changed(before) == ["mine"]


def test_a_new_override_of_a_method_that_ran_is_a_change(package):
    package(BRANCH.replace("    def width(self):\n        return super().width()\n", ""))
    before = sources.used("mine", "used", ran=(RAN - {"mine:Square.width"}).__contains__)
    package(BRANCH)
    assert sources.changed(before) == ["mine"]


def test_a_constant_of_what_never_ran_is_left_out(package):
    package(BRANCH.replace("SIZE, MORE = 3, 4", "SIZE = 3\nMORE = 4"))
    before = sources.used("mine", "used", ran=RAN.__contains__)
    package(BRANCH.replace("SIZE, MORE = 3, 4", "SIZE = 3\nMORE = 5"))
    assert sources.changed(before) == []


def test_a_file_that_was_never_imported_is_idle_as_a_whole(branched):
    package, _ = branched
    known = {name: sources.used("mine", "used", ["named"], {*RAN, *more}.__contains__)
             for name, more in {"away": (), "there": ("entry:*",)}.items()}  # fmt: skip
    assert known["away"]["idle"].startswith("entry:* ")
    package("X = 2", "entry")
    assert sources.changed(known["away"]) == []
    assert sources.changed(known["there"]) == ["entry"]


def test_what_is_not_known_to_be_idle_counts(branched):
    package, before = branched
    whole = sources.used("mine", "used")
    package(BRANCH.replace("return MORE * x", "return 3"))
    assert sources.changed(before) == []
    assert sources.changed(whole) == ["mine"]
    assert sources.changed({name: x for name, x in before.items() if name != "idle"}) != []


def test_a_function_that_ran_and_that_no_name_tells_of_counts(package):
    text = BRANCH + "def hidden():\n    return 1\n"
    package(text)
    ran = {*RAN, "mine:hidden", "beside:Shape.doubled"}
    before = sources.used("mine", "used", ran=ran.__contains__, also=sorted(ran - RAN))
    assert before["also"] == "beside:Shape.doubled mine:hidden"
    assert sources.changed(before) == []
    package(text.replace("def hidden():\n    return 1", "def hidden():\n    return 2"))
    assert sources.changed(before) == ["mine"]
    package(text)
    package(BESIDE.replace("2 * self.area()", "self.area()"), "beside")
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


def test_a_function_called_run_counts_as_any_other(package):
    def file(what):
        return FILE.replace("other()", "run(x)") + f"def run(x):\n    return {what} * x\nprint(SIZE)\n"

    package(file(1))
    before = sources.used("mine", "used")
    package(file(2))
    assert sources.changed(before) == ["mine"]
    package(file(1).replace("print(SIZE)", "print(Square)"))
    assert sources.changed(before) == ["mine"]


def test_while_digests_are_taken_no_garbage_is_looked_for_and_then_as_before():
    with sources.uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with sources.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
