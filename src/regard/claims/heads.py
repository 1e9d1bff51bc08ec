"""What heads do in language models that are there: found on some texts, taken out on others, with heads at random."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import combinations
from random import Random
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.base import Head, HeadScores, Prompt, run_together, subject_of
from regard.analysis.flow import WatchedMaps, max_flow, rollout
from regard.analysis.head_gates import CausalHeadGating, heads_above
from regard.analysis.head_importance import HeadImportance, ordered, text_loss
from regard.analysis.induction_heads import InductionHeads, repeats
from regard.analysis.patching import SitePatching
from regard.analysis.path_patching import circuit, kept_by
from regard.analysis.retrieval_heads import RetrievalHeads, answered, manual, needles, recalled
from regard.analysis.sinks import SinkHeads, windows
from regard.analysis.sweep import by_layer, heads_of, random_like
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.key_values import gain, smollm2
from regard.claims.testbeds.sentences import TASKS, pairs, prompts
from regard.edits.ablation import HeadAblation
from regard.experiments.cell import Cell
from regard.hosts.attach import attach
from regard.hosts.small import TITLES, load

LENGTHS, DEPTHS = (128, 256, 512), (0.1, 0.3, 0.5, 0.7, 0.9)
HEADS, BEST = 270, 13
"""Of SmolLM2, and a twentieth of them."""
DRAWS = range(5)


def named(heads: Sequence[Head]) -> str:
    """``"18.6 17.4"``: layers and heads, as a row of results keeps them."""
    return " ".join(f"{layer}.{head}" for layer, head in heads)


def over(values: Tensor) -> dict[str, float]:
    """Mean and bootstrapped 95% interval of ``(texts,)``."""
    return dict(zip(("mean", "low", "high"), gain(torch.zeros_like(values)[:, None], values[:, None]), strict=True))


@measured(length=LENGTHS)
def retrieval(length: int) -> dict[str, float | str]:
    """The heads of SmolLM2 that copy digits out of prompts of so many tokens, from 0.1 on."""
    model, tokenizer = smollm2()
    runs = list(answered(model, needles(tokenizer, [length], DEPTHS)))
    found = RetrievalHeads().run(model, runs).ranked(RetrievalHeads.threshold)
    return {"runs": len(runs), "count": len(found), "heads": named([(layer, head) for layer, head, _ in found])}


def few_and_the_same(found: Figures) -> Finding:
    """At most 8% of the heads at every length; of any two lengths, 70% of the fewer are among the more."""
    sets = [set(heads.split()) for heads in found("heads")]
    overlap = min(len(a & b) / max(1, min(len(a), len(b))) for a, b in combinations(sets, 2))
    shares = [len(heads) / HEADS for heads in sets]
    figure = (
        f"{listed(shares, '.1%')} of SmolLM2's heads at {listed(LENGTHS, 'd')} tokens, overlap at least {overlap:.0%}"
    )
    return Finding.of(figure, min(shares) > 0, max(shares) <= 0.08, overlap >= 0.7)


@measured()
def recall() -> dict[str, float]:
    """What SmolLM2 recalls of held-out digits: whole, without its 13 best retrieval heads, without 13 at random."""
    model, tokenizer = smollm2()
    runs = list(answered(model, needles(tokenizer, [256], DEPTHS, seed=1)))
    best = [(layer, head) for layer, head, _ in RetrievalHeads().run(model, runs).ranked()[:BEST]]
    held_out = needles(tokenizer, [256], (*DEPTHS, 0.2), seed=2)
    whole, without = recalls(model, held_out, []), recalls(model, held_out, best)
    lost = over(whole - without)
    figures = {"whole": whole.mean().item(), "without": without.mean().item()}
    figures |= {"lost": lost["mean"], "low": lost["low"], "high": lost["high"]}
    for draw in DRAWS:
        figures[f"random {draw}"] = recalls(model, held_out, random_like(best, heads_of(model), draw)).mean().item()
    return figures


@torch.no_grad()
def recalls(model: Any, held_out: Sequence[Prompt], heads: Sequence[Head]) -> Tensor:
    """``(prompts,)``: the share of each needle's tokens in the greedy answer, without some heads."""
    ids = torch.stack([prompt.ids for prompt in held_out])
    with attach(model, edits=[HeadAblation(by_layer(heads))] if heads else []):
        answers = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    return torch.tensor([recalled(p, answer) for p, answer in zip(held_out, answers, strict=True)])


def recalls_nothing_without(found: Figures) -> Finding:
    """Without the best, recall falls by 60 points or more, the interval's lower end too; by 10 at most at random."""
    whole, random = found.one("whole"), [found.one(f"random {draw}") for draw in DRAWS]
    figure = (
        f"recall of digits {whole:.0%}, without the {BEST} best {found.one('without'):.0%} ({found.one('low'):.0%} to "
        f"{found.one('high'):.0%} lost), without {BEST} random of their layers {listed(random, '.0%')}"
    )
    return Finding.of(figure, found.one("low") >= 0.6, whole - min(random) <= 0.1)


@measured()
def sinks() -> dict[str, float]:
    """The share of SmolLM2's heads whose sink is the first token, by text, and the largest share of any other token."""
    model, tokenizer = smollm2()
    shares = by_position(model, windows(tokenizer(manual()).input_ids, most=8))
    others = shares[:, 1:].mean(0)
    first = over(shares[:, 0])
    found = first | {"other": others.max().item(), "other at": 1 + int(others.argmax())}
    return found | {"other of the first half": others[:31].max().item()}


def by_position(model: Any, texts: Any, tokens: int = 64) -> Tensor:
    """``(texts, tokens)``: the share of heads of which each token is a sink."""
    found = []
    for text in texts:
        probe = SinkHeads(tokens).probe(text)
        subject_of(model).show(text.ids[None], [probe])
        scores = [HeadScores("sink", SinkHeads(tokens, position=at).found(probe)) for at in range(tokens)]
        found.append([float(torch.cat(list(score.values.values())).mean()) for score in scores])
    return torch.tensor(found)


def the_first_token(found: Figures) -> Finding:
    """60% of the heads or more, the interval too."""
    low, high = found.one("low"), found.one("high")
    return Finding.of(f"SmolLM2: {found.one('mean'):.1%} of the heads ({low:.1%} to {high:.1%})", low >= 0.6)


def no_other_token(found: Figures) -> Finding:
    """5% at most, of every other position."""
    most, at, early = (found.one(f"other{what}") for what in ("", " at", " of the first half"))
    figure = f"others at most {most:.1%} of the heads (position {at} of 64), {early:.1%} among the first 32"
    return Finding.of(figure, most <= 0.05)


@measured()
def induction() -> dict[str, float | str]:
    """The heads of SmolLM2 that match prefixes of repeated random tokens, and what these tokens cost without them."""
    model, _ = smollm2()
    best = run_together([InductionHeads()], model, repeats(49_000))["induction"].ranked(InductionHeads.threshold)
    heads, texts = [(layer, head) for layer, head, _ in best], repeats(49_000, seed=1)
    whole, without = saved(model, texts, []), saved(model, texts, heads)
    lost = over(1 - without / whole)
    figures: dict[str, float | str] = {"count": len(best), "best": max((x for *_, x in best), default=0.0)}
    figures |= {"heads": named(heads), "saved": whole.mean().item()} | lost
    for draw in DRAWS:
        random = saved(model, texts, random_like(heads, heads_of(model), draw))
        figures[f"random {draw}"] = (1 - random / whole).mean().item()
    return figures


@torch.no_grad()
def saved(model: Any, texts: Sequence[Prompt], heads: Sequence[Head]) -> Tensor:
    """``(texts,)``: nats a token that the repetition saves, without some heads."""
    found = []
    with attach(model, edits=[HeadAblation(by_layer(heads))] if heads else []):
        for text in texts:
            logits = model(input_ids=text.ids[None], use_cache=False).logits[0, :-1]
            losses, block = cross_entropy(logits, text.ids[1:], reduction="none"), len(text.ids) // 2
            found.append(losses[: block - 1].mean() - losses[block:].mean())
    return torch.stack(found)


def few_match_prefixes(found: Figures) -> Finding:
    """Some heads reach 0.4, and at most 5% of all do."""
    count, best = found.one("count"), found.one("best")
    return Finding.of(f"SmolLM2: {count} of {HEADS} heads from 0.4 on, the best {best:.2f}", 1 <= count <= HEADS / 20)


def repetition_is_lost_without(found: Figures) -> Finding:
    """Without them 70% or more of what repetition saves is lost, the interval's lower end too, and less at random."""
    random, low = [found.one(f"random {draw}") for draw in DRAWS], found.one("low")
    figure = (
        f"a repetition saves {found.one('saved'):.1f} nats a token; without these heads {found.one('mean'):.0%} of it "
        f"is lost ({low:.0%} to {found.one('high'):.0%}), without random ones of their layers {listed(random, '.0%')}"
    )
    return Finding.of(figure, low >= 0.7, max(random) < low)


@measured()
def pruned() -> dict[str, float]:
    """By how much SmolLM2's loss rises on held-out texts without a fifth of its heads, least important or random."""
    model, tokenizer = smollm2()
    ids, off = torch.tensor(tokenizer(manual()).input_ids), round(0.2 * HEADS)
    scores = HeadImportance().run(model, [Prompt(ids[start : start + 256]) for start in range(0, 2304, 256)])
    texts = [ids[start : start + 256] for start in range(2400, len(ids) - 256, 256)][:12]
    whole, few = text_loss(model, texts), len(DRAWS) - 1
    raw, normed = (text_loss(model, texts, ordered(scores, by_norm)[:off]) / whole - 1 for by_norm in (False, True))
    figures = over(raw) | {f"normed {what}": value for what, value in over(normed).items()}
    for draw in DRAWS:
        without = text_loss(model, texts[:few], Random(draw).sample(heads_of(model), off))
        figures[f"random {draw}"] = (without / whole[:few] - 1).mean().item()
    return figures


def costs_little(found: Figures) -> Finding:
    """At most a tenth of the loss, the interval's upper end too."""
    figure = f"SmolLM2, 54 of {HEADS} heads by raw importance: loss {told_rise(found)}"
    return Finding.of(
        f"{figure}, by importance normed in each layer {told_rise(found, 'normed ')}", found.one("high") <= 0.1
    )


def told_rise(found: Figures, kind: str = "") -> str:
    """The rise and its interval."""
    return "{:+.1%} ({:+.1%} to {:+.1%})".format(*(found.one(f"{kind}{what}") for what in ("mean", "low", "high")))


def random_costs_twice(found: Figures) -> Finding:
    """Every random fifth costs at least twice as much."""
    rise, random = found.one("mean"), [found.one(f"random {draw}") for draw in DRAWS]
    return Finding.of(f"random fifths {min(random):+.1%} to {max(random):+.1%}", min(random) >= 2 * rise)


@measured(task=TASKS)
def carried(task: str) -> dict[str, float | str]:
    """The share of a task's logit difference that a quarter of regard-tiny's heads keeps, and random quarters do."""
    model, tokenizer = load("tiny")
    heads = circuit(SitePatching("z", (None,)).run(model, pairs(tokenizer, task, 16, 0)), 8)
    held_out = pairs(tokenizer, task, 16, 1)
    kept = kept_by(model, held_out, heads)
    rows = torch.randint(16, (2000, 16), generator=torch.Generator().manual_seed(0))
    medians = kept[rows].median(1).values
    figures: dict[str, float | str] = {"heads": named(heads), "kept": float(kept.median())}
    figures |= {"low": medians.quantile(0.025).item(), "high": medians.quantile(0.975).item()}
    for draw in DRAWS:
        figures[f"random {draw}"] = float(kept_by(model, held_out, Random(draw).sample(heads_of(model), 8)).median())
    return figures


def of_task(task: str) -> Cell:
    return carried.cell(task=task)


def a_quarter_carries(found: Figures) -> Finding:
    """A quarter of the heads keeps 80% or more, random quarters 30% at most."""
    random = [found.one(f"random {draw}") for draw in DRAWS]
    figure = (
        f"8 of regard-tiny's 32 heads keep {found.one('kept'):.0%} ({found.one('low'):.0%} to {found.one('high'):.0%}) "
        f"of the difference for {found.one('task')}, random eights at most {max(random):.0%}"
    )
    return Finding.of(figure, found.one("kept") >= 0.8, max(random) <= 0.3)


def heads_are_shared(found: Figures) -> Finding:
    """The circuits of both tasks share at least three times as many heads as chance gives."""
    one, other = (set(heads.split()) for heads in found("heads"))
    return Finding.of(f"the circuits share {len(one & other)} heads of 8, where chance gives 2", len(one & other) >= 6)


@measured(model=("minilm", "tiny"))
def followed(model: str) -> dict[str, float]:
    """Rank correlation, over the tokens of 20 sentences, of maps with the effect of hiding a token from the model.

    Of MiniLM's state of its first token, or of regard-tiny's log-probabilities of the next one; by the mean map of the
    last layer, by rollout and by maximum flow.
    """
    network, tokenizer = load(model)
    found = []
    for pair in pairs(tokenizer, "indirect object", 20, 3):
        ids, to = pair.base, 0 if model == "minilm" else len(pair.base) - 1
        tokens = list(range(1, len(ids) - 1))
        effect, maps = hidden_one_by_one(network, ids, to, tokens), WatchedMaps(network, ids)
        raw = maps.rows(maps.layers - 1, torch.tensor([to]))[0].mean(0)[0]
        ways = (raw, rollout(maps, [to])[0], max_flow(maps, [to], tokens)[0])
        found.append([spearman(way[tokens], effect) for way in ways])
    raw, *others = torch.tensor(found).T
    figures = {"raw": raw.mean().item()}
    for name, way in zip(("rollout", "flow"), others, strict=True):
        figures |= {name: way.mean().item(), **{f"{name} {what}": x for what, x in over(way - raw).items()}}
    return figures


def of_model(model: str) -> Cell:
    return followed.cell(model=model)


@torch.no_grad()
def hidden_one_by_one(model: Any, ids: Tensor, to: int, tokens: Sequence[int]) -> Tensor:
    """``(tokens,)``: how far the model's output at ``to`` moves where no token attends to one of ``tokens``."""
    mask = torch.ones(len(tokens) + 1, len(ids), dtype=torch.int64)
    mask[torch.arange(len(tokens)), torch.tensor(tokens)] = 0
    out = model(input_ids=ids.expand(len(mask), -1), attention_mask=mask)
    told = out.logits[:, to].log_softmax(-1) if "logits" in out else out.last_hidden_state[:, to]
    if "logits" not in out:
        return (told[:-1] - told[-1]).norm(dim=-1)
    return (told[-1].exp() * (told[-1] - told[:-1])).sum(-1)


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation."""
    from scipy.stats import rankdata

    ranks = [torch.as_tensor(rankdata(values.numpy())) for values in (x, y)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def follow_better(found: Figures) -> Finding:
    """Rollout and flow correlate more than the raw map does, the intervals of the differences above 0."""
    ways = {way: found.one(way) for way in ("rollout", "flow")}
    lows = [found.one(f"{way} low") for way in ways]
    shown = (
        f"{way} {x:.2f} ({found.one(f'{way} low'):+.2f} to {found.one(f'{way} high'):+.2f})" for way, x in ways.items()
    )
    figure = f"Spearman with the effect in {TITLES[found.one('model')]}: raw attention {found.one('raw'):.2f}"
    return Finding.of(f"{figure}, {', '.join(shown)}", min(lows) > 0)


@measured(seed=range(2), steps=[500])
def gated(seed: int, steps: int) -> dict[str, float]:
    """Indirect objects that regard-tiny tells without heads by their fitted role, and without as many at random."""
    model, tokenizer = load("tiny")
    gates = CausalHeadGating(steps, 32, seed=seed).run(model, prompts(tokenizer, "indirect object", 64, 0))
    held_out, off = prompts(tokenizer, "indirect object", 64, 1), round(0.2 * len(heads_of(model)))
    figures = {"whole": right(model, held_out, [])}
    for role in ("facilitating", "irrelevant"):
        figures[role] = right(model, held_out, heads_above(gates, role, off))
    random = [right(model, held_out, Random(draw).sample(heads_of(model), off)) for draw in DRAWS]
    return figures | {"random": mean(random)}


@torch.no_grad()
def right(model: Any, held_out: Sequence[Prompt], heads: Sequence[Head]) -> float:
    """The share of answers whose first token is the likeliest, without some heads."""
    ids = torch.stack([prompt.ids for prompt in held_out])
    with attach(model, edits=[HeadAblation(by_layer(heads))] if heads else []):
        logits = model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=1).logits[:, -1]
    return (logits.argmax(-1) == ids[:, -1]).double().mean().item()


def needed_and_not(found: Figures) -> Finding:
    """Accuracy falls by 50 points or more without the most facilitating fifth, by 2 at most without the irrelevant."""
    whole, needed, idle = (found(name) for name in ("whole", "facilitating", "irrelevant"))
    figure = (
        f"regard-tiny tells {listed(whole, '.0%')} of indirect objects, {listed(needed, '.0%')} without the most "
        f"facilitating fifth of its heads, {listed(idle, '.0%')} without the most irrelevant, "
        f"{listed(found('random'), '.0%')} without random fifths"
    )
    falls = [w - n for w, n in zip(whole, needed, strict=True)]
    costs = [w - i for w, i in zip(whole, idle, strict=True)]
    return Finding.of(figure, min(falls) >= 0.5, max(costs) <= 0.02)


@measured(seed=range(3), steps=[500])
def noisy(seed: int, steps: int) -> dict[str, float]:
    """How much a head of regard-tiny interferes whose output weights are noise, three times as large as they were."""
    shipped, tokenizer = load("tiny")
    model, draw = copy.deepcopy(shipped), Random(seed)
    layer, head = draw.choice(heads_of(model))
    size = model.config.hidden_size // model.config.num_attention_heads
    weight = model.model.layers[layer].self_attn.o_proj.weight.data[:, head * size : (head + 1) * size]
    weight.copy_(3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    gates = CausalHeadGating(steps, 32, seed=seed).run(model, prompts(tokenizer, "indirect object", 64, 0))
    return {"layer": layer, "head": head, "interfering": float(gates.interfering[layer, head])}


def noise_interferes(found: Figures) -> Finding:
    """At least 0.8."""
    values = found("interfering")
    return Finding.of(f"heads of noise interfere by {listed(values, '.2f')}", min(values) >= 0.8)
