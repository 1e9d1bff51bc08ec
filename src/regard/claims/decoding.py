"""Decoding strategies: on lookups among ten pairs in SmolLM2, and a damaged regard-tiny beside the whole one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from regard.analysis.base import Prompt
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import (
    DEPTHS,
    DIGITS,
    HEADER,
    LINE,
    PAIRS,
    Lookups,
    drawn,
    gain,
    ids,
    line,
    random_heads,
    smollm2,
)
from regard.decoding.attention_buckets import AttentionBuckets
from regard.decoding.base import Mixture
from regard.decoding.hicd import HICD
from regard.decoding.monitoring import MonitoringDecoding
from regard.hosts.small import load

SEARCHED, HELD_OUT = 2, 6
"""Contexts that are searched, and those that are held out; five lookups in each."""
FACTORS = (0.3, 0.6, 1.6, 3.0)
"""Of SmolLM2's rotary base of 10⁵, among which the buckets are searched."""
HEADS = 30


@torch.no_grad()
def answered(lookups: Lookups, strategy: Mixture | None = None) -> tuple[Tensor, Tensor]:
    """``(log-probability of a digit, share of digits that are the likeliest)``, each ``(contexts, depths)``."""
    model, _ = smollm2()
    logs, right = [], []
    for context, asked in zip(lookups.contexts, lookups.asked, strict=True):
        texts = torch.cat([context.expand(len(asked), -1), asked], 1)
        copies = 1 if strategy is None else strategy.copies
        if strategy is None:
            logits = model(input_ids=texts, use_cache=False).logits[:, -DIGITS - 1 : -1].float()
        else:
            with strategy.running(model, len(texts), range(copies)):
                rows = model(input_ids=texts.repeat_interleave(copies, 0), use_cache=False).logits
            each = rows[:, -DIGITS - 1 : -1].float().unflatten(0, (-1, copies)).transpose(1, 2)
            logits = strategy.mixed(each.flatten(0, 1)).unflatten(0, (len(texts), -1))
        digits = asked[:, -DIGITS:]
        logs.append(logits.log_softmax(-1).gather(2, digits[..., None])[..., 0].mean(1))
        right.append((logits.argmax(-1) == digits).double().mean(1))
    return torch.stack(logs), torch.stack(right)


@measured()
def bucketed() -> dict[str, float | str]:
    """Bases added one after the other while the worst place of the searched contexts gains; then on others."""
    lookups = drawn(SEARCHED, 11)
    chosen, worst = (1.0,), answered(lookups)[0].mean(0).min()
    while left := [factor for factor in FACTORS if factor not in chosen]:
        tried = {f: answered(lookups, AttentionBuckets((*chosen, f)))[0].mean(0).min() for f in left}
        best = max(tried, key=lambda factor: float(tried[factor]))
        if tried[best] <= worst:
            break
        chosen, worst = (*chosen, best), tried[best]
    unseen = drawn(HELD_OUT, 12)
    plain, own = answered(unseen), answered(unseen, AttentionBuckets(chosen))
    by_depth = zip(DEPTHS, plain[0].mean(0).tolist(), own[0].mean(0).tolist(), strict=True)
    found: dict[str, float | str] = {"factors": ", ".join(map(str, chosen[1:]))}
    for depth, before, after in by_depth:
        found |= {f"plain at {depth}": before, f"mixed at {depth}": after}
    low_place = int(plain[0].mean(0).argmin())
    for name, columns in (("worst", slice(low_place, low_place + 1)), ("all", slice(None))):
        mean, low, high = gain(plain[0][:, columns], own[0][:, columns])
        found |= {f"{name} gain": mean, f"{name} low": low, f"{name} high": high}
    return found


def fills_the_trough(found: Figures) -> Finding:
    """The worst place gains, its interval above zero, and the mean loses nothing."""
    worst, every = ([found.one(f"{name} {what}") for what in ("gain", "low", "high")] for name in ("worst", "all"))
    figure = (
        f"bases 1, {found.one('factors') or 'no other'} times 10⁵: log-probability of a digit at the worst place "
        f"{worst[0]:+.3f} ({worst[1]:+.3f} to {worst[2]:+.3f}), everywhere {every[0]:+.3f} ({every[1]:+.3f} to "
        f"{every[2]:+.3f})"
    )
    return Finding.of(figure, worst[1] > 0, every[0] >= 0)


def told(context: Tensor, asked: Tensor, digits: Tensor) -> Prompt:
    """A context, a key and an answer to it."""
    return Prompt(torch.cat([context, asked[:-DIGITS], digits]))


def with_twins(contexts: int, seed: int) -> Lookups:
    """So many contexts, half of whose keys are others but for a letter, with numbers of their own."""
    _, tokenizer = smollm2()
    source, lines, asked = random.Random(seed), [], []
    for _ in range(contexts):
        pairs = [line(source, tokenizer) for _ in range(PAIRS // 2)]
        pairs += [twin(key, source, tokenizer) for key, _ in pairs]
        source.shuffle(pairs)
        lines.append(ids(tokenizer, HEADER + "".join(f"{key}: {value}\n" for key, value in pairs)))
        asked.append([ids(tokenizer, f"{pairs[depth][0]}: {pairs[depth][1]}") for depth in DEPTHS])
    return Lookups(torch.tensor(lines), torch.tensor(asked))


def twin(key: str, source: random.Random, tokenizer: Any) -> tuple[str, str]:
    """A key that is this one but for a letter, and a number."""
    while True:
        (other, value), place = line(source, tokenizer), source.randrange(len(key))
        like = key[:place] + other[place] + key[place + 1 :]
        if like != key and len(ids(tokenizer, f"{like}: {value}\n")) == LINE:
            return like, value


@cache
def chosen_heads() -> dict[int, list[int]]:
    """Those that HICD disperses, by contexts with their own answers and with those of another key."""
    model, _ = smollm2()
    lookups = with_twins(SEARCHED, 13)
    right, misleading = [], []
    for context, asked in zip(lookups.contexts, lookups.asked, strict=True):
        for place, one in enumerate(asked):
            right.append(told(context, one, one[-DIGITS:]))
            misleading.append(told(context, one, asked[(place + 2) % len(asked)][-DIGITS:]))
    return HICD.of(model, right, misleading, HEADS).heads  # pyright: ignore[reportReturnType]


@measured()
def dispersed() -> dict[str, float]:
    """Digits that are right, greedily, with the contrast, and with that of as many random heads, three draws.

    Half of the keys are others but for a letter: of those that are nothing alike, greedy answers leave 2% to mend.
    """
    unseen = with_twins(HELD_OUT, 14)
    plain = answered(unseen)[1]
    own = answered(unseen, HICD(chosen_heads()))[1]
    mean, low, high = gain(plain, own)
    found = {"greedy": plain.mean().item(), "contrast": own.mean().item(), "gain": mean, "low": low, "high": high}
    for draw in range(3):
        found[f"random {draw}"] = answered(unseen, HICD(random_heads(HEADS, draw)))[1].mean().item()
    return found


def mends(found: Figures) -> Finding:
    """3 points more digits are right than greedily, the interval above zero, and more than with any random heads."""
    greedy, own, low, high = (found.one(name) for name in ("greedy", "contrast", "low", "high"))
    controls = [found.one(f"random {draw}") for draw in range(3)]
    shown = ", ".join(f"{value:.1%}" for value in controls)
    figure = f"digits right {own:.1%}, greedy {greedy:.1%} ({low:+.1%} to {high:+.1%}); random heads {shown}"
    return Finding.of(figure, own - greedy >= 0.03, low > 0, own > max(controls))


LENGTH, ANSWER, SAMPLES = 24, 12, 5


def damaged(model: nn.Module, size: float, seed: int) -> Any:
    """A copy whose matrices are off by a share of their deviation."""
    other, source = deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=source)
                parameter += (size * parameter.std() * noise).to(parameter)
    return other


class Spent:
    """How many new tokens a model was run for, rows of a batch each."""

    def __init__(self, model: nn.Module, prompt: int) -> None:
        self.tokens, self.prompt = 0, prompt
        self.hook = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named["input_ids"]
        self.tokens += ids.numel() if ids.shape[1] < self.prompt else 0


@measured(seed=range(10))
def monitored(seed: int) -> dict[str, float]:
    """Tokens of copies of 24 random ids that are right: damaged alone, monitored, the majority of 5, the reference."""
    reference, _ = load("tiny")
    model, source = damaged(reference, 0.4, seed), random.Random(seed)
    found: dict[str, list[float]] = {}
    spent: dict[str, int] = {}
    for _ in range(12):
        block = torch.tensor([[source.randrange(10, 2000) for _ in range(LENGTH)]])
        prompt = torch.cat([torch.zeros(1, 1, dtype=torch.long), block, block[:, : LENGTH - ANSWER]], 1)
        want = block[0, LENGTH - ANSWER :]
        usual = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": ANSWER, "pad_token_id": 0}
        usual |= {"eos_token_id": None}
        monitor = MonitoringDecoding(reference, 0.3)
        torch.manual_seed(seed)
        for name, who, more in (
            ("greedy", model, {"do_sample": False}),
            ("monitored", model, {"do_sample": False, "custom_generate": monitor}),
            ("majority", model, {"do_sample": True, "num_return_sequences": SAMPLES}),
            ("reference", reference, {"do_sample": False}),
        ):
            count = Spent(who, prompt.shape[1])
            answers = who.generate(prompt, **usual, **more)[:, prompt.shape[1] :]
            count.hook.remove()
            spent[name] = spent.get(name, 0) + count.tokens
            answer = majority(answers.tolist())
            found.setdefault(name, []).append((torch.tensor(answer) == want).double().mean().item())
    return {f"{name} right": sum(each) / len(each) for name, each in found.items()} | {
        f"{name} tokens": float(number) for name, number in spent.items()
    }


def majority(answers: Sequence[Sequence[int]]) -> list[int]:
    """The answer that is given most often, the first of equals."""
    return list(Counter(map(tuple, answers)).most_common(1)[0][0])


def repairs(found: Figures) -> Finding:
    """5 points better than the majority of five samples, for at most half of their tokens, on average over models."""
    own, most = found("monitored right"), found("majority right")
    share = [a / b for a, b in zip(found("monitored tokens"), found("majority tokens"), strict=True)]
    shown = [f"{values[0]:.0%} to {values[-1]:.0%}" for values in map(sorted, (own, most, share))]
    alone = [sorted(found(f"{name} right")) for name in ("greedy", "reference")]
    figure = (
        f"right {shown[0]}, the majority of {SAMPLES} {shown[1]}, for {shown[2]} of its tokens; greedy "
        f"{alone[0][0]:.0%} to {alone[0][-1]:.0%}, the reference alone {alone[1][0]:.0%} to {alone[1][-1]:.0%}"
    )
    return Finding.of(
        f"{figure}; on average {sum(share) / len(share):.0%} of the tokens",
        sum(own) - sum(most) >= 0.05 * len(own),
        sum(share) <= 0.5 * len(share),
    )
