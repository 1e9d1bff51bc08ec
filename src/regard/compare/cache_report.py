"""What a model loses when its cache forgets: quality, bytes and time of policies beside the full cache.

A prompt is read once; its cache is copied for each policy and budget. With the question *known* the policy has seen it
when it evicts; *unknown*, it evicts what was read before and the question comes after.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from regard.core.errors import wrong
from regard.core.policy import Policy
from regard.experiments.bootstrap import bootstrap
from regard.hosts import caches
from regard.hosts.budget import Budget
from regard.hosts.compress import Compression, Stored, compress
from regard.policies import Full, Observing
from regard.policies.named import policy_of

DIGITS = 5
CITIES = ("Lisbon", "Oslo", "Cairo", "Quito", "Hanoi", "Dakar", "Lima", "Riga", "Baku", "Perth")
SETTINGS = {"known": True, "unknown": False}


@dataclass(frozen=True)
class Prompt:
    """A text, what is asked about it, and what is to be said.

    Args:
        context, question, answer: token ids ``(n,)``, the last two of at least one token.
    """

    context: Tensor
    question: Tensor
    answer: Tensor


@dataclass(frozen=True)
class Kept:
    """One policy on one prompt.

    Args:
        policy, budget: as text. known: whether the question was read before the eviction. prompt: its number.
        right: share of the answer's tokens that are the likeliest. nats: the answer's mean negative log-probability.
        bytes: of the keys and values when the answer begins. step: seconds of reading a token then.
        evict: seconds of the eviction after the prompt. read: of reading the prompt, with what the policy notes of it
            and its eviction, but not with what others note.
    """

    policy: str
    budget: str
    known: bool
    prompt: int
    right: float
    nats: float
    bytes: int
    step: float
    evict: float
    read: float = 0.0


@cache
def prose() -> str:
    """Text that every Python brings: the language's reference, as the topics of its help."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def needles(tokenizer: Any, length: int, count: int, seed: int = 0, text: str | None = None) -> list[Prompt]:
    """Prompts of ``length`` tokens with one sentence among other text that a question asks for, from all depths.

    Paper: Hsieh et al. (RULER), arXiv 2404.06654: the passkey; here its number has five digits.
    """
    source = random.Random(seed)
    hay = ids_of(tokenizer, text or prose())
    found = []
    for index in range(count):
        city, number = source.choice(CITIES), "".join(source.choice("0123456789") for _ in range(DIGITS))
        needle = ids_of(tokenizer, f"\nThe secret number of {city} is {number}.\n")
        asked = f"\nQuestion: What is the secret number of {city}?\nAnswer: The secret number of {city} is "
        question, answer = ids_of(tokenizer, asked), ids_of(tokenizer, number)
        room = length - len(needle) - len(question)
        if room < 1 or room >= len(hay):
            raise wrong("length", str(length), f"{len(needle) + len(question) + 1} to {len(hay)} tokens")
        start = source.randrange(len(hay) - room)
        at = int((index + 0.5) / count * room)
        context = hay[start : start + at] + needle + hay[start + at : start + room]
        found.append(Prompt(*(torch.tensor(part) for part in (context, question, answer))))
    return found


def continuations(tokenizer: Any, length: int, count: int, seed: int = 0, text: str | None = None) -> list[Prompt]:
    """Prompts of ``length`` tokens of a text, and how it goes on for 64 more."""
    source, ids = random.Random(seed), torch.tensor(ids_of(tokenizer, text or prose()))
    if len(ids) <= length + 64:
        raise wrong("length", str(length), f"at most {len(ids) - 65} tokens of this text")
    starts = [source.randrange(len(ids) - length - 64) for _ in range(count)]
    return [Prompt(*ids[at : at + length + 64].split([length - 1, 1, 64])) for at in starts]


TASKS: Mapping[str, Callable[..., list[Prompt]]] = {"needle": needles, "text": continuations}


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, none added."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def measured(
    model: Any,
    prompts: Sequence[Prompt],
    ways: Sequence[tuple[str | Policy, int | float | str]],
    known: Sequence[bool] = (True, False),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Iterator[Kept]:
    """Every policy at its budget, the ``ways``, on every prompt, beside the full cache, in turn for each prompt."""
    plan = [("full", Full(), "all"), *((str(policy), policy_of(policy), str(budget)) for policy, budget in ways)]
    watcher = Observing(of=tuple(dict.fromkeys(policy for _, policy, _ in plan)))
    total = len(prompts) * len(known) * len(plan)
    done = 0
    for index, prompt in enumerate(prompts):
        read, seconds = DynamicCache(config=model.config), 0.0
        watcher.spent.clear()
        for asked in sorted(known):
            new = torch.cat([prompt.context, prompt.question[:-1]]) if asked else prompt.context
            seconds += read_on(model, watcher, read, new[None, read.get_seq_length() :])
            alone = seconds - sum(watcher.spent.values())
            for name, policy, budget in plan:
                progress(f"{name} at {budget}", done, total)
                done += 1
                size = 1.0 if budget == "all" else Budget.of(budget)
                told = answered(compress(model, policy, size, when="decoding"), read, prompt, asked)
                noting = watcher.spent.get(tuple(policy.keeps), 0.0)
                yield Kept(name, budget, asked, index, *told, alone + noting + told[-1])


def read_on(model: Any, watcher: Policy, read: Any, ids: Tensor) -> float:
    """Reads more tokens ``(1, n)`` into a cache, and gives the seconds of CPU that it took.

    There are none more where the question is a single token: the last one of it is read with the answer.
    """
    if not ids.shape[1]:
        return 0.0
    begun = time.process_time()
    with compress(model, watcher, 1.0) as reading, torch.no_grad():
        reading.take_over(read)
        model(input_ids=ids, logits_to_keep=1, **caches.given(model, read))
    return time.process_time() - begun


def answered(session: Compression, read: Any, prompt: Prompt, known: bool) -> tuple[float, float, int, float, float]:
    """``(right, nats, bytes, seconds a token, seconds of evicting)`` of an answer after what was read."""
    fork, device = copy.deepcopy(read), prompt.answer.device
    rest = prompt.question[-1:] if known else prompt.question
    with session, torch.no_grad():
        session.take_over(fork)
        begun = time.process_time()
        session.evict_from(fork)
        evicted = time.process_time()
        size = Stored(fork).pairs
        ids, logits = torch.cat([rest, prompt.answer[:-1]])[None].to(device), []
        together = 1 if session.policy.reads else max(ids.shape[1] - 1, 1)  # readers read less in single steps alone
        last = time.process_time()
        for part in (*ids[:, :-1].split(together, 1), ids[:, -1:]) if ids.shape[1] > 1 else (ids,):
            last = time.process_time()
            logits.append(session.model(input_ids=part, **caches.given(session.model, fork)).logits[0])
        step = time.process_time() - last
    logs = torch.cat(logits)[-len(prompt.answer) :].float().log_softmax(-1)
    right = (logs.argmax(-1) == prompt.answer).float().mean().item()
    nats = -logs.gather(1, prompt.answer[:, None]).mean().item()
    return right, nats, size, step, evicted - begun


def summed(rows: Sequence[Kept]) -> list[dict[str, Any]]:
    """The mean of each policy and budget, known and unknown, and how its times compare with the full cache's."""
    found: dict[tuple[str, str, bool], list[Kept]] = {}
    for row in rows:
        found.setdefault((row.policy, row.budget, row.known), []).append(row)
    full = {(row.known, row.prompt): row for row in rows if row.policy == "full"}

    def against(some: Sequence[Kept], name: str) -> float:
        """The median of a time's ratios to the full cache's."""
        ratios = sorted(getattr(row, name) / getattr(full[row.known, row.prompt], name) for row in some)
        return ratios[len(ratios) // 2]

    told = []
    for (policy, budget, known), some in found.items():
        means = {
            name: sum(getattr(row, name) for row in some) / len(some) for name in ("right", "nats", "bytes", "evict")
        }
        named = {"policy": policy, "budget": budget, "known": known}
        told.append(
            {**named, **means, "step": against(some, "step"), "read": against(some, "read"), "prompts": len(some)}
        )
    return told


def kept_tokens(
    model: Any, tokenizer: Any, prompt: Prompt, policy: str | Policy, budget: int | float | str, known: bool
) -> dict[str, Any]:
    """Which tokens of a prompt are kept: ``tokens`` as text, and ``kept[layer][kv head]``, their places.

    ``layers`` are the indices of the layers that forget.
    """
    ids = torch.cat([prompt.context, prompt.question[:-1]]) if known else prompt.context
    with compress(model, policy, budget) as session, torch.no_grad():
        model(input_ids=ids[None], use_cache=True, logits_to_keep=1)
    store = session.store
    return {
        "policy": str(policy),
        "budget": str(budget),
        "known": known,
        "tokens": [tokenizer.decode([token]) for token in ids.tolist()],
        "layers": list(store.layers),
        "kept": [[at.tolist() for at in store.kept(layer)] for layer in store.layers],
    }


@dataclass(frozen=True)
class Advice:
    """Which policy to take for so much memory, with the evidence.

    Args:
        policy, budget: the best one; empty where none is recommended. why: what was found, in words.
    """

    policy: str
    budget: str
    why: str

    def __str__(self) -> str:
        return f"take {self.policy} at {self.budget}: {self.why}" if self.policy else f"none is recommended: {self.why}"


FEWEST = 6
"""Prompts, of which all must agree before chance would have it so in one of twenty cases."""
CLOSE = 0.1
"""Nats a token that a smaller budget may lose, for sure no more."""


def advice(rows: Sequence[Kept], known: bool, memory: int | None = None) -> Advice:
    """The policy with the likeliest answers within ``memory`` bytes, or one that does as well at a smaller budget.

    It is recommended if it is surely better than random tokens of the same bytes, which takes six prompts at least.

    Raises:
        ValueError: random tokens were not measured beside the policies, or nothing is within the memory.
    """
    groups: dict[tuple[str, str], list[Kept]] = {}
    for row in rows:
        if row.known == known:
            groups.setdefault((row.policy, row.budget), []).append(row)
    full = groups.pop(("full", "all"))
    fitting = {key: some for key, some in groups.items() if memory is None or most_bytes(some) <= memory}
    randoms = {key: some for key, some in fitting.items() if key[0] == "random"}
    if not randoms or len(fitting) == len(randoms):
        what = f"{len(fitting)} ways within {memory} bytes" if memory is not None else f"{len(fitting)} ways"
        raise wrong("policies", what, "random and another policy, which are within the memory")
    others = {key: some for key, some in fitting.items() if key not in randoms}
    likeliest = min(others.values(), key=mean_nats)
    enough = {key: some for key, some in others.items() if gained(likeliest, some)[1] <= CLOSE}
    (policy, budget), best = min(enough.items(), key=lambda item: (most_bytes(item[1]), mean_nats(item[1])))
    control = randoms.get(("random", budget)) or min(randoms.values(), key=mean_nats)
    low, high = gained(best, control)
    setting = "known" if known else "unknown"
    step = sorted(a.step / b.step for a, b in zip(best, full, strict=True))[len(best) // 2]
    told = (
        f"{len(best)} prompts, question {setting}: {mean_right(best):.0%} of the answer right, "
        f"full cache {mean_right(full):.0%}, random tokens {mean_right(control):.0%}; "
        f"log-probability above random by {low:+.2f} to {high:+.2f}; "
        f"{most_bytes(best) / 1e6:.1f} of {most_bytes(full) / 1e6:.1f} MB; a step takes {step:.2f}× the full cache's"
    )
    if len(best) < FEWEST:
        few = f"{len(best)} prompts are too few, give --prompts {FEWEST} or more"
        return Advice("", "", f"{few}; the best so far, {policy} at {budget}: {told}")
    if low <= 0:
        return Advice("", "", f"the best, {policy} at {budget}, is not surely above random tokens; {told}")
    return Advice(policy, budget, told)


def gained(better: Sequence[Kept], worse: Sequence[Kept]) -> tuple[float, float]:
    """The 95% interval of how much likelier the answers are, prompt by prompt, in nats a token."""
    gains = torch.tensor([b.nats - a.nats for a, b in zip(better, worse, strict=True)])
    if len(gains) < 2:
        return -torch.inf, torch.inf
    low, high = bootstrap(gains)
    return low.item(), high.item()


def most_bytes(rows: Sequence[Kept]) -> int:
    """Of the largest of the caches."""
    return max(row.bytes for row in rows)


def mean_nats(rows: Sequence[Kept]) -> float:
    """Of the answers."""
    return sum(row.nats for row in rows) / len(rows)


def mean_right(rows: Sequence[Kept]) -> float:
    """Share of the answers' tokens."""
    return sum(row.right for row in rows) / len(rows)
