"""Heads that SmolLM2 uses for indirect objects, and what they do for coloured objects, told where to look."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from regard.analysis.base import Head
from regard.analysis.circuit_roles import Mentions, circuit_roles
from regard.analysis.sweep import LogitDifference, Pair, by_layer, heads_of, random_like
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.key_values import smollm2
from regard.claims.testbeds.sentences import coloured_objects, indirect_object
from regard.edits import AttendTo
from regard.hosts.attach import attach

PAIRS, TEXTS, DRAWS = 2, 40, 2
"""Pairs that roles are found on, texts that are answered, draws of other heads."""


def slots(told: Any, text: str, word: str, after: int = 0) -> int:
    """The slot of the last token of a word, looked for from a character on."""
    end = text.index(word, after) + len(word)
    return max(i for i, (start, stop) in enumerate(told.offset_mapping) if start < end <= stop)


def indirect(tokenizer: Any, count: int, seed: int) -> list[Mentions]:
    """Indirect objects: the giver is named twice, and is the wrong answer."""
    draw, found = Random(seed), []
    while len(found) < count:
        base, donor, right, wrong = indirect_object(draw)
        told, other = (tokenizer(text, return_offsets_mapping=True) for text in (base, donor))
        answers = [tokenizer(f" {name}", add_special_tokens=False).input_ids for name in (right, wrong)]
        if len(told.input_ids) == len(other.input_ids) and all(len(answer) == 1 for answer in answers):
            first = slots(told, base, wrong)
            second = slots(told, base, wrong, base.index(wrong) + 1)
            pair = paired(told, other, answers)
            found.append(Mentions(pair, first, second, (first, second)))
    return found


def coloured(tokenizer: Any, count: int, seed: int) -> list[Mentions]:
    """Coloured objects: one of three things is named again, and the colours of the other two are wrong."""
    draw, found = Random(seed), []
    while len(found) < count:
        base, donor, right, wrong = coloured_objects(draw)
        told, other = (tokenizer(text, return_offsets_mapping=True) for text in (base, donor))
        answers = [tokenizer(f" {name}", add_special_tokens=False).input_ids for name in (right, wrong)]
        shown = [part.split()[1] for part in base.split("is a ")[1].join(("a ", "")).split(".")[0].split(", ")]
        thing = base.split("colour is the ")[1].split("?")[0]
        if len(told.input_ids) == len(other.input_ids) and all(len(answer) == 1 for answer in answers):
            others = tuple(slots(told, base, f" {colour}") for colour in shown if colour != right)
            first = slots(told, base, thing)
            second = slots(told, base, thing, base.index(thing) + 1)
            found.append(Mentions(paired(told, other, answers), first, second, others))
    return found


def paired(base: Any, donor: Any, answers: Sequence[Sequence[int]]) -> Pair:
    """A pair measured by the first tokens of its answers."""
    texts = (torch.tensor(of.input_ids) for of in (base, donor))
    return Pair(*texts, LogitDifference(answers[0][0], answers[1][0]))  # pyright: ignore[reportCallIssue]


TASKS = {"indirect object": indirect, "coloured objects": coloured}


@measured(task=tuple(TASKS))
def roles(task: str) -> dict[str, float | str]:
    """The heads of SmolLM2's circuit for a task by their role."""
    model, tokenizer = smollm2()
    found = circuit_roles(model, TASKS[task](tokenizer, PAIRS, 0))
    named = {role: " ".join(f"{layer}.{head}" for layer, head in some) for role, some in found.heads.items()}
    return {"heads": " ".join(f"{layer}.{head}" for layer, head in found.every), **named}


def most_are_shared(found: Figures) -> Finding:
    """Three quarters of the smaller circuit, as the paper finds of 78%; and of 270 heads chance gives a tenth."""
    one, other = (set(heads.split()) for heads in found("heads"))
    share = len(one & other) / min(len(one), len(other))
    figure = f"SmolLM2's circuits of {len(one)} and {len(other)} heads share {len(one & other)}, {share:.0%}"
    return Finding.of(figure, share >= 0.75)


@measured()
def mended() -> dict[str, float | str]:
    """Coloured objects that SmolLM2 tells, and with heads of indirect objects that look at the two wrong colours.

    The heads are the three inhibition heads that matter most, or as many as there are, and the first negative mover. A
    text is right if the colour asked for is the likeliest of the three that it has, or of all tokens (``first``).
    """
    model, tokenizer = smollm2()
    found = circuit_roles(model, indirect(tokenizer, PAIRS, 0), stages=2)
    heads = [*found.heads["inhibition"][:3], *found.heads["negative mover"][:1]]
    texts = coloured(tokenizer, TEXTS, 1)
    figures: dict[str, float | str] = {"heads": " ".join(f"{layer}.{head}" for layer, head in heads)}
    figures |= told(model, texts, [], "plain") | told(model, texts, heads, "mended")
    for draw in range(DRAWS):
        figures |= told(model, texts, random_like(heads, heads_of(model), draw), f"random {draw}")
    return figures


@torch.no_grad()
def told(model: Any, texts: Sequence[Mentions], heads: Sequence[Head], name: str) -> dict[str, float]:
    """The shares of texts that are right, some heads' last rows at the wrong colours."""
    right, first = 0, 0
    for one in texts:
        keys = [(slot, slot + 1) for slot in one.wrong]
        edits = [AttendTo(keys, heads=by_layer(heads), rows="last")] if heads else []
        with attach(model, edits=edits):
            logits = model(input_ids=one.pair.base[None], use_cache=False, logits_to_keep=1).logits[0, -1]
        answer = one.pair.metric.right  # pyright: ignore[reportFunctionMemberAccess]
        options = torch.tensor([answer, *one.pair.base[list(one.wrong)].tolist()])
        right, first = right + int(logits[options].argmax() == 0), first + int(logits.argmax() == answer)
    return {name: right / len(texts), f"{name} first": first / len(texts)}


def is_mended(found: Figures) -> Finding:
    """By twenty points or more, where heads at random of the same layers give five at most."""
    plain, after = found.one("plain"), found.one("mended")
    random = [found.one(f"random {draw}") for draw in range(DRAWS)]
    figure = (
        f"SmolLM2 tells {plain:.0%} of coloured objects among the three, {after:.0%} with heads {found.one('heads')} "
        f"at the wrong ones, {listed(random, '.0%')} with others of their layers; as likeliest of all tokens "
        f"{found.one('plain first'):.0%} and {found.one('mended first'):.0%}"
    )
    return Finding.of(figure, after - plain >= 0.2, max(random) - plain <= 0.05)
