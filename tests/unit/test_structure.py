"""The structure of the package: no cycle of files, nothing imports a study, old names lead to the new ones."""

from __future__ import annotations

import sys
from importlib import import_module

import grimp
import pytest

import regard
from regard.renamed import MODULES


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("regard", exclude_type_checking_imports=True)


def test_no_cycle_of_files(graph):
    left = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other in a circle, or stand above one: {sorted(left)}"


def test_nothing_imports_a_study_but_what_measures_its_claim(graph):
    studies = {module for module in graph.modules if module.startswith("regard.studies")}
    users = {user for study in studies for user in graph.find_modules_that_directly_import(study)}
    assert all(user in studies or user.startswith("regard.claims.") for user in users)


@pytest.mark.parametrize("old", sorted(MODULES))
def test_a_former_name_gives_the_module_of_today_and_warns(old):
    sys.modules.pop(f"regard.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"regard.{MODULES[old]}"):
        found = import_module(f"regard.{old}")
    assert found is import_module(f"regard.{MODULES[old]}")


def test_probes_still_give_what_feeds_them():
    from regard.probes import observe, observe_model
    from regard.records import observe as present

    assert (observe, observe_model) == (present.observe, present.observe_model)
    assert not hasattr(regard.probes, "nothing_such")
