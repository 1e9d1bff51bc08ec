"""Plants faults and runs the tests that see them.

A file of tests is imported and its tests are collected once; then each fault is put into the function in memory, in a
fork that runs the tests which run that function, the cheapest first. What each test runs is recorded on the source as
it is. A fault in what runs at import, such as a constant or a default, is there when the tests are imported instead.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from pluggy import HookimplMarker
from rooms import tests_of

ROOT = Path(__file__).parents[1]
SOURCE, TOOL = ROOT / "src", ROOT / ".mutants"
KILLED, LATE = "killed", "killed (out of time)"
SURVIVED, NEVER = "survived", "survived (never run)"
UNSEEN, AT_IMPORT, NOT_PLANTED = "unseen", "at import", 77
FINISHED = (0, 1, 5)
"""How pytest ends when it has run all tests: none failed, some did, there are none. A record of less hides some."""
IDLE = 60.0
"""Seconds without a tick of a core after which a fork waits for what never comes."""
ANY = "*"
"""What a test has run whose processes ran who knows what."""
Job = tuple[str, ...]
hookimpl = HookimplMarker("pytest")


@dataclass(frozen=True, order=True)
class Mutant:
    """One changed place: the operator's how-manieth in which file, the line before and after, and the first sample that
    drew it."""

    room: str
    file: str
    operator: str
    occurrence: int
    source: str
    before: str
    after: str = ""
    seed: int = field(default=0, compare=False)


@cache
def digest_of(file: str) -> str:
    path = SOURCE / file
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.exists() else ""


def changed(mutant: Mutant) -> str:
    """The file's text with the fault."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    text = (SOURCE / mutant.file).read_text()
    return mutate_code(text, get_operator(f"core/{mutant.operator}")(), mutant.occurrence) or text


def overlay(file: str, text: str, place: Path) -> None:
    """The package in ``place``, with links to everything but the one file."""
    here, there = SOURCE, place
    for part in Path(file).parts:
        there.mkdir(exist_ok=True)
        for entry in here.iterdir():
            if entry.name != part:
                (there / entry.name).symlink_to(entry)
        here, there = here / part, there / part
    there.write_text(text)


def place_of(mutant: Mutant) -> str:
    """``"module:function"`` whose body holds the change, as `core.executed` names it; ``"module:*"`` for the rest."""
    old = (SOURCE / mutant.file).read_text()
    pairs = zip(old.splitlines(), changed(mutant).splitlines(), strict=False)
    line = next(number for number, (before, after) in enumerate(pairs, 1) if before != after)
    names = [
        f"{owner}{function.name}"
        for owner, function in executed().functions(ast.parse(old))
        if function.body[0].lineno <= line <= (function.end_lineno or 0)
    ]
    return f"{mutant.file.removesuffix('.py').replace('/', '.').removeprefix('regard.')}:{(names or ['*'])[0]}"


@cache
def executed() -> ModuleType:
    """A copy of `regard.core.executed` of this tool's own, since the package must not be imported before the forks."""
    spec = spec_from_file_location("executed", SOURCE / "regard/core/executed.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Record:
    """Which functions each test of a job runs, on the source as it is; a file, valid while source and tests are.

    Args:
        job: what pytest is told: a file, and perhaps a choice of its tests.
    """

    def __init__(self, job: Job) -> None:
        text = Path(job[0]).read_text()
        key = f"{source_digest()} {Path(job[0]).relative_to(ROOT)} {job[1:]} {text}"
        self.job, self.path = job, TOOL / "ran" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        self.keeps = bool(re.search(r"scope=|cache\b", text))  # what other tests have made

    @cached_property
    def found(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    def sees(self, place: str) -> bool:
        """Whether a test can notice a fault there."""
        ran = [names for _, names in self.found["tests"].values()]
        module = place.partition(":")[0]
        imported = module in self.found["modules"] if place.endswith(":*") else place in self.found["before"]
        return bool(ran) and (imported or any(place in names or ANY in names for names in ran))

    def needs_import(self, place: str) -> bool:
        """Whether the place has run before the first test."""
        return place.endswith(":*") or place in self.found["before"]

    def chosen(self, items: list[Any], place: str) -> list[Any]:
        """The tests that can notice it: first those that run it, and of those the cheapest."""
        module, everyone = place.partition(":")[0], self.needs_import(place) or self.keeps

        def rank(item: Any) -> tuple[int, float]:
            seconds, names = self.found["tests"].get(item.nodeid, (0.0, [ANY]))
            near = any(name.startswith(f"{module}:") for name in names) if place.endswith(":*") else place in names
            return 0 if near else 1 if ANY in names else 2, seconds

        whole = [item for item in items if item.nodeid not in self.found["broken"]]
        return [item for item in sorted(whole, key=rank) if rank(item)[0] < 2 or everyone]

    def seconds(self, items: list[Any]) -> float:
        return sum(self.found["tests"].get(item.nodeid, (0.0,))[0] for item in items)


class Trials:
    """A plugin of pytest: collects the tests of a job once, then runs those that see a fault in a fork of their own.

    Args:
        record: of the job; written first where it isn't yet.
        faults: with the place of each.
        planted: whether the source that is imported holds the fault, the only one.
        say: told of each fault and what came of it.
    """

    def __init__(self, record: Record, faults: dict[Mutant, str], planted: bool, say: Callable[[Mutant, str], None]):
        self.record, self.faults, self.planted, self.say = record, faults, planted, say
        self.writing: dict[str, Any] | None = None

    def pytest_runtestloop(self, session: Any) -> bool | None:
        if self.planted:
            session.items[:] = self.record.chosen(session.items, *self.faults.values())
            return None
        if session.testsfailed:
            os._exit(1)
        if not self.record.path.exists():
            child = os.fork()
            if child == 0:
                self.begin(session)
                return None
            ended(child, 3600)
        for fault, place in self.faults.items() if self.record.path.exists() else ():
            if not self.record.sees(place) or self.record.needs_import(place):
                self.say(fault, UNSEEN if not self.record.sees(place) else AT_IMPORT)
                continue
            items, folder = self.record.chosen(session.items, place), Path(tempfile.mkdtemp(prefix="mutant-"))
            limit = 3 * self.record.seconds(items) + 20
            overlay(fault.file, changed(fault), folder)
            child = os.fork()
            if child == 0:
                limited(limit)
                if not plant(fault, place, folder):
                    os._exit(NOT_PLANTED)
                session.items[:] = items
                return None
            self.say(fault, ended(child, limit))
            shutil.rmtree(folder)
        os._exit(0)

    def begin(self, session: Any) -> None:
        """Starts the record, with no fault planted."""
        session.config.option.maxfail = 0
        modules = [name.removeprefix("regard.") for name in sys.modules if name.startswith("regard.")]
        self.writing = {"tests": {}, "broken": [], "modules": modules, "before": sorted(executed().taken())}

    @hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        if self.writing is None:
            return (yield)
        forget(len(sys.modules))
        executed().taken()
        before = cpu()
        value = yield
        after, ran = cpu(), sorted(executed().taken())
        ran += [ANY] if after[1] > before[1] or has_children() else []  # what they run is not known
        self.writing["tests"][item.nodeid] = (sum(after) - sum(before), ran)
        return value

    def pytest_runtest_logreport(self, report: Any) -> None:
        if self.writing is not None and report.failed:
            self.writing["broken"].append(report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self.writing is not None and exitstatus in FINISHED:
            self.writing["modules"] += [m[7:] for m in sys.modules if m.startswith("regard.")]
            self.record.path.parent.mkdir(exist_ok=True)
            self.record.path.write_text(json.dumps(self.writing))


def plant(fault: Mutant, place: str, folder: Path) -> bool:
    """Puts the fault into the function in memory, and into what is imported from now on; whether it could."""
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    module = fault.file.removesuffix(".py").replace("/", ".")
    if module not in sys.modules:
        parts = module.split(".")[:-1]
        packages = [parts[:deep] for deep in range(1, len(parts) + 1)]
        for package in packages:
            if ".".join(package) in sys.modules:
                sys.modules[".".join(package)].__path__.insert(0, str(folder.joinpath(*package)))
        return True
    name, file = place.partition(":")[2], str(SOURCE / fault.file)
    codes = [compile(changed(fault), file, "exec", dont_inherit=True)]
    for part in name.split("."):
        codes = [c for code in codes for c in code.co_consts if isinstance(c, CodeType) and c.co_name == part]
    fresh = {code.co_firstlineno: code for code in codes}
    functions = [f for f in gc.get_objects() if type(f) is FunctionType]
    olds = [f for f in functions if f.__code__.co_filename == file and f.__code__.co_qualname == name]
    if not olds or any(f.__code__.co_freevars != fresh[f.__code__.co_firstlineno].co_freevars for f in olds):
        return False
    for function in olds:
        function.__code__ = fresh[function.__code__.co_firstlineno]
    return True


@cache
def forgetful(_: int) -> list[Any]:
    """The package's functions that keep what they gave, with as many modules imported; but those without arguments,
    what is registered, take long."""
    found = [x for x in gc.get_objects() if type(x).__name__ == "_lru_cache_wrapper"]
    own = [x for x in found if str(getattr(x, "__module__", "")).startswith("regard.")]
    return [x for x in own if isinstance(x.__wrapped__, type) or x.__wrapped__.__code__.co_argcount]


def forget(modules: int) -> None:
    """Makes each test run what it needs."""
    for function in forgetful(modules):
        function.cache_clear()


def cpu() -> tuple[float, float]:
    """Seconds that this process has taken, and its children."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def has_children() -> bool:
    """Whether a process that this one has started is alive."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                return True
    return False


def limited(seconds: float) -> None:
    """This process, in a group of its own, may take so much time of a core."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))


def ended(child: int, seconds: float) -> str:
    """What came of a fork: a fault is noticed by a test that fails, or by one that finds no end, such as processes that
    wait for each other."""
    begun = looked = moved = time.monotonic()
    ticks, late = 0, False
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.05)
        now = time.monotonic()
        if now - looked > IDLE / 6:
            looked, before, ticks = now, ticks, group_cpu(child)
            moved = now if ticks != before else moved
        if not late and (now - begun > 30 * seconds or (ticks and now - moved > IDLE)):
            late = True
            os.kill(child, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what it has started
    if os.WIFSIGNALED(found[1]):
        return LATE
    return {0: SURVIVED, 5: SURVIVED, NOT_PLANTED: AT_IMPORT}.get(os.WEXITSTATUS(found[1]), KILLED)


def group_cpu(group: int) -> int:
    """Ticks that the living processes of a group have taken."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if fields[2] == str(group) else 0
    return ticks


def run(job: Job, faults: dict[Mutant, str], source: Path = SOURCE) -> dict[Mutant, str]:
    """What a job's tests say of faults: each in memory, or the one that ``source`` holds."""
    reading, writing = os.pipe()
    record, known = Record(job), list(faults)
    new = not record.path.exists()
    child = os.fork()
    if child == 0:
        os.close(reading)
        sys.dont_write_bytecode = True  # an overlay shares what is compiled
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ.update(PYTHONPATH=str(source), PYTHONDONTWRITEBYTECODE="1")
        sys.path.insert(0, str(source))
        import hypothesis
        import pytest

        hypothesis.settings.register_profile("faults", database=None, derandomize=True)
        hypothesis.settings.load_profile("faults")
        if new:
            executed().begin()
        if source != SOURCE:
            limited(3 * sum(seconds for seconds, _ in record.found["tests"].values()) + 60)
        trials = Trials(record, faults, source != SOURCE, lambda fault, outcome: tell(writing, known, fault, outcome))
        options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not slow", "--rootdir", str(ROOT)]
        os._exit(int(pytest.main([*options, "-c", str(ROOT / "pyproject.toml"), *job], plugins=[trials])))
    os.close(writing)
    with os.fdopen(reading) as told:
        lines = [line.rstrip("\n").split("\t") for line in told]
    outcome = ended(child, 3600)
    if source != SOURCE:
        return dict.fromkeys(faults, outcome)
    if outcome != SURVIVED or not record.path.exists():
        raise RuntimeError(
            f"tests: got none that run without any fault from {' '.join(job)}, want them to be collected"
        )
    for name in record.found["broken"] if new else ():
        print(f"fails without any fault, so that it notices none: {name}", flush=True)
    return {known[int(number)]: outcome for number, outcome in lines}


def tell(pipe: int, known: list[Mutant], fault: Mutant, outcome: str) -> None:
    os.write(pipe, f"{known.index(fault)}\t{outcome}\n".encode())


def verdicts(faults: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Plants the faults, and runs the tests that see them, the closest first, those that serve many together."""
    waiting = {fault: deque(tests_of(ROOT / "tests", fault.room, fault.file)) for fault in faults}
    places, seen = {fault: place_of(fault) for fault in faults}, set()
    while waiting:
        for fault, jobs in list(waiting.items()):
            while jobs and Record(jobs[0]).path.exists() and not Record(jobs[0]).sees(places[fault]):
                jobs.popleft()
            if not jobs:
                del waiting[fault]
                yield fault, SURVIVED if fault in seen else NEVER
        for job, _ in Counter(jobs[0] for jobs in waiting.values()).most_common(1):
            for fault, outcome in run(job, {f: places[f] for f, jobs in waiting.items() if jobs[0] == job}).items():
                waiting[fault].popleft()
                found = imported(job, fault, places[fault]) if outcome == AT_IMPORT else outcome
                seen |= set() if found == UNSEEN else {fault}
                if found in (KILLED, LATE):
                    del waiting[fault]
                    yield fault, found


def imported(job: Job, fault: Mutant, place: str) -> str:
    """What comes of a fault that is there from the beginning."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        overlay(fault.file, changed(fault), folder)
        return run(job, {fault: place}, folder)[fault]
    finally:
        shutil.rmtree(folder)


@cache
def source_digest() -> str:
    """Of the package, and of what its tests share."""
    files = [p for p in (ROOT / "tests").rglob("*.py") if not p.name.startswith("test_")]
    whole = hashlib.sha256()
    for path in sorted([*SOURCE.rglob("*.py"), *files]):
        whole.update(path.read_bytes())
    return whole.hexdigest()
