"""Hosts, probes, swap, look, README and pages against the oldest supported and the newest releases, as one table.

    make compat                              # writes docs/compat.md
    python tools/compat.py --only lowest     # one column, printed alone

Each environment stands in .compat/ and has releases of its own: `lowest` those that the bounds of pyproject.toml begin
with, `newest` what pip takes without the lock. Tools for testing are the newest in both. What a suite gave is kept in
.compat/ while the code and the releases stay, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from os import environ
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HOME, PAGE = ROOT / ".compat", ROOT / "docs/compat.md"
SHOWN = ("transformers", "torch", "tokenizers", "numpy", "accelerate")
SUITES = {
    "hosts": ["tests/unit/hosts", "--ignore", "tests/unit/hosts/test_swap.py"],
    "probes": ["tests/unit/probes"],
    "swap": ["tests/unit/hosts/test_swap.py", "tests/unit/compare/test_swapped.py"],
    "look": ["tests/unit/cli/test_look.py"],
    "compress": ["tests/unit/policies", "tests/laws", "-k", "policies or policy"],
    "decoding": ["tests/unit/decoding", "tests/laws", "-k", "decoding"],
    "parallel": ["tests/unit/parallel"],
    "README": ["tests/unit/test_docs.py"],
    "pages": ["tests/web"],
}
HEAD = """# Releases that work

`make compat` runs the parts that depend on other libraries in two environments and wrote this page: `lowest` has the
first release that each bound of `pyproject.toml` allows, `newest` what `pip install` takes. PyTorch runs on the CPU,
whatever its build.

"""


@dataclass(frozen=True)
class Result:
    """What a suite gave: how many tests passed, the names of those that did not, and of those that were skipped."""

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.passed} passed"]
        parts += [f"**{len(self.failed)} failed**"] if self.failed else []
        return ", ".join(parts + ([f"{len(self.skipped)} skipped"] if self.skipped else []))


def lowest() -> list[str]:
    """The first release that each bound on a dependency allows, of the package and of what the tests need of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = map(Requirement, [*project["dependencies"], *extras["web"], *extras["tune"]])
    return [f"{r.name}=={s.version}" for r in wanted for s in r.specifier if s.operator == ">="]


ENVIRONMENTS = {"lowest": lowest, "newest": list}


def install(name: str) -> Path:
    """The environment's Python, with its releases and this checkout in it."""
    place = HOME / name
    python = place / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pins = HOME / f"{name}.txt"
    pins.write_text("".join(f"{line}\n" for line in ENVIRONMENTS[name]()))
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if name == "newest" else []
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *upgrade]
    subprocess.run([*command, "--constraint", pins, "--editable", f"{ROOT}[dev]"], check=True)
    return python


def releases(python: Path) -> dict[str, str]:
    code = f"from importlib.metadata import version\nfor name in {SHOWN}: print(version(name))"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return dict(zip(SHOWN, done.stdout.split(), strict=True))


def run(python: Path, suite: list[str]) -> Result:
    """The suite under this Python.

    Raises:
        RuntimeError: pytest itself did not come to an end.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "not slow", "-p", "no:cacheprovider", "--tb=no", f"--junitxml={report}"]
        done = subprocess.run([python, "-m", "pytest", *options, *suite], cwd=ROOT, env=environ | {"PYTHONPATH": ""})
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest: got exit code {done.returncode} from {' '.join(suite)}, want 0 or 1")
        return read(report)


def code() -> str:
    """What the suites depend on: the commit, and how the files differ from it."""
    git = ["git", "-C", ROOT]
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    changed = subprocess.run([*git, "diff", "HEAD", "--", "src", "tests", "tools"], check=True, capture_output=True)
    return head.stdout.strip() + (hashlib.sha256(changed.stdout).hexdigest() if changed.stdout else "")


def column(name: str, python: Path) -> dict[str, Result]:
    """What every suite gives in this environment, those that ran before on the same code and releases as kept."""
    kept, of = HOME / f"{name}.json", {"code": code()} | releases(python)
    found = json.loads(kept.read_text()) if kept.exists() else {}
    same = found["suites"] if found.get("of") == of else {}  # what another version wrote may have another form
    results = {suite: Result(r["passed"], *map(tuple, r["names"])) for suite, r in same.items()}
    for suite, options in SUITES.items():
        if suite not in results:
            results[suite] = run(python, options)
            suites = {s: {"passed": r.passed, "names": [r.failed, r.skipped]} for s, r in results.items()}
            text = json.dumps({"of": of, "suites": suites}, indent=1)
            kept.with_suffix(".new").write_text(text)
            kept.with_suffix(".new").replace(kept)
    return results


def read(report: Path) -> Result:
    """What pytest's JUnit report says."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = named(cases, "failure", "error")
    skipped = named(cases, "skipped")
    return Result(len(cases) - len(failed) - len(skipped), failed, skipped)


def named(cases: Iterable[ElementTree.Element], *kinds: str) -> tuple[str, ...]:
    """The tests that ended so."""
    return tuple(
        sorted(f"{c.get('classname')}::{c.get('name')}" for c in cases if any(c.find(k) is not None for k in kinds))
    )


def table(columns: dict[str, tuple[dict[str, str], dict[str, Result]]]) -> str:
    """Rows of releases and of suites, a column for each environment, and under it the tests that failed."""
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    rows += [[f"`{name}`", *(found[name] for found, _ in columns.values())] for name in SHOWN]
    rows += [[suite, *(str(results[suite]) for _, results in columns.values())] for suite in SUITES]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for column, (_, results) in columns.items():
        for what in ("failed", "skipped"):
            names = sorted({name for result in results.values() for name in getattr(result, what)})
            lines += ["", f"{what.capitalize()} in {column}:", "", *(f"- `{name}`" for name in names)] if names else []
    return "\n".join(lines) + "\n"


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tests against the oldest and the newest releases.")
    parser.add_argument("--only", choices=ENVIRONMENTS, help="one environment, and leave the page as it is")
    only = parser.parse_args(arguments).only
    HOME.mkdir(exist_ok=True)
    columns = {}
    for name in [only] if only else ENVIRONMENTS:
        python = install(name)
        columns[name] = releases(python), column(name, python)
    made = table(columns)
    print(made)
    if not only:
        PAGE.write_text(HEAD + made)
    return int(any(result.failed for _, results in columns.values() for result in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
