"""Retrieval heads: those whose strongest key is the token that the model copies out of a long context."""

from __future__ import annotations

import pydoc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch

from regard.analysis.base import HeadAnalysis, Prompt, sample_moments
from regard.analysis.planted import samples
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.probes.head_statistics import Moments
from regard.probes.places import NeedleHits

MOST = 50
"""Tokens of an answer at most, as in the authors' code."""
MANUAL = 24_000
"""Characters of it: some 7,000 tokens."""
RECALLED = 0.5
"""Share of the needle's tokens that an answer must have for its run to count, as there."""


@published(
    "retrieval_heads",
    family="observe",
    kind="analysis",
    row=127,
    fidelity="hand values",
    title="Retrieval Head Mechanistically Explains Long-Context Factuality",
    arxiv="2404.15574",
    year=2024,
    claim=(
        Claim(
            "few heads copy from the context, the same ones at other lengths",
            cells="heads.retrieval",
            holds="heads.few_and_the_same",
        ),
        Claim(
            "without them the model no longer recalls, without others it does",
            cells="heads.recall",
            holds="heads.recalls_nothing_without",
        ),
    ),
)
class RetrievalHeads(HeadAnalysis):
    """Retrieval score: the share of a needle's tokens that a head's strongest keys copy while the model answers.

        score_h = mean over runs of Σ_t 1[argmax_j A_tj in needle, token_j = token_{t+1}] / needle length

    over the model's own answer of at most 50 tokens; the query is the token before the copied one. Runs whose answer
    has at most half of the needle do not count. A head is a retrieval head from 0.1 on. Data: `needles`, answered by
    `answered`.

    Paper: Wu et al., arXiv 2404.15574; top-1 keys, threshold and the two limits as in the authors' code.
    """

    name, threshold = "retrieval", 0.1

    @classmethod
    def examples(cls) -> list[Sample]:
        return samples(cls(), [planted_needle(i) for i in range(5)], needle_targets)

    def probe(self, prompt: Prompt) -> NeedleHits:
        if prompt.needle is None or prompt.answer is None:
            raise wrong("prompt", "no needle or no answer", "a prompt of `needles` after `answered`")
        return NeedleHits(prompt.needle, prompt.answer)

    def found(self, probe: NeedleHits) -> Mapping[int, Moments]:
        return sample_moments(probe.result())


def planted_needle(seed: int) -> Prompt:
    """Random ids with five of them said again at the end."""
    ids = torch.randperm(97, generator=torch.Generator().manual_seed(seed))
    return Prompt(torch.cat([ids, ids[7:12]]), (7, 12), 97)


def needle_targets(ids: torch.Tensor) -> torch.Tensor:
    """The key that a head which copies `planted_needle` looks at."""
    return torch.where(torch.arange(len(ids)) >= 96, torch.arange(len(ids)) - 89, -1).clamp(max=11)


@dataclass(frozen=True)
class Needle:
    """The sentence that is hidden, ``before``, digits and ``after``, and the question that the model goes on from."""

    before: str = "\n\nThe special code is"
    after: str = ".\n\n"
    question: str = "\n\nQuestion: What is the special code?\nAnswer: The special code is"
    digits: int = 5


def needles(
    tokenizer: Any,
    lengths: Sequence[int] = (256, 512),
    depths: Sequence[float] = (0.1, 0.5, 0.9),
    haystack: str | None = None,
    needle: Needle = Needle(),
    seed: int = 0,
) -> list[Prompt]:
    """Prompts of ``lengths`` tokens with digits hidden at ``depths`` of the haystack, one of each.

    Args:
        haystack: text to hide in, at least as long as the longest prompt; None for the manual of a Python module.

    Raises:
        ValueError: too little haystack, or no room for the needle.
    """
    random = Random(seed)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    hay, found = ids(manual() if haystack is None else haystack), []
    before, after, question = ids(needle.before), ids(needle.after), ids(needle.question)
    start = [] if tokenizer.bos_token_id is None or not adds_start(tokenizer) else [tokenizer.bos_token_id]
    for length in lengths:
        for depth in depths:
            secret = ids(" " + "".join(str(random.randrange(10)) for _ in range(needle.digits)))
            room = length - len(start) - len(before + secret + after + question)
            if not 1 <= room <= len(hay):
                raise wrong("lengths", str(length), f"a length that {len(hay)} tokens of haystack and the needle allow")
            first, cut = random.randrange(len(hay) - room + 1), round(depth * room)
            filler = hay[first : first + room]
            head = [*start, *filler[:cut], *before]
            whole = torch.tensor([*head, *secret, *after, *filler[cut:], *question])
            found.append(Prompt(whole, (len(head), len(head) + len(secret)), len(whole)))
    return found


def adds_start(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its token of beginning before a text."""
    return list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


def manual() -> str:
    """A text that every Python has."""
    import argparse

    return pydoc.plain(pydoc.render_doc(argparse))[:MANUAL]


@torch.no_grad()
def answered(model: Any, prompts: Sequence[Prompt], most: int | None = None) -> Iterator[Prompt]:
    """The prompts with the model's own greedy answer behind them; those it does not recall are left out.

    Args:
        model: a Transformers model that generates. most: tokens of the answer; None for those of the needle and three.
    """
    for prompt in prompts:
        assert prompt.needle is not None
        start, stop = prompt.needle
        size = stop - start + 3 if most is None else min(most, MOST)
        given = prompt.ids[None].to(model.device)
        whole = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=size, do_sample=False)[0]
        if recalled(prompt, whole.cpu()) > RECALLED:
            yield replace(prompt, ids=whole.cpu())


def recalled(prompt: Prompt, whole: torch.Tensor) -> float:
    """Share of the needle's tokens that the answer has, each as often as it occurs in both (the recall of ROUGE-1)."""
    assert prompt.needle is not None
    assert prompt.answer is not None
    wanted, answer = prompt.ids[slice(*prompt.needle)].tolist(), whole[prompt.answer :].tolist()
    return sum(min(wanted.count(token), answer.count(token)) for token in set(wanted)) / len(wanted)
