"""Routing at run time: what a model recalls that was not trained for it, and what a choice costs and saves."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.dynamic_mask import DynamicMask
from regard.mechanisms.sparse.hip import HierarchicallyPruned
from regard.mechanisms.sparse.learned_nsa import LearnedNativeSparse
from regard.mechanisms.sparse.moba import MoBA
from regard.mechanisms.sparse.mosa import ExpertChoice
from regard.mechanisms.sparse.nsa import NativeSparse
from regard.mechanisms.sparse.routed import Routed, RoutedBlocks
from regard.mechanisms.sparse.sparge import Sparge
from regard.mechanisms.sparse.vmoba import VideoBlocks
from regard.mechanisms.sparse.window import SlidingWindow
from regard.routers.tree import Halves
from regard.tasks.lexicon import FILLER, NAMES

KEYS = 256
CODES, FILL = 40, 400


def candidates() -> dict[str, Mechanism | None]:
    """What takes the questions, each with `KEYS` keys a query but the dense one."""
    window = SlidingWindow(KEYS - 4, sinks=4)
    routed = {score: RoutedBlocks(score, 8, KEYS // 8) for score in ("middle", "bound", "mean", "oracle", "random")}
    return {"dense": None, **routed, "window": window}


@measured(seed=range(2))
def recalls(seed: int) -> dict[str, float]:
    """The share of right answer tokens of 40 planted codes, the questions alone routed over a dense prefill."""
    return recalled(seed, candidates())


def recalled(seed: int, mechanisms: Mapping[str, Mechanism | None]) -> dict[str, float]:
    """The recall of SmolLM2 with each of them in the questions, None for its own attention."""
    from regard.hosts import small
    from regard.hosts.swap import swap

    model, words = small.load("smollm2")
    context, questions, answers = planted(words, torch.Generator().manual_seed(seed))
    found = {}
    with torch.no_grad():
        cache = model(input_ids=context[None], use_cache=True, logits_to_keep=1).past_key_values
        for name, mechanism in mechanisms.items():
            held = {"input_ids": questions[None], "past_key_values": copy.deepcopy(cache)}
            if mechanism is None:
                logits = model(**held).logits
            else:
                with swap(model, mechanism):
                    logits = model(**held).logits
            right = logits[0, :-1].argmax(-1) == questions[1:]
            found[name] = right[answers[1:]].float().mean().item()
    return found | {"tokens": float(len(context) + len(questions))}


def planted(words: Any, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """``(context, questions, which tokens of the questions are answers)``: codes among filler, then each asked for."""

    def encoded(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    names = [NAMES[i] for i in torch.randperm(len(NAMES), generator=generator)[:CODES]]
    codes = torch.randint(1000, 10_000, (len(names),), generator=generator).tolist()
    filler: list[int] = []
    while len(filler) < FILL:
        filler += encoded(f" {FILLER[int(torch.randint(len(FILLER), (1,), generator=generator))]}")
    told: list[int] = []
    for place, (name, code) in enumerate(zip(names, codes, strict=True)):
        told += encoded(f"\nThe code of {name} is {code}.") + filler[place * 10 : (place + 1) * 10]
    asked, answers = [], []
    for i in torch.randperm(len(names), generator=generator).tolist():
        question, answer = encoded(f"\nThe code of {names[i]} is "), encoded(str(codes[i]))
        asked += [*question, *answer, *encoded(".")]
        answers += [False] * len(question) + [True] * len(answer) + [False] * len(encoded("."))
    return torch.tensor(told), torch.tensor(asked), torch.tensor(answers)


def keeps_recall(found: Figures) -> Finding:
    """The middle of mean and bound keeps 95% of dense recall, the window and random blocks lose a quarter at least."""
    shares = {name: found.mean(name) for name in candidates()}
    told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    kept, lost = shares["middle"] / shares["dense"], max(shares["window"], shares["random"]) / shares["dense"]
    tokens = found.mean("tokens")
    return Finding.of(f"recall at {tokens:,.0f} tokens: {told}", shares["dense"] > 0.8, kept >= 0.95, lost <= 0.75)


def bound_keeps_recall(found: Figures) -> Finding:
    """The bound keeps 90% of dense recall, the window and random blocks at most half."""
    shares = {name: found.mean(name) / found.mean("dense") for name in ("bound", "random", "window")}
    told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    lost = max(shares["random"], shares["window"])
    return Finding.of(f"of dense recall, {found.mean('dense'):.1%}: {told}", shares["bound"] >= 0.9, lost <= 0.5)


def seconds(run: Callable[[], Any], times: int) -> float:
    """The least CPU time of so many runs."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


@measured(tokens=(8192, 16384))
def prefill(tokens: int) -> dict[str, float]:
    """Seconds of one thread for dense and for block attention over as many tokens, 8 heads of 64, in turn."""
    q, k, v = torch.randn(3, 1, 8, tokens, 64, generator=torch.Generator().manual_seed(0))
    causal, dense, moba = Layout(causal=True), Softmax(), MoBA(256, 3)
    with torch.no_grad():
        times = [[seconds(lambda m=m: m(q, k, v, causal), 1) for m in (dense, moba)] for _ in range(2)]
    plain, routed = (min(each) for each in zip(*times, strict=True))
    return {"dense": plain, "routed": routed}


def faster_than_dense(found: Figures) -> Finding:
    """At least 2.5 times as fast at 8k tokens, 4 times at 16k."""
    ratios = {n: found.one("dense", tokens=n) / found.one("routed", tokens=n) for n in (8192, 16384)}
    told = " and ".join(f"{ratio:.2f} times as fast at {n:,} tokens" for n, ratio in ratios.items())
    return Finding.of(told, ratios[8192] >= 2.5, ratios[16384] >= 4)


@measured(tokens=[16384])
def native(tokens: int) -> dict[str, float]:
    """Seconds of one thread for dense and for native sparse attention, 8 heads of 64 over 2 of keys, in turn."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 8, tokens, 64, generator=generator)
    k, v = torch.randn(2, 1, 2, tokens, 64, generator=generator)
    gates = {name: torch.rand(1, 8, tokens, generator=generator) for name in NativeSparse.signals}
    causal, dense, sparse = Layout(causal=True), Softmax(), NativeSparse()
    with torch.no_grad():
        plain = seconds(lambda: dense(q, k, v, causal), 2)
        routed = seconds(lambda: sparse(q, k, v, causal, **gates), 2)
    return {"dense": plain, "routed": routed}


def native_is_faster(found: Figures) -> Finding:
    """It takes less time than dense attention."""
    ratio = found.one("dense") / found.one("routed")
    return Finding.of(f"{ratio:.2f} times as fast as dense attention at 16k tokens", ratio > 1)


@measured(tokens=(16384, 32768))
def learned_native(tokens: int) -> dict[str, float]:
    """As `native`, compressed blocks learned and keys and values of each branch."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 8, tokens, 64, generator=generator)
    k, v = torch.randn(2, 1, 2, tokens, 64, generator=generator)
    sparse = LearnedNativeSparse(64)
    signals = {name: torch.rand(1, 8, tokens, generator=generator) for name in NativeSparse.signals}
    signals |= {name: torch.randn(1, 2, tokens, 64, generator=generator) for name in sparse.signals if "_" in name}
    causal, dense = Layout(causal=True), Softmax()
    with torch.no_grad():
        plain = seconds(lambda: dense(q, k, v, causal), 1)
        routed = seconds(lambda: sparse(q, k, v, causal, **signals), 1)
    return {"dense": plain, "routed": routed}


def learned_is_faster(found: Figures) -> Finding:
    """It takes less time than dense attention at 32k tokens."""
    ratios = {n: found.one("dense", tokens=n) / found.one("routed", tokens=n) for n in (16384, 32768)}
    told = " and ".join(f"{ratio:.2f} times as fast at {n:,} tokens" for n, ratio in ratios.items())
    return Finding.of(told, ratios[32768] > 1)


@measured(keep=[64], seed=range(3))
def constant_cache(keep: int, seed: int) -> dict[str, float]:
    """How far decoding token by token is from a whole call over 16 times as many keys, and the state's bytes."""
    generator, n = torch.Generator().manual_seed(seed), 16 * keep
    q = torch.randn(1, 4, n, 16, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, n, 16, generator=generator, dtype=torch.float64)
    score = torch.randn(1, 2, n, generator=generator, dtype=torch.float64)
    mechanism = DynamicMask(keep)
    whole = mechanism.weights(q, k, Layout(causal=True), score=score) @ v.repeat_interleave(2, 1)
    state, rows, sizes = mechanism.start(1, dtype=torch.float64), [], []
    for t in range(n):
        one = slice(t, t + 1)
        row, state = mechanism.extend(q[:, :, one], k[:, :, one], v[:, :, one], state, score=score[:, :, one])
        rows.append(row)
        sizes.append(state.bytes)
    return {"error": (torch.cat(rows, 2) - whole).abs().max().item(), "full": sizes[keep - 1], "last": sizes[-1]}


def cache_is_constant(found: Figures) -> Finding:
    """Decoding is the definition to 1e-9, and the state of w tokens is that of 16 w."""
    error, sizes = max(found("error")), set(found("full")) | set(found("last"))
    told = f"decoding differs by {error:.0e} over 16 w tokens; {', '.join(f'{size:,}' for size in sorted(sizes))} bytes"
    return Finding.of(f"{told} after w and after 16 w", error < 1e-9, len(sizes) == 1)


GRID = (8, 16, 16)
"""Frames, height and width of a smooth video."""


def smooth(count: int, generator: torch.Generator, waves: int = 24) -> Tensor:
    """``(count, 1, 4, cells, 32)``: random fields of low frequency over the grid, each coordinate of variance one."""
    axes = torch.meshgrid(*(torch.linspace(0, 1, size) for size in GRID), indexing="ij")
    places = torch.stack([axis.flatten() for axis in axes], 1)
    frequency = 2 * torch.randn(count, 1, 4, 3, waves, generator=generator)
    phase = 6.3 * torch.rand(count, 1, 4, 1, waves, generator=generator)
    wave = torch.cos(places @ frequency + phase)
    field = wave @ torch.randn(count, 1, 4, waves, 32, generator=generator)
    return (field - field.mean(3, keepdim=True)) / field.std(3, keepdim=True)


def kept_of(mechanism: Routed, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> dict[str, float]:
    """How much a bidirectional mechanism skips, and how near it is to dense attention."""
    dense, out = Softmax()(q, k, v), mechanism(q, k, v, layout)
    seen = (mechanism.weights(q, k, layout) > 0).double().mean().item()
    cosine = torch.nn.functional.cosine_similarity(out.flatten(), dense.flatten(), dim=0).item()
    return {"skipped": 1 - seen, "cosine": cosine, "error": ((out - dense).abs().sum() / dense.abs().sum()).item()}


@measured(seed=range(3), scope=("query_head", "head_global"), share=(0.25, 0.3))
def video(seed: int, scope: str, share: float) -> dict[str, float]:
    """What a share of the scaled scores, one of the authors' two, keeps of attention among smooth fields.

    Blocks are of 4 × 4 × 4 cells.
    """
    generator = torch.Generator().manual_seed(seed)
    states, v = smooth(2, generator)
    mechanism = VideoBlocks(share=share, scope=scope, chunks=((4, 4, 4),))  # pyright: ignore[reportArgumentType]
    return kept_of(mechanism, states, states, v, Layout(grid=GRID))


def video_is_kept(found: Figures) -> Finding:
    """At least 60% skipped at a cosine of 0.98, for both scopes, by a share of 0.3; a share of 0.25 is told too."""
    told, held = [], []
    for share in (0.25, 0.3):
        for scope in ("query_head", "head_global"):
            skipped, cosine = (found.mean(name, scope=scope, share=share) for name in ("skipped", "cosine"))
            told.append(f"{scope} {share:g}: {skipped:.1%} skipped at a cosine of {cosine:.4f}")
            held += [skipped >= 0.6, cosine >= 0.98] if share == 0.3 else []
    return Finding.of("; ".join(told), *held)


@measured(seed=range(3))
def coherent(seed: int) -> dict[str, float]:
    """What the published defaults skip of attention among smooth fields, the cells in runs of 64 that are near."""
    generator = torch.Generator().manual_seed(seed)
    states, v = smooth(2, generator)
    places = torch.arange(states.shape[2]).view(2, 4, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).flatten()
    q, k, v = (x[:, :, places] for x in (states, states, v))
    return kept_of(Sparge(), q, k, v, Layout())


def coherence_is_used(found: Figures) -> Finding:
    """At least half skipped at a relative L1 error below 0.05."""
    skipped, error = found.mean("skipped"), found.mean("error")
    return Finding.of(f"{skipped:.1%} skipped at a relative L1 error of {error:.3f}", skipped >= 0.5, error < 0.05)


@measured(sparsity=(2, 4, 8), seed=range(2))
def expert_choice(sparsity: int, seed: int) -> dict[str, float]:
    """The share of pairs that attend, and of tokens taken whose being taken later tokens change, by both ways."""
    generator, n = torch.Generator().manual_seed(seed), 512
    q, k = torch.randn(2, 1, 4, n, 16, generator=generator)
    route, later = torch.rand(2, 1, 4, n, generator=generator)
    changed = torch.cat([route[:, :, : n // 2], later[:, :, n // 2 :] ** 0.5], 2)
    found = {}
    for name, mechanism in (("best", ExpertChoice(sparsity)), ("threshold", ExpertChoice(threshold=1 - 1 / sparsity))):
        maps = [mechanism.weights(q, k, Layout(causal=True), route=given) > 0 for given in (route, changed)]
        taken = [each.diagonal(dim1=2, dim2=3)[:, :, : n // 2] for each in maps]
        found[f"{name}_pairs"] = 2 * maps[0].double().mean().item()
        found[f"{name}_changed"] = ((taken[0] != taken[1]).sum() / taken[0].sum()).item()
    return found


def experts_leak(found: Figures) -> Finding:
    """Pairs are 1 / s² of all to 2%, at least a tenth of the choice changes with the best, none by a threshold."""
    shares = [row["best_pairs"] * row["sparsity"] ** 2 for row in found.rows]
    changed = found.by("sparsity", "best_changed")
    told = ", ".join(f"{sum(each) / len(each):.0%} at sparsity {s}" for s, each in changed.items())
    return Finding.of(
        f"pairs times s² {min(shares):.3f} to {max(shares):.3f}; of what is taken, later tokens change {told}, and "
        f"{max(found('threshold_changed')):.0%} by a threshold",
        all(abs(share - 1) <= 0.02 for share in shares),
        min(found("best_changed")) >= 0.1,
        max(found("threshold_changed")) == 0,
    )


@measured(tokens=(1024, 4096, 16384))
def walks(tokens: int) -> dict[str, float]:
    """How many keys one query looks at, 64 blocks of 2 kept, and what 2 k (log₂(n / k) + 1) is."""
    router, looked = Halves(2, 64, 0), 0
    rows = router.rows(torch.tensor([[tokens - 1]]), tokens, True)
    scores = torch.randn(1, 1, 1, rows.blocks, generator=torch.Generator().manual_seed(0))

    def score_at(low: Tensor, high: Tensor) -> Tensor:
        nonlocal looked
        looked += low.shape[3]
        return scores.gather(3, low)

    router.walked(score_at, rows, 1, 1)
    return {"looked": looked, "most": 2 * 64 * (math.log2(tokens / 128) + 1)}


def looks_at_few(found: Figures) -> Finding:
    """Never more than that."""
    told = ", ".join(f"{row['looked']:,} of {row['tokens']:,}" for row in found.rows)
    return Finding.of(f"keys looked at: {told}", all(row["looked"] <= row["most"] for row in found.rows))


@measured(seed=range(1))
def pruned_recall(seed: int) -> dict[str, float]:
    """The recall of `recalls` with walks to 128 blocks of 2 keys and the 16 nearest ones, and dense."""
    walks = {"walked": HierarchicallyPruned(2, 128, 16), "bounds": HierarchicallyPruned(2, 128, 16, bound=True)}
    return recalled(seed, {"dense": None, **walks})


def pruning_keeps_recall(found: Figures) -> Finding:
    """95% of dense recall, by first keys, as published; by bounds it is told."""
    dense, walked, bounds = (found.mean(name) for name in ("dense", "walked", "bounds"))
    told = f"recall of {walked:.1%}, dense {dense:.1%}; by bounds, which are not of the paper, {bounds:.1%}"
    return Finding.of(told, walked >= 0.95 * dense)
