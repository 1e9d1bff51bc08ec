"""How many small planted faults the fast tests notice, room by room.

    make mutants    # goes on where it stopped; writes tools/mutants.tsv and docs/mutants.md
    python tools/mutants.py --rooms plan --count 40 --minutes 30

Cosmic Ray's operators change one place of one file; `trials` runs the tests of that place. Which places, a seeded hash
of each tells, so that an edit elsewhere draws no others; a result stays valid while its file is unchanged.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import gc
import hashlib
import runpy
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple, replace
from importlib import import_module
from pathlib import Path

from rooms import ROOMS, files_of
from trials import KILLED, LATE, NEVER, ROOT, SOURCE, SURVIVED, TOOL, Mutant, changed, digest_of, verdicts

RESULTS, PAGE, EQUIVALENT = ROOT / "tools/mutants.tsv", ROOT / "docs/mutants.md", ROOT / "tools/equivalent.tsv"
OPERATORS = [
    *(f"ReplaceBinaryOperator_{x}" for x in ("Add_Sub", "Sub_Add", "Mul_Div", "Mul_Add", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{x}" for x in ("Mod_FloorDiv", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceComparisonOperator_{x}" for x in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt")),
    *(f"ReplaceComparisonOperator_{x}" for x in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_{x}" for x in ("USub_UAdd", "Delete_Not", "Delete_Invert")),
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer",
    "ZeroIterationForLoop",
]  # fmt: skip
SINCE = "killed (since)"
"""By a test that was written after the fault had survived."""
HEAD = """# Planted faults

`make mutants` changes one place of the source at a time and runs those of that place's fast tests that run it
(`tools/rooms.py` maps rooms to tests). It wrote this page from `tools/mutants.tsv`. Not planted by rule, since no
behaviour depends on them: annotations, decorators (what the atlas says of a paper), messages of errors, assertions for
the type checker, and a system's examples, which are inputs, with the functions that make nothing but what these are
held against. A fault that no test noticed *at first* counts in the share for good, also when a test that was written
for it notices it *now* (`python tools/mutants.py --again`). A change that leaves every result as it was is no fault;
those that were judged so are named with the reason and not counted (`tools/equivalent.tsv`). Each seed draws a sample
of its own (`--seed`), which says how much goes unnoticed after the tests that the samples before it have brought.

"""


def ignored(tree: ast.Module) -> Iterator[ast.AST]:
    """The parts whose change is no fault."""
    yield from checks(tree)
    for node in ast.walk(tree):
        worded = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "wrong"
        if worded or isinstance(node, (ast.Raise, ast.Assert)):
            yield node
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from node.decorator_list
            if node.name == "examples":
                yield node
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            yield node.annotation
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns


def checks(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions without arguments that only examples name, or decorators, which may hold these: what an example is held
    against."""
    named: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            named += [*node.decorator_list, *([node] if node.name == "examples" else [])]
    inside = [part.id for each in named for part in ast.walk(each) if isinstance(part, ast.Name)]
    every = [part.id for part in ast.walk(tree) if isinstance(part, ast.Name)]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or ast.unparse(node.args):
            continue
        if 0 < inside.count(node.name) == every.count(node.name):
            yield node


def places(room: str, path: Path) -> Iterator[Mutant]:
    """Every place of a file that is worth a change, without the change."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    text = path.read_text()
    spans = [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in ignored(ast.parse(text))]
    nodes, lines, file = list(ast_nodes(get_ast(text))), text.splitlines(), str(path.relative_to(SOURCE))
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        found = [begin for node in nodes for begin, _ in operator.mutation_positions(node)]
        for occurrence, begin in enumerate(found):
            if not any(first <= begin < last for first, last in spans):
                yield Mutant(room, file, name, occurrence, digest_of(file), lines[begin[0] - 1].strip())


def sample(room: str, count: int, seed: int) -> list[Mutant]:
    """``count`` of the room's mutants."""

    def lot(m: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {m.file} {m.operator} {m.occurrence} {m.before}".encode()).digest()

    found = sorted((m for path in files_of(SOURCE / "regard", room) for m in places(room, path)), key=lot)
    drawn: list[Mutant] = []
    for mutant in found:
        if len(drawn) == count:
            break
        text = changed(mutant)
        if not compiles(text):
            continue
        pairs = zip((SOURCE / mutant.file).read_text().splitlines(), text.splitlines(), strict=False)
        after = next((new.strip() for old, new in pairs if old != new), None)
        if after is not None:
            drawn.append(replace(mutant, after=after, seed=seed))
    return drawn


def compiles(text: str) -> bool:
    """Whether it is Python still: ``**`` before keywords is no power."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def load() -> dict[Mutant, str]:
    """All results; one whose file has changed since counts still, until its place is planted again."""
    if not RESULTS.exists():
        return {}
    rows = [line.split("\t") for line in RESULTS.read_text().splitlines()[1:]]
    return {Mutant(a, b, c, int(d), *rest, int(seed)): outcome for outcome, a, b, c, d, *rest, seed in rows}


def note(results: dict[Mutant, str], mutant: Mutant, outcome: str) -> str:
    """Writes down what came of a fault, in the place of what came of it when its file was another; gives the outcome:
    one that survived at first is remembered as such."""
    words = (mutant.file, mutant.operator, mutant.before, mutant.after)
    earlier = [m for m in results if m.source != mutant.source and (m.file, m.operator, m.before, m.after) == words]
    known = [mutant] if mutant in results else sorted(earlier, key=lambda m: abs(m.occurrence - mutant.occurrence))
    first = next((m for m in results if m in known[:1]), mutant)
    unnoticed = results.pop(first, KILLED) not in (KILLED, LATE)
    results[replace(mutant, seed=first.seed)] = found = SINCE if unnoticed and outcome in (KILLED, LATE) else outcome
    return found


def stands(mutant: Mutant) -> bool:
    """Whether the line is in its file still."""
    path = SOURCE / mutant.file
    return path.exists() and mutant.before in map(str.strip, path.read_text().splitlines())


def judged_equivalent() -> dict[tuple[str, str, str], str]:
    """Reasons why a change, as its file, the line before and the line after, leaves every result as it was."""
    rows = [line.split("\t") for line in EQUIVALENT.read_text().splitlines()[1:]]
    return {(file, before, after): reason for file, before, after, reason in rows}


def counted(kind: str, groups: dict[str, dict[Mutant, str]]) -> list[str]:
    """A table of how many of each group's faults went unnoticed."""
    table = [f"| {kind} | planted | unnoticed at first | share | unnoticed now |", "|---|---|---|---|---|"]
    for name, found in groups.items():
        first = sum(outcome not in (KILLED, LATE) for outcome in found.values())
        alive = sum(outcome in (SURVIVED, NEVER) and stands(m) for m, outcome in found.items())
        table += [f"| {name} | {len(found)} | {first} | {first / len(found):.0%} | {alive} |"] if found else []
    return table


def save(results: dict[Mutant, str]) -> None:
    """The table of all results, and the page that sums it up."""
    lines = ["outcome\troom\tfile\toperator\toccurrence\tsource\tbefore\tafter\tseed"]
    lines += ["\t".join(map(str, (results[m], *astuple(m)))) for m in sorted(results)]
    RESULTS.write_text("\n".join(lines) + "\n")
    reasons = judged_equivalent()
    same = {m: reason for m in results if (reason := reasons.get((m.file, m.before, m.after)))}
    results = {m: outcome for m, outcome in results.items() if m not in same}
    seeds = {str(s): {m: o for m, o in results.items() if m.seed == s} for s in sorted({m.seed for m in results})}
    rooms = {room: {m: o for m, o in results.items() if m.room == room} for room in ROOMS}
    page = [*counted("sample", seeds), "", *counted("room", rooms | {"all": results})]
    for title, kind in (("Unnoticed", SURVIVED), ("In code that no fast test runs", NEVER)):
        left = [m for m in sorted(results) if results[m] == kind and stands(m)]
        page += ["", f"{title}:", ""] if left else []
        page += [f"- `{m.file}`: `` {m.before} `` became `` {m.after} ``" for m in left]
    page += ["", "No faults:", ""] if same else []
    page += [f"- `{m.file}`: `` {m.before} `` became `` {m.after} ``: {same[m]}" for m in sorted(same)]
    PAGE.write_text(HEAD + "\n".join(page) + "\n")


def prepare() -> None:
    """Everything that tests import besides regard, so that each fork has it, in the environment that they set."""
    sys.path.append(str(TOOL))
    runpy.run_path(str(ROOT / "tests/conftest.py"))  # libraries read it when they are imported
    for name in (
        "pytest",
        "hypothesis",
        "torch",
        "numpy",
        "transformers",
        "fastapi",
        "duckdb",
        "pyarrow",
        "matplotlib",
    ):
        import_module(name)
    import_module("transformers.models.llama.modeling_llama")
    compileall.compile_dir(SOURCE, quiet=2)
    gc.freeze()  # forks look through what they import alone, and share the rest


def main() -> None:
    parser = argparse.ArgumentParser(description="How many planted faults the fast tests notice.")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--count", type=int, default=40, help="faults in each room")
    parser.add_argument("--minutes", type=float, default=120, help="stop then, and go on from there when called again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="try those that survived again, after new tests")
    given = parser.parse_args()
    prepare()
    end, results = time.monotonic() + 60 * given.minutes, load()
    for room in given.rooms:
        drawn = sample(room, given.count, given.seed)
        alive = [m for m in drawn if given.again and results.get(m) in (SURVIVED, NEVER)]
        for mutant, outcome in verdicts([m for m in drawn if m not in results] + alive):
            found = note(results, mutant, outcome)
            print(f"{found}: {mutant.file}: {mutant.before}  =>  {mutant.after}", flush=True)
            save(results)
            if time.monotonic() > end:
                return
    save(results)


if __name__ == "__main__":
    main()
