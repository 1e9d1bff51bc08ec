"""The harness of `make families` on a few families: what it calls right is right, and what is broken it finds."""

import json

import pytest
import torch

from families.__main__ import apart, attempt_all, read, tried
from families.catalogue import families
from families.checks import Row
from families.table import page
from regard.hosts import attention_interface
from regard.hosts.attachment import Attachment
from regard.hosts.watch import Watched

EVERY = families()


@pytest.mark.parametrize("family", ["bert", "vit", "dinov2", "electra", "clip"])
def test_families_of_every_kind_are_right(family):
    row = tried(family, EVERY[family])
    assert (row.status, row.reason) == ("right", "")
    assert row.layers >= 2


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("wrong", lambda self, module, q, *rest, **named: whole(self, module, q * 1.1, *rest, **named)),
        ("crash", lambda self, module: None),
    ],
)
def test_a_broken_watch_is_found(monkeypatch, kind, broken):
    monkeypatch.setattr(Attachment, "run", broken)
    assert tried("vit", EVERY["vit"]).status == kind


whole = Attachment.run


def test_a_model_that_is_not_put_back_is_found(monkeypatch):
    left, give_back = [], attention_interface.given_back
    monkeypatch.setattr(attention_interface, "given_back", lambda *what: left.append(what))
    row = tried("vit", EVERY["vit"])
    assert row.state == "wrong"
    for what in left:
        give_back(*what)


def test_layers_that_are_not_seen_are_found(monkeypatch):
    observe = Watched.observe
    monkeypatch.setattr(
        Watched, "observe", lambda self, module, *rest: observe(self, module, *rest) if self.layers == [] else None
    )
    assert tried("vit", EVERY["vit"]).status == "partial"


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    results, wanted, done = tmp_path / "rows.jsonl", {name: EVERY[name] for name in ("vit", "bert")}, []
    monkeypatch.setattr("families.__main__.apart", lambda name, _: done.append(name) or Row(name, watch="right"))
    results.write_text(json.dumps({"family": "bert", "watch": "right"}) + "\n")
    attempt_all(results, wanted, None)
    assert (done, sorted(read(results))) == (["vit"], ["bert", "vit"])
    attempt_all(results, wanted, "right")
    assert done == ["vit", "vit", "bert"]


def test_a_family_ends_with_its_process(monkeypatch):
    monkeypatch.setattr("families.__main__.tried", lambda *_: torch.empty(1 << 45))
    assert apart("vit", EVERY["vit"]).status == "crash"


def test_the_page_names_each_outcome():
    text = page([Row("one", "One", watch="right"), Row("two", "Two", watch="refused", reason="a | b"), Row("three")])
    assert all(part in text for part in ("| one | One |", "a / b", "1 refused, 2 right"))
