"""The atlas is read from the source: what it says is what importing everything registers."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import regard
from regard.core import atlas
from regard.core.index import declarations, outline
from regard.core.search import answer


def test_the_index_is_what_importing_everything_registers():
    for module in pkgutil.walk_packages(regard.__path__, "regard."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    registered = {name: entry for name, entry in atlas.ENTRIES.items() if entry.where.startswith("regard.")}
    assert registered == dict(atlas.indexed())  # compared field by field, but for the thing and its traits
    for entry in regard.entries():
        assert atlas.indexed()[entry.name].thing is registered[entry.name].thing


def test_an_outline_of_a_file_declares_what_the_file_does():
    files = [file for file in Path(regard.__path__[0]).rglob("*.py") if "@published(" in file.read_text()]
    texts = [file.read_text() for file in files]
    assert sum(len(outline(text).strip()) for text in texts) < sum(map(len, texts)) / 2
    for text in texts:
        assert list(declarations(ast.parse(outline(text)), "m")) == list(declarations(ast.parse(text), "m"))


def test_traits_below_a_method_are_in_the_outline():
    text = "@wrap\ndef f():\n    pass\n\nclass A:\n    def f(self): ...\n\n    traits = Traits(rows='one')\n\nB = 3\n"
    assert outline(text) == "\n\n\n\n" + text[text.index("class") :]


def test_the_package_alone_imports_nothing_and_a_room_reads_no_atlas():
    script = (
        "import sys, regard; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
        "import regard.edits, regard.core.atlas as a; assert a.ENTRIES and not a.indexed.cache_info().currsize\n"
        "regard.networks.LM"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


COMMANDS = [["--help"], ["atlas"], ["atlas", "linear*"], ["atlas", "--json", "gla"]]


def test_what_only_reads_the_atlas_imports_no_pytorch():
    """Each of the commands, one after the other in one process; each prints more than one line."""
    script = "\n".join(
        [
            "import contextlib, io, sys; from regard.cli import main",
            f"for command in {COMMANDS}:",
            "    sys.argv, said = ['regard', *command], io.StringIO()",
            "    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit): main()",
            "    assert 'torch' not in sys.modules, command",
            "    assert len(said.getvalue().splitlines()) > 1, command",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


SOURCE = """
COMMAND = "pytest x"

@published("kept", family="f", title="t " "u", year=2024,
           missing=f"{COMMAND} y", claim=(Claim("c", cells="a.b", holds="a.c"), Claim("d", cells="a.d", holds="a.e")))
class Kept:
    '''A thing.'''

    traits = Traits(time="linear", packed=False, size=SIZE)
"""


def test_a_declaration_is_read_with_the_constants_of_its_file():
    (found,) = declarations(ast.parse(SOURCE), "package.module")
    assert found.where == "package.module.Kept"
    assert found.traits == {"time": "linear", "packed": False}
    entry = atlas.entry_of(found)
    assert [(claim.text, claim.cells, claim.holds) for claim in entry.claims] == [
        ("c", "a.b", "a.c"),
        ("d", "a.d", "a.e"),
    ]
    assert (entry.title, entry.missing, entry.kind, entry.summary) == (
        "t u",
        "pytest x y",
        "mechanism",
        "A thing.",
    )


def test_what_is_no_literal_is_refused_by_its_line():
    with pytest.raises(ValueError, match=r"published: got the name SOMETHING in line 4 of m, want literals"):
        list(declarations(ast.parse(SOURCE.replace("2024", "SOMETHING")), "m"))


def test_entries_are_chosen_by_name_kind_and_family():
    assert {entry.name for entry in regard.entries("rwkv*")} == {"rwkv6", "rwkv7"}
    assert all(entry.kind == "projection" for entry in regard.entries(kind="projection"))
    assert {entry.name for entry in regard.entries("*", kind="mechanism", family="linear")} >= {"gla", "retnet"}
    with pytest.raises(LookupError, match=r"kind: got 'projektion'.*did you mean 'projection'"):
        regard.entries(kind="projektion")


@pytest.mark.parametrize(
    ("need", "answers"),
    [
        ("cheap long context on a CPU", {"window", "sinklora", "fastmax", "deltanet"}),
        ("constant memory while decoding", {"titans", "lightning", "window", "gla", "retnet", "linear", "mamba2"}),
        ("forget old tokens by data", {"gated_deltanet", "gla", "forgetting", "mamba2"}),
        ("cure for hallucination", {"lookback_decoding", "monitoring_decoding", "hicd"}),
        ("see which patch matters", {"attention_flow", "patchconvnet", "implicit_attention"}),
        ("smaller cache while generating", {"knorm", "adakv", "snapkv", "pyramidkv", "h2o"}),
        ("find the heads that copy", {"induction_heads"}),
        ("which heads retrieve", {"retrieval_heads"}),
        ("make the model follow my instruction", {"focus_directions", "pasta"}),
        ("object detection at several scales", {"bifpn", "fpn", "revfp", "sepc", "csn"}),
        ("explain a prediction", {"implicit_attention", "attention_flow"}),
        ("attention over a graph", {"gat", "gatv2", "graph_transformer"}),
        ("prune heads", {"head_pruning"}),
        ("streaming endless text", {"streaming"}),
        ("find the circuit", {"circuit_reuse", "path_patching"}),
        ("run attention on several GPUs", {"ring_self_attention", "lasp2"}),
        ("memory that learns at test time", {"titans", "moneta", "yaad"}),
        ("lost in the middle", {"found_in_the_middle"}),
        ("channel attention for a CNN", {"eca", "se", "cbam"}),
        ("position encoding that extrapolates", {"alibi", "tapa"}),
        ("fewer parameters in projections", {"group_latent", "multi_query", "latent"}),
        ("image captions", {"show_attend_tell", "bottom_up_top_down"}),
    ],
)
def test_a_need_is_answered_by_meaning(need, answers):
    assert answers & {entry.name for entry in regard.search(need)[:3]}


def test_what_is_cheap_by_its_traits_comes_before_what_is_called_so():
    """A name that begins with a common word is no rare answer to it, and a promise no more than what laws hold to."""
    first = [entry.name for entry in regard.search("cheap long context on a CPU")]
    assert first.index("deltanet") < first.index("sinklora")
    assert first.index("window") < first.index("alibi")
    rarity = {"long": 2.0, "longboat": 5.0}
    assert answer([["longboat"], [], [], [], [], []], "long", rarity, loose=True) == pytest.approx(0.7 * 4 * 2)
    assert answer([["long"], [], [], [], [], []], "longboat", rarity, loose=True) == pytest.approx(0.7 * 4 * 2)


def test_what_is_no_mechanism_is_built_by_what_it_is():
    assert type(regard.build("window", size=3)).__name__ == "SlidingWindow"
    with pytest.raises(TypeError, match=r"'implied_rank', an analysis, want a mechanism; regard.find\('implied_rank'"):
        regard.build("implied_rank")
    with pytest.raises(TypeError, match="'twins', a network"):
        regard.networks.LM(regard.networks.Config(vocabulary=16, width=8, heads=2, layers="twins"))
    assert callable(regard.find("implied_rank").thing)


def test_a_kind_with_a_base_has_a_verb():
    plain = regard.projection("nexus", sizes=regard.Sizes(13, 2, 2, 5, 7), order=1)
    assert type(plain).__name__ == "Nexus"
    assert str(regard.pattern("chunked", size=3)) == "Blocks(size=3, shift=0)"
    assert type(regard.network("twins", classes=3)).__name__ == "Stages"
    with pytest.raises(TypeError, match=r"'twins', a network, want a projection; regard.network\('twins', …\) makes"):
        regard.projection("twins")
    with pytest.raises(TypeError, match=r"sise: got an unknown argument, want one of chunked's: size .did you mean"):
        regard.pattern("chunked", sise=3)
    assert {"projection", "pattern", "network"} <= set(dir(regard))
    assert not hasattr(regard, "study")
