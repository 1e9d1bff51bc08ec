"""`regard look` as a person runs it: seconds from the command to the page, peak memory, size of the page.

Each run is a process of its own. Text: source files of the standard library, one after the other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path


def text_of(tokens: int, tokenizer) -> str:
    """Source text that the model reads as about ``tokens`` tokens."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    ids: list[int] = []
    for file in files:
        ids += tokenizer.encode(file.read_text(errors="replace"), add_special_tokens=False)
        if len(ids) >= tokens:
            return tokenizer.decode(ids[:tokens])
    raise SystemExit(f"--tokens: got {tokens}, want at most the {len(ids)} of the standard library")


def run(text: str, folder: Path) -> tuple[float, float, float]:
    """``(seconds, peak MiB, page MiB)`` of one look."""
    source = folder / "source.txt"
    source.write_text(text)
    command = [sys.executable, "-m", "regard.cli", "look", "--file", str(source), "-o", str(folder / "seen")]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, (folder / "seen/page.html").stat().st_size / 2**20


def main() -> None:
    from regard.hosts import small

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = small.load("tiny")[1]
    print("| tokens | seconds (median) | spread | peak memory, MiB | page, MiB |\n|---:|---:|---:|---:|---:|")
    for tokens in arguments.tokens:
        text = text_of(tokens, tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            runs = [run(text, Path(folder)) for _ in range(arguments.rounds)]
        seconds = sorted(seconds for seconds, _, _ in runs)
        memory, page = max(memory for _, memory, _ in runs), runs[0][2]
        spread = f"{seconds[0]:.1f}–{seconds[-1]:.1f}"
        print(f"| {tokens:,} | {seconds[len(seconds) // 2]:.1f} | {spread} | {memory:,.0f} | {page:.2f} |", flush=True)


if __name__ == "__main__":
    main()
