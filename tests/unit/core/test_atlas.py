"""The atlas finds by meaning of words and refuses what is not an entry."""

import pytest

from regard.core import atlas
from regard.core.atlas import Claim, published

CLAIM = Claim("reproduces", cells="shelf.cells", holds="shelf.holds")


@pytest.fixture
def shelf(monkeypatch):
    """An atlas with nothing in it."""
    monkeypatch.setattr(atlas, "ENTRIES", {})
    monkeypatch.setattr(atlas, "indexed", dict)

    def add(name, title, summary, **more):
        def thing():
            pass

        thing.__doc__ = summary + "\n\nMore."
        return published(name, family="linear", title=title, year=2024, claim=CLAIM, **more)(thing)

    add("lightning", "Lightning Attention-2", "Linear attention whose past decays by a fixed rate per head.", row=53)
    add("window", "Longformer", "Attention to the nearest tokens.", aliases=("sliding_window",))
    return add


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("decaying", "lightning"),
        ("near tokens", "window"),
        ("lightning", "lightning"),
        ("sliding", "window"),
        ("longform", "window"),
    ],
)
def test_search_finds_by_the_words_of_name_title_and_summary(shelf, query, first):
    assert atlas.search(query)[0].name == first


def test_search_finds_nothing_where_there_is_nothing(shelf):
    assert atlas.search("zebra") == []


def test_find_takes_aliases_and_names_the_nearest(shelf):
    assert atlas.find("sliding_window").name == "window"
    with pytest.raises(LookupError, match="name: got 'lightening decay', want one of the atlas, such as lightning"):
        atlas.find("lightening decay")


def test_an_entry_is_plain_data_for_json(shelf):
    entry = atlas.find("lightning").as_dict()
    assert entry["row"] == 53
    unmeasured = {"status": "not measured", "figure": "", "command": "regard claims lightning", "date": "", "stale": ""}
    assert entry["claim"] == {"text": "reproduces"} | unmeasured
    assert (entry["system"], entry["missing"], entry["fidelity"]) == ("complete", "", None)
    assert entry["summary"] == "Linear attention whose past decays by a fixed rate per head."


def test_ill_formed_entries_are_refused(shelf):
    with pytest.raises(ValueError, match="name: got 'window', want a name not taken"):
        shelf("window", "t", "s")
    with pytest.raises(ValueError, match="name: got 'Two Words', want lower-case words joined by '_'"):
        shelf("Two Words", "t", "s")
    with pytest.raises(ValueError, match="no docstring"):
        published("bare", family="f", title="t", year=2024, claim=CLAIM)(lambda: None)
    for claim in (Claim("said", "", ""), Claim("said", cells="a.b", holds="")):
        with pytest.raises(ValueError, match="claim: got 'said', want cells and holds"):
            published("vague", family="f", title="t", year=2024, claim=claim)(shelf)
    with pytest.raises(ValueError, match="fidelity: got 'sure', want one of authors' code"):
        published("sure", family="f", title="t", year=2024, claim=CLAIM, fidelity="sure")(shelf)  # type: ignore[arg-type]


def test_a_system_that_lacks_a_part_says_which(shelf):
    shelf("half", "t", "s", missing="the decoder", fidelity="hand values")
    entry = atlas.find("half")
    assert (entry.system, entry.as_dict()["missing"], entry.fidelity) == ("part", "the decoder", "hand values")
