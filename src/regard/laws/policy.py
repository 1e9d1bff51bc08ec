"""The laws of cache policies: what is left is attended to exactly, what is forgotten is gone, and the budget is kept.

They are held on a small Llama of two layers with grouped heads and random weights. Examples are `given` a ``budget``
in tokens of a kv head, 8 where they say nothing; the prompt has 19.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from regard.core.edit import Edit, Place
from regard.core.kinds import Sample
from regard.core.policy import Policy, View
from regard.hosts import caches
from regard.hosts.attach import attach
from regard.hosts.compress import Compression, compress
from regard.laws.finding import Broken, Unclaimed, same
from regard.laws.small import HEAD_DIM, KV_HEADS, VOCABULARY, llama, tokens

LAYERS, PROMPT, BUDGET = 2, 19, 8
STEPS = (PROMPT, 1, 3, 1, 1, 1)
"""Tokens of each pass: a prompt, decoding, and a few tokens at once in between."""
TEXT = sum(STEPS)
CLOSE = 1e-5
Kept = list[list[list[Tensor]]]
"""The positions held, by layer, sequence and kv head."""


def model() -> Any:
    """The model under examination."""
    return llama(LAYERS)


def text(count: int) -> Tensor:
    """So many texts in which no token comes twice: keys of the same token would have the same norm but for rounding."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([3 + torch.randperm(VOCABULARY - 3, generator=generator)[:TEXT] for _ in range(count)])


class Subject:
    """A policy under examination.

    Args:
        sample: the policy. budget: tokens of a kv head.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.size: int = sample.given.get("budget", BUDGET)

    @property
    def forgets(self) -> bool:
        """Whether it ever evicts."""
        return self.sample.thing.forgets

    @property
    def reads(self) -> bool:
        """Whether it reads less than it keeps."""
        return self.sample.thing.reads

    @property
    def policy(self) -> Policy:
        """A copy of its own, which knows nothing of other runs."""
        return copy.deepcopy(self.sample.thing)

    def under(self, budget: int | None = None, **about: Any) -> Compression:
        """A compression of the model by it."""
        return compress(model(), self.policy, self.size if budget is None else budget, **about)

    def run(
        self, ids: Tensor, steps: Sequence[int], session: Any, cache: Any = None, mask: Tensor | None = None
    ) -> tuple[list[Tensor], Any, list[Kept]]:
        """``(logits of each pass, the cache, what was held after each)`` of a text in passes of so many tokens."""
        cache = DynamicCache(config=model().config) if cache is None else cache
        found, held, at = [], [], cache.get_seq_length()
        with session, torch.no_grad():
            for n in steps:
                part, about = slice(at, at + n), {}
                if mask is not None:
                    places = (mask.cumsum(1) - 1).clamp(min=0)
                    about = {"attention_mask": mask[:, : at + n], "position_ids": places[:, part]}
                found.append(model()(input_ids=ids[:, part], **caches.given(model(), cache), **about).logits)
                held.append(positions(cache, session) if isinstance(session, Compression) else [])
                at += n
        return found, cache, held


def positions(cache: Any, session: Compression) -> Kept:
    """What a cache holds after a pass, or what was read of it in the pass where that is less."""
    return [
        session.read.get(rank) or [layer.positions(b) for b in range(layer.batch)]
        for rank, layer in enumerate(cache.layers)
    ]


class Hidden(Edit):
    """Hides what is not held before a pass: the reference, which forgets nothing.

    Args:
        held: what may be seen besides the pass's own tokens.
    """

    def __init__(self, held: Kept) -> None:
        super().__init__()
        self.held = held

    def scores(self, place: Place) -> Tensor:
        group = place.heads // place.kv_heads
        hidden = torch.ones(len(place.keys), place.heads, 1, place.m, dtype=torch.bool)
        hidden[..., place.rows] = False
        for b, heads in enumerate(self.held[place.layer]):
            for head, at in enumerate(heads):
                hidden[b, head * group : (head + 1) * group, :, at] = False
        return torch.where(hidden, -torch.inf, 0.0)


def definition(subject: Subject) -> str:
    """Every pass is the full cache's with what was forgotten before it, or not read in it, masked to −∞; where keys
    move up, one layer attends as if what is left were all of the text."""
    if not subject.forgets and not subject.reads:
        raise Unclaimed("it forgets nothing")
    if subject.policy.moves:
        return behind_what_is_left(subject)
    ids = text(2)
    logits, _, held = subject.run(ids, STEPS, subject.under())
    if all(len(at) == TEXT for at in every(held[-1])):
        raise Broken("nothing was forgotten or left unread")
    cache, worst = None, 0.0
    for index, n in enumerate(STEPS):
        edits = [Hidden(held[index if subject.reads else index - 1])] if index else []
        (wanted,), cache, _ = subject.run(ids, (n,), attach(model(), edits=edits), cache)
        worst = max(worst, same(logits[index], wanted, CLOSE, f"pass {index}"))
    return f"{worst:.0e}"


def behind_what_is_left(subject: Subject) -> str:
    """One layer attends from the next tokens as if what is left were all of the text."""
    one, ids, at, worst = llama(1), text(1), 0, 0.0
    held: Any = torch.arange(0)
    cache: Any = DynamicCache(config=one.config)
    with compress(one, subject.policy, subject.size), torch.no_grad():
        for index, n in enumerate(STEPS):
            logits = one(input_ids=ids[:, at : at + n], **caches.given(one, cache)).logits
            alone = one(input_ids=torch.cat([ids[:, held], ids[:, at : at + n]], 1), use_cache=True).logits[:, -n:]
            worst, at = max(worst, same(logits, alone, CLOSE, f"pass {index}")), at + n
            held, *others = cache.layers[0].positions(0)
            if any(not torch.equal(held, other) for other in others):
                raise Broken("heads hold other tokens, which no text has")
    return f"{worst:.0e}, {at - len(held)} gone"


def full(subject: Subject) -> str:
    """With a budget for all tokens the model is itself, bit by bit."""
    ids = text(2)
    plain, _, _ = subject.run(ids, STEPS, torch.no_grad())
    logits, cache, held = subject.run(ids, STEPS, subject.under(budget=TEXT))
    if any(len(at) != TEXT for at in every(held[-1])):
        raise Broken(f"of {TEXT} tokens not all are held")
    for index, (one, other) in enumerate(zip(logits, plain, strict=True)):
        if not torch.equal(one, other):
            raise Broken(f"pass {index} is {(one - other).abs().max().item():.1e} off")
    return f"bit by bit, {sum(layer.bytes for layer in cache.layers)} bytes"


def padding(subject: Subject) -> str:
    """A sequence of a padded batch keeps what it keeps alone, whichever side is padded, while it evicts too."""
    ids, worst, blank = text(1), 0.0, 4
    alone, _, held = subject.run(ids, STEPS, subject.under())
    for side in ("left", "right"):
        padded = torch.zeros(1, TEXT + blank, dtype=torch.long)
        mask = torch.zeros(2, TEXT + blank, dtype=torch.long)
        real = list(range(TEXT)) if side == "left" else list(range(PROMPT))
        shift = blank if side == "left" else 0
        places = torch.tensor([at + shift for at in real] + list(range(PROMPT + blank, TEXT + blank)))
        places = places[:TEXT]
        padded[0, places], mask[0], mask[1, places] = ids[0], 1, 1
        other = torch.randint(3, 29, (1, TEXT + blank), generator=torch.Generator().manual_seed(1))
        steps = (PROMPT + blank, *STEPS[1:])
        both, _, found = subject.run(torch.cat([other, padded]), steps, subject.under(), mask=mask)
        got = torch.cat(both, 1)[1:, places]
        worst = max(worst, same(got, torch.cat(alone, 1), 1e-4, f"padding on the {side}"))
        for index, (one, two) in enumerate(zip(held, found, strict=True)):
            compare([[heads[0]] for heads in one], [[heads[1]] for heads in two], f"padded on the {side}, pass {index}")
    return f"{worst:.0e}"


def compare(one: Kept, other: Kept, where: str) -> None:
    """Raises `Broken` where two caches hold other tokens."""
    for layer, (a, b) in enumerate(zip(one, other, strict=True)):
        for heads, others in zip(a, b, strict=True):
            for head, (x, y) in enumerate(zip(heads, others, strict=True)):
                if not torch.equal(x, y):
                    raise Broken(f"{where}: layer {layer}, head {head} holds {x.tolist()}, want {y.tolist()}")


def state(subject: Subject) -> str:
    """All that it knows of a text is in the cache: another copy of the policy goes on with it just the same."""
    ids = text(2)
    logits, _, held = subject.run(ids, STEPS, subject.under())
    _, cache, _ = subject.run(ids, STEPS[:2], subject.under())
    session = subject.under()
    session.take_over(cache)
    later, _, found = subject.run(ids, STEPS[2:], session, cache)
    for index, (one, two) in enumerate(zip(later, logits[2:], strict=True)):
        same(one, two, CLOSE, f"pass {index + 2}")
        compare(found[index], held[index + 2], f"pass {index + 2}")
    return f"{len(later)} passes"


def memory(subject: Subject) -> str:
    """A cache takes the bytes of what it holds and no more, and what it was before is gone from memory."""
    seen: list[Any] = []
    session = subject.under()
    session.policy = spied(session.policy, seen)
    _, cache, _ = subject.run(text(2), STEPS[:2], session)
    gc.collect()
    if subject.forgets and not seen:
        raise Broken("it was asked for no scores")
    if alive := sum(ref() is not None for ref in seen):
        raise Broken(f"{alive} of {len(seen)} full caches are still in memory")
    for layer in cache.layers:
        held = sum(len(at) for b in range(layer.batch) for at in layer.positions(b))
        pairs = sum(part.numel() * part.element_size() for b in range(layer.batch) for part in kv(layer, b))
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in layer.tensors}
        if pairs != held * 2 * HEAD_DIM * 4:
            raise Broken(f"{pairs} bytes of keys and values for {held} entries")
        if sum(storages.values()) != layer.bytes:
            raise Broken(f"{sum(storages.values())} bytes of memory for the {layer.bytes} that are said")
    return f"{sum(layer.bytes for layer in cache.layers)} bytes"


def kv(layer: Any, b: int) -> list[Tensor]:
    """Keys and values of all heads of a sequence."""
    return [part for h in range(KV_HEADS) for part in layer.held(b, h).pair]


def spied(policy: Policy, seen: list[Any]) -> Policy:
    """The policy, noting the full caches that its views are views of."""

    class Spy(type(policy)):
        def layer_scores(self, views: Sequence[View]) -> Sequence[Tensor]:
            seen.extend(weakref.ref(view.keys._base) for view in views if view.keys._base is not None)
            return super().layer_scores(views)

    object.__setattr__(policy, "__class__", Spy)
    return policy


def budgets(subject: Subject) -> str:
    """The budgets of all layers add up to what was asked for, and so does what is held after the prompt, or read."""
    policy = subject.policy
    for layers in (1, 2, 5, 7, 30):
        for size in (policy.forced + 1, 11 + policy.forced, 97 + policy.forced):
            shares = [policy.budget(size, layer, layers, 10**4) for layer in range(layers)]
            if sum(shares) != size * layers or min(shares) < policy.forced:
                raise Broken(f"{shares} add up to {sum(shares)}, want {size * layers}, at least {policy.forced} each")
    _, _, (held,) = subject.run(tokens(2, PROMPT), (PROMPT,), subject.under())
    count = sum(len(at) for at in every(held))
    if subject.forgets and count != subject.size * LAYERS * KV_HEADS * 2:
        raise Broken(f"{count} entries, want {subject.size * LAYERS * KV_HEADS * 2}")
    if subject.reads:
        _, _, read = subject.run(text(2), STEPS, subject.under())
        for index, at in ((i, at) for i, n in enumerate(STEPS) if n == 1 for at in every(read[i])):
            newest = sum(STEPS[: index + 1]) - 1
            if len(at) > subject.size and len(at) != newest + 1:
                raise Broken(f"{len(at)} entries are read, want at most {subject.size}")
            if int(at[-1]) != newest:
                raise Broken(f"the newest that is read is {int(at[-1])}, want {newest}, the query's own")
    return f"{count} entries"


def every(held: Kept) -> list[Tensor]:
    """What is held in all layers, sequences and heads."""
    return [at for sequences in held for heads in sequences for at in heads]


def lengths(subject: Subject) -> str:
    """While decoding it evicts once in ``every`` steps, and never holds that many entries too many."""
    if not subject.forgets:
        raise Unclaimed("it forgets nothing")
    every, steps = subject.policy.every, 11
    ids = tokens(1, PROMPT + steps)
    _, cache, held = subject.run(ids, (PROMPT, *[1] * steps), subject.under())
    for rank, layer in enumerate(cache.layers):
        if layer.evictions != 1 + steps // every:
            raise Broken(f"{layer.evictions - 1} evictions in {steps} steps, want {steps // every}")
        allowed = subject.policy.budget(subject.size, rank, LAYERS, PROMPT) + every - 1
        longest = max(sum(len(at) for at in kept[rank][0]) / KV_HEADS for kept in held)
        if longest > allowed:
            raise Broken(f"{longest:.1f} entries of a head in layer {rank}, want at most {allowed}")
    return f"{steps // every} evictions"


def chunks(subject: Subject) -> str:
    """A prompt in chunks, all kept until decoding begins, is judged as in one pass."""
    if not subject.policy.resumable:
        raise Unclaimed("it judges each pass")
    ids = text(2)
    whole, _, held = subject.run(ids, (PROMPT, 1, 1, 1), subject.under(when="decoding"))
    parts, _, found = subject.run(ids, (7, 5, 7, 1, 1, 1), subject.under(when="decoding"))
    worst = same(torch.cat(parts, 1), torch.cat(whole, 1), CLOSE, "in chunks")
    for index in range(-3, 0):
        compare(found[index], held[index], f"in chunks, pass {index}")
    return f"{worst:.0e}"


def order(subject: Subject) -> str:
    """Sequences that are exchanged, repeated or dropped in the cache go on as if they had been so from the start."""
    ids, worst = text(3), 0.0
    ways: dict[str, tuple[Callable[[Any], Any], list[int]]] = {
        "exchanged": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        "repeated": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        "dropped": (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    }
    for name, (change, rows) in ways.items():
        session = subject.under()
        _, cache, _ = subject.run(ids, STEPS[:2], session)
        change(cache)
        later, _, found = subject.run(ids[rows], STEPS[2:], session, cache)
        straight, _, held = subject.run(ids[rows], STEPS, subject.under())
        worst = max(worst, same(torch.cat(later, 1), torch.cat(straight[2:], 1), CLOSE, name))
        compare(found[-1], held[-1], name)
    session = subject.under()
    first, cache, _ = subject.run(ids, STEPS[:3], session)
    cache.reset()
    again, _, _ = subject.run(ids, STEPS[:3], session, cache)
    return f"{max(worst, same(torch.cat(again, 1), torch.cat(first, 1), CLOSE, 'reset')):.0e}"


LAWS: dict[str, Callable[[Subject], str]] = {
    law.__name__: law for law in (definition, full, padding, state, memory, budgets, lengths, chunks, order)
}


def subject(example: Sample, device: str = "cpu") -> Subject:
    """What the laws look at."""
    return Subject(example)


def example(thing: Policy, **given: Any) -> Sample:
    """A policy from elsewhere as an example."""
    return Sample(type(thing).__name__, thing, given)
