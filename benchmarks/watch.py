"""What watching costs, against the same model unwatched and against its eager attention with maps.

    python benchmarks/watch.py time --length 4096        # forward passes, interleaved; ratios to the fused model
    python benchmarks/watch.py memory --lengths 1024,4096,16384

Llama, 4 layers of 8 heads, d = 64, random weights, float32. `base` is the probes received, entropy, sink, distance
on all heads; `look` is every probe of docs/record.md; `rows` is `base` on 128 sampled rows,
`look-rows` is `look` on them. Times are the least of all rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaModel

from regard.hosts.watch import watch
from regard.probes import (
    Distance,
    DuplicateToken,
    Edges,
    Entropy,
    EntropyRows,
    Induction,
    Pooled,
    PreviousToken,
    Received,
    Retrieval,
    Sink,
)  # fmt: skip

VOCABULARY = 1009
WAYS = ("fused", "base", "look", "rows", "look-rows", "eager")


def base(n: int) -> list:
    return [Received(), Entropy(), Sink(), Distance()]


def look(n: int) -> list:
    return [
        *base(n),
        EntropyRows(),
        Induction(),
        PreviousToken(),
        DuplicateToken(),
        Retrieval(),
        Pooled(n, min(128, n)),
        Edges(),
    ]


def make_model() -> LlamaModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=1 << 17)
    return LlamaModel(config).eval()


@torch.no_grad()
def forward(model: LlamaModel, ids: torch.Tensor, way: str) -> object:
    """One pass; what it returns is held until it has been measured."""
    n = ids.shape[1]
    if way == "eager":
        model.set_attn_implementation("eager")
        try:
            return model(ids, use_cache=False, output_attentions=True)
        finally:
            model.set_attn_implementation("sdpa")
    if way == "fused":
        return model(ids, use_cache=False)
    probes = look(n) if way.startswith("look") else base(n)
    with watch(model, probes, rows=128 if way.endswith("rows") else None) as session:
        model(ids, use_cache=False)
    return session.results()


def measure_time(length: int, rounds: int, ways: list[str], clock: Callable[[], float]) -> None:
    model = make_model()
    ids = torch.randint(0, VOCABULARY, (1, length))
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for way in ways:
            start = clock()
            forward(model, ids, way)
            took = clock() - start
            if turn:
                best[way] = min(best[way], took)
    print(f"n = {length}, {torch.get_num_threads()} threads, {rounds} rounds")
    for way in ways:
        against = f"  eager / this {best['eager'] / best[way]:.2f}" if "eager" in best else ""
        print(f"  {way:6s} {best[way]:8.3f} s   {best[way] / best['fused']:.2f} x fused{against}")


def peak(way: str, length: int) -> float:
    """MiB of a fresh process's peak above what it held before the pass."""
    model = make_model()
    forward(model, torch.randint(0, VOCABULARY, (1, 64)), way)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = forward(model, torch.randint(0, VOCABULARY, (1, length)), way)
    del held
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_memory(lengths: list[int], ways: list[str]) -> None:
    print("peak MiB above the idle model; in brackets what it is above fused")
    for length in lengths:
        found = {}
        for way in ways:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[way] = pool.apply(peak, (way, length))
        print(
            f"n = {length:6d}  "
            + "  ".join(f"{way} {found[way]:.0f} ({found[way] - found['fused']:.0f})" for way in ways)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu", action="store_true", help="process time instead of wall time: for a busy machine, with --threads 1"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ways = given.ways.split(",")
    if given.what == "time":
        measure_time(given.length, given.rounds, ways, time.process_time if given.cpu else time.perf_counter)
    else:
        measure_memory([int(length) for length in given.lengths.split(",")], ways)


if __name__ == "__main__":
    main()
