"""How many small planted faults the fast tests notice, room by room.

    make mutants    # goes on where it stopped; writes tools/mutants.tsv and docs/mutants.md
    python tools/mutants.py --rooms plan --count 40 --minutes 30

Cosmic Ray's operators change one place of one file in a copy of the package; a forked process then runs the tests of
that place. Which places, a seeded hash of each tells, so that an edit elsewhere draws no others; a result stays valid
while its file is unchanged.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path

from rooms import ROOMS, files_of, tests_of

ROOT = Path(__file__).parents[1]
SOURCE, RESULTS, PAGE = ROOT / "src", ROOT / "tools/mutants.tsv", ROOT / "docs/mutants.md"
TOOL = ROOT / ".mutants"
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
KILLED, SURVIVED, LATE = "killed", "survived", "killed (out of time)"
HEAD = """# Planted faults

`make mutants` changes one place of the source at a time and runs that place's fast tests (`tools/rooms.py` maps rooms
to tests). It wrote this page from `tools/mutants.tsv`. Not planted by rule, since no behaviour depends on them:
annotations, decorators (what the atlas says of a paper), messages of errors, assertions for the type checker, and a
mechanism's examples, which are inputs.

"""


@dataclass(frozen=True, order=True)
class Mutant:
    """One changed place: the operator's how-manieth in which file, and the line before and after."""

    room: str
    file: str
    operator: str
    occurrence: int
    source: str
    before: str
    after: str = ""


def ignored(tree: ast.AST) -> Iterator[ast.AST]:
    """The parts whose change is no fault."""
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


def changed(mutant: Mutant) -> str:
    """The file's text with the fault."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    text = (SOURCE / mutant.file).read_text()
    return mutate_code(text, get_operator(f"core/{mutant.operator}")(), mutant.occurrence) or text


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
            drawn.append(replace(mutant, after=after))
    return drawn


def compiles(text: str) -> bool:
    """Whether it is Python still: ``**`` before keywords is no power."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def overlay(file: str, text: str, place: Path) -> None:
    """The package in ``place``, with links to everything but the one file."""
    here, there = SOURCE, place
    for part in Path(file).parts:
        there.mkdir(exist_ok=True)
        for entry in here.iterdir():
            if entry.name not in (part, "__pycache__"):
                (there / entry.name).symlink_to(entry)
        here, there = here / part, there / part
    there.write_text(text)


def trial(tests: Sequence[str], source: Path, seconds: float) -> str:
    """What tests say of the package in ``source``, in a fork that may take so much time of a core."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ["PYTHONPATH"] = str(source)
        sys.path.insert(0, str(source))
        import pytest

        options = [
            "-x",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
            "--rootdir",
            str(ROOT),
        ]
        os._exit(int(pytest.main([*options, "-c", str(ROOT / "pyproject.toml"), *tests])))
    while time.monotonic() - begun < 30 * seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return LATE
    return SURVIVED if os.WEXITSTATUS(status) == 0 else KILLED


@cache
def baseline(tests: tuple[str, ...]) -> float:
    """Seconds of a core that the tests take on the source as it is.

    Raises:
        RuntimeError: they do not pass, so that they could say nothing of a fault.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if trial(tests, SOURCE, 900) != SURVIVED:
        raise RuntimeError(f"tests: got a failure without any fault from {' '.join(tests)}, want them to pass")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def verdict(mutant: Mutant) -> str:
    """Plants the fault, and runs its tests."""
    tests = tuple(tests_of(ROOT / "tests", mutant.room, mutant.file))
    limit = 3 * baseline(tests) + 20
    place = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        overlay(mutant.file, changed(mutant), place)
        return trial(tests, place, limit)
    finally:
        shutil.rmtree(place)


def load() -> dict[Mutant, str]:
    """The results whose files are as they were."""
    if not RESULTS.exists():
        return {}
    rows = [line.split("\t") for line in RESULTS.read_text().splitlines()[1:]]
    found = {Mutant(a, b, c, int(d), *rest): outcome for outcome, a, b, c, d, *rest in rows}
    return {m: outcome for m, outcome in found.items() if m.source == digest_of(m.file)}


@cache
def digest_of(file: str) -> str:
    path = SOURCE / file
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.exists() else ""


def save(results: dict[Mutant, str]) -> None:
    """The table of all results, and the page that sums it up."""
    lines = ["outcome\troom\tfile\toperator\toccurrence\tsource\tbefore\tafter"]
    lines += ["\t".join(map(str, (results[m], *astuple(m)))) for m in sorted(results)]
    RESULTS.write_text("\n".join(lines) + "\n")
    page = ["| room | planted | survived | share |", "|---|---|---|---|"]
    for room in ROOMS:
        found = [outcome for m, outcome in results.items() if m.room == room]
        left = found.count(SURVIVED)
        page += [f"| {room} | {len(found)} | {left} | {left / len(found):.0%} |"] if found else []
    total, left = len(results), sum(outcome == SURVIVED for outcome in results.values())
    page += [f"| all | {total} | {left} | {left / max(total, 1):.0%} |"]
    alive = [m for m in sorted(results) if results[m] == SURVIVED]
    page += ["", "Unnoticed:", ""] if alive else []
    page += [f"- `{m.file}`: `` {m.before} `` became `` {m.after} ``" for m in alive]
    PAGE.write_text(HEAD + "\n".join(page) + "\n")


def prepare() -> None:
    """Everything that tests import besides regard, so that each fork has it."""
    sys.path.append(str(TOOL))
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
    import torch

    torch.set_num_threads(1)


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
    samples = [sample(room, given.count, given.seed) for room in given.rooms]
    turns = [m for place in range(given.count) for drawn in samples for m in drawn[place : place + 1]]
    for mutant in turns:
        if time.monotonic() > end:
            break
        if mutant not in results or (given.again and results[mutant] == SURVIVED):
            results[mutant] = verdict(mutant)
            print(f"{results[mutant]}: {mutant.file}: {mutant.before}  =>  {mutant.after}", flush=True)
            save(results)
    save(results)


if __name__ == "__main__":
    main()
