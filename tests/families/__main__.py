"""`python -m families`: every family in a process of its own, results as they come, the page at the end."""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import multiprocessing
import os
import resource
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

from families.catalogue import Candidate, families
from families.checks import Row, calm, examine, spread
from families.inputs import guesses
from families.shrink import VARIANTS, tiny
from families.table import page

LIMIT = 900
"""Seconds for one family."""
MEMORY = 8 << 30
LARGEST = 60_000_000
"""Parameters of a model that is still built."""
DOCS = Path(__file__).resolve().parents[2] / "docs"


def buildable(candidates: list[Candidate]) -> tuple[Any, dict[str, torch.Tensor]] | str:
    """The first model that can be built and run, with its inputs, or why none can."""
    why = ""
    for candidate in candidates:
        for sizes in VARIANTS:
            try:
                kind = getattr(transformers, candidate.model)
                own = kind.config_class or candidate.config  # of some, the part that the class reads
                config = tiny(own if issubclass(own, transformers.PreTrainedConfig) else candidate.config, sizes)
                with torch.device("meta"):
                    count = sum(parameter.numel() for parameter in kind(config).parameters())
                if count > LARGEST:
                    raise MemoryError(f"{count / 1e6:.0f} million parameters")
                torch.manual_seed(0)
                model = kind(config).eval()
                in_pytorch()
            except Exception as error:
                why = why or f"{candidate.model}: {type(error).__name__}: {str(error)[:200]}"
                continue
            spread(model)
            for inputs in guesses(model):
                try:
                    calm(model, inputs)
                    return model, inputs
                except Exception as error:
                    why = why or f"{candidate.model}: {type(error).__name__}: {str(error)[:200]}"
    return why or "no class of its own"


def in_pytorch() -> None:
    """Scans in plain PyTorch: Transformers takes those of an installed flash-linear-attention, without a GPU too."""
    for name, module in list(sys.modules.items()):
        for label, function in list(vars(module).items()) if name.startswith("transformers.models.") else []:
            if label.endswith(("_selective_scan", "chunk_scan", "_delta_rule", "_delta_attention")):
                setattr(module, label, inspect.unwrap(function))


def tried(family: str, candidates: list[Candidate]) -> Row:
    """The outcome of one family, in this process."""
    began, row = time.process_time(), Row(family)
    found = buildable(candidates)
    if isinstance(found, str):
        row.watch, row.reason = "cannot be built", found
    else:
        model, inputs = found
        row.model = type(model).__name__
        examine(row, model, inputs)
    row.seconds = round(time.process_time() - began, 1)
    return row


def child(family: str, candidates: list[Candidate], pipe: Any) -> None:
    """The process of one family."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        pipe.send(asdict(tried(family, candidates)))


def apart(family: str, candidates: list[Candidate]) -> Row:
    """The outcome of one family, from a process of its own with a time limit."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(family, candidates, there))
    process.start()
    there.close()
    try:
        if here.poll(LIMIT):
            return Row(**here.recv())
        return Row(family, watch="crash", reason=f"not done after {LIMIT} s")
    except EOFError:
        process.join()
        return Row(family, watch="crash", reason=f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def read(path: Path) -> dict[str, Row]:
    """The results so far by family."""
    if not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines() if line]
    return {row.family: row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m families", description=__doc__)
    parser.add_argument("families", nargs="*", help="folders of Transformers; all where none is given")
    parser.add_argument("--results", type=Path, default=DOCS / "families.jsonl", help="where results are written")
    parser.add_argument("--again", nargs="?", const="all", help="try anew: all, or those of one outcome, as wrong")
    parser.add_argument("--page", action="store_true", help="write docs/families.md from the results, and stop")
    given = parser.parse_args()
    if not given.page:
        every = families()
        unknown = sorted(set(given.families) - set(every))
        if unknown:
            parser.error(f"families: got {unknown}, want folders of Transformers, such as llama")
        attempt_all(given.results, {name: every[name] for name in given.families or every}, given.again)
    if given.page or not given.families:
        (DOCS / "families.md").write_text(page(list(read(given.results).values())))


def attempt_all(results: Path, wanted: dict[str, list[Candidate]], again: str | None) -> None:
    """Tries what has no result yet, or is to be tried again; each result is written as it comes."""
    known = read(results)
    left = [name for name in wanted if name not in known or again in ("all", known[name].status)]
    gc.freeze()
    began = time.monotonic()
    for done, name in enumerate(left, start=1):
        row = apart(name, wanted[name])
        known[name] = row
        results.parent.mkdir(exist_ok=True)
        part = results.with_suffix(".part")
        part.write_text("".join(json.dumps(asdict(known[one])) + "\n" for one in sorted(known)))
        part.replace(results)
        rest = (time.monotonic() - began) / done * (len(left) - done)
        print(f"{done}/{len(left)} {name}: {row.status} {row.reason[:110]} [{rest / 60:.0f} min left]", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
