"""The laws of edits: nothing at the neutral value of a dial, rows that keep their sum, nothing outside of `Where`.

They are held on a small Llama with grouped heads and random weights, large enough that its attention is far from even.
Examples name layers 0 and 1, heads 0 to 5, and tokens below 29; what they are about has to lie in the first 12 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from regard.core.edit import Edit, Place, Where, uses
from regard.core.kinds import Sample
from regard.edits.saved import dumped, loaded
from regard.edits.trace import Trace
from regard.hosts import caches
from regard.hosts.attach import attach
from regard.laws.finding import Broken, Unclaimed, same
from regard.laws.small import HEADS, llama, tokens

LAYERS, LENGTH = 2, 13
CLOSE = 1e-4
SLIGHT = 1e-5
"""By how much the dial is turned, for a change that has to be slight."""


def model() -> Any:
    """The model under examination."""
    return llama(LAYERS)


class Maps:
    """A probe that puts A of every layer together, ``(b, heads, n, m)``."""

    name = "maps"

    def __init__(self) -> None:
        self.found: dict[int, Tensor] = {}

    def update(self, tile: Any) -> None:
        batch, heads = tile.weights.shape[:2]
        dense = self.found.setdefault(tile.layer, torch.zeros(batch, heads, tile.m, tile.m))
        dense[:, :, tile.rows, tile.columns] = tile.weights

    def merge(self, other: Any) -> None:
        raise NotImplementedError

    def result(self) -> dict[int, Tensor]:
        return self.found


class Steered:
    """An edit under examination.

    Args:
        sample: the edit.
    """

    def __init__(self, sample: Sample) -> None:
        self.edit: Edit = sample.thing.but()

    @torch.no_grad()
    def run(self, *edits: Edit, ids: Tensor | None = None, **inputs: Any) -> tuple[Tensor, dict[int, Tensor]]:
        """``(logits, maps)`` of a pass of the model under some edits."""
        given = tokens(2, LENGTH) if ids is None else ids
        with attach(model(), edits=edits, probes=[Maps()]) as attached:
            logits = model()(input_ids=given, use_cache=False, **inputs).logits
        return logits, attached["maps"]

    def moves_mass(self) -> None:
        """Raises `Unclaimed` for an edit that leaves A to what the scores give."""
        if not uses(self.edit, "masses"):
            raise Unclaimed("it moves no mass between keys")


def identity(subject: Steered) -> str:
    """At the neutral value of its dial the model is the same bit by bit, A too, next to it nearly, else another."""
    edit, (plain, maps) = subject.edit, subject.run()
    if edit.dial is None:
        raise Unclaimed("it has no dial")
    own, _ = subject.run(edit)
    if not (own - plain).abs().max() > CLOSE:
        raise Broken(f"{edit!r} changes nothing")
    neutral, shown = subject.run(edit.at(edit.dial[1]))
    if not torch.equal(neutral, plain) or not all(torch.equal(shown[layer], maps[layer]) for layer in maps):
        error = (neutral - plain).abs().max().item()
        raise Broken(f"with {edit.dial[0]} = {edit.dial[1]} logits are {error:.1e} off those of the model")
    error = same(subject.run(edit.at(edit.dial[1] + SLIGHT))[0], plain, 1e-2, f"{edit.dial[0]} off by {SLIGHT}")
    return f"{error:.0e} next to it"


def rows(subject: Steered) -> str:
    """Rows of A keep their sum, or see nothing at all, and no weight is negative."""
    subject.moves_mass()
    maps, worst = subject.run(subject.edit)[1], 0.0
    for layer, after in maps.items():
        if (after < 0).any():
            raise Broken(f"layer {layer}: a weight of {after.min().item():.2f}")
        sums = after.sum(-1)
        worst = max(
            worst, same(torch.where(sums == 0, 1.0, sums), torch.ones_like(sums), CLOSE, f"rows of layer {layer}")
        )
    return f"{worst:.0e}"


def place(subject: Steered) -> str:
    """What lies outside of its heads, rows and sequences is left as it is, bit by bit."""
    edit, old = subject.edit, subject.edit.where
    heads = [1, 4] if takes_heads(edit) else None
    narrow = Where([1], heads, slice(6, 11), old.keys, old.tokens, [1])
    edit, sites = edit.but(where=narrow), edit.parts or ("z",)
    plain, after = Trace(*sites), Trace(*sites)
    subject.run(plain)
    subject.run(edit, after)
    outside = torch.ones(2, HEADS, LENGTH, dtype=torch.bool)
    for head in heads or range(HEADS):
        outside[1, head, 6:11] = False
    pairs = [(site, plain.get(site, 1), after.get(site, 1)) for site in sites]
    for site, one, other in pairs:
        kept = outside if site == "z" else outside.all(1)
        if not torch.equal(one[kept], other[kept]):
            raise Broken(f"{site} outside of {narrow} is another")
    if all(torch.equal(one, other) for _, one, other in pairs):
        raise Broken(f"nothing changes inside of {narrow}")
    return "bit by bit"


def takes_heads(edit: Edit) -> bool:
    """Whether it acts on heads, and not on hidden states alone."""
    return not edit.parts


def groups(subject: Steered) -> str:
    """A is what it was, each group of keys weighed by its new mass: the shares within a group stay."""
    subject.moves_mass()
    seen: dict[int, tuple[Place, Tensor, Tensor | None]] = {}
    edit = spied(subject.edit, seen)
    _, maps = subject.run(edit)
    layer = min(seen)
    where, masses, moved = seen[layer]
    before = subject.run()[1]
    parted = edit.groups(where)
    parted = edit.where.chosen_keys(where).long()[:, None] if parted is None else parted
    members = torch.nn.functional.one_hot(parted, edit.group_count).to(masses.dtype).expand(-1, HEADS, -1, -1)
    plain = before[layer][:, :, where.rows]
    worst = same(masses, plain @ members, CLOSE, "masses of the groups")
    moved = masses if moved is None else torch.where(edit.where.entries(where)[..., None], moved, masses)
    ratio = torch.where(masses > 0, moved / masses.clamp(min=1e-30), 0)
    expected = plain * (ratio @ members.mT)
    return f"{max(worst, same(maps[layer][:, :, where.rows], expected, CLOSE, f'A of layer {layer}')):.0e}"


def spied(edit: Edit, seen: dict[int, tuple[Place, Tensor, Tensor | None]]) -> Edit:
    """The edit, noting what it is asked of masses and what it says."""
    inner = edit.masses

    def masses(m: Tensor, at: Place) -> Tensor | None:
        moved = inner(m, at)
        seen.setdefault(at.layer, (at, m, moved))
        return moved

    return edit.but(masses=masses)


def decode(subject: Steered) -> str:
    """A text in chunks and token by token is edited as it is in one pass."""
    from transformers.cache_utils import DynamicCache

    edit = subject.edit
    if not edit.resumable or edit.where.rows == "last":
        raise Unclaimed("its rows depend on what follows, or are the last of each pass")
    ids, found = tokens(2, LENGTH), []
    whole, _ = subject.run(edit)
    cache = DynamicCache(config=model().config)
    with attach(model(), edits=[edit.but()]), torch.no_grad():
        for part in (slice(0, 5), slice(5, 8), *(slice(at, at + 1) for at in range(8, LENGTH))):
            found.append(model()(input_ids=ids[:, part], **caches.given(model(), cache)).logits)
    return f"{same(torch.cat(found, 1), whole, CLOSE, 'in chunks'):.0e}"


def padding(subject: Steered) -> str:
    """A padded sequence of a batch is edited as it is alone, whichever side is padded."""
    edit, ids, worst = subject.edit.but(where=every_row(subject.edit.where)), tokens(2, LENGTH), 0.0
    alone, _ = subject.run(edit, ids=ids[1:])
    for side in ("left", "right"):
        blank = torch.zeros(2, 4, dtype=torch.long)
        padded = torch.cat([blank, ids] if side == "left" else [ids, blank], 1)
        padded[0] = tokens(1, LENGTH + 4)
        mask = torch.ones_like(padded)
        real = slice(4, None) if side == "left" else slice(LENGTH)
        mask[1] = 0
        mask[1, real] = 1
        places = (mask.cumsum(1) - 1).clamp(min=0)
        both, _ = subject.run(edit, ids=padded, attention_mask=mask, position_ids=places)
        worst = max(worst, same(both[1:, real], alone, CLOSE, f"padding on the {side}"))
    return f"{worst:.0e}"


def every_row(where: Where) -> Where:
    """The same in every sequence of a batch."""
    return Where(where.layers, where.heads, where.rows, where.keys, where.tokens)


def again(subject: Steered) -> str:
    """A pass gives the same twice, one that breaks off in between, and the model is itself afterwards."""
    plain, _ = subject.run()
    first, _ = subject.run(subject.edit)
    hooks = count_hooks()
    with suppress(ArithmeticError):
        subject.run(subject.edit, Raising())
    second, _ = subject.run(subject.edit)
    if not torch.equal(first, second):
        raise Broken(f"the second pass is {(first - second).abs().max().item():.1e} off the first")
    if count_hooks() != hooks or not torch.equal(subject.run()[0], plain):
        raise Broken("the model is not what it was")
    return "bit by bit"


class Raising(Edit):
    """Breaks off in the second layer."""

    def heads(self, z: Tensor, place: Place) -> None:
        if place.layer == 1:
            raise ArithmeticError


def count_hooks() -> int:
    """How many hooks the model has."""
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model().modules())


def order(subject: Steered) -> str:
    """The same edit of two disjoint sets of heads gives the same in either order."""
    if not takes_heads(subject.edit):
        raise Unclaimed("it acts on hidden states, of which heads are no parts")
    where = subject.edit.where
    layers = where.heads.keys() if isinstance(where.heads, Mapping) else where.layers
    pair = [
        subject.edit.but(where=Where(layers, heads, where.rows, where.keys, where.tokens))
        for heads in ([0, 1], [2, 3, 4, 5])
    ]
    one, other = subject.run(*pair)[0], subject.run(*reversed(pair))[0]
    return f"{same(one, other, CLOSE, 'in the other order'):.0e}"


def saved(subject: Steered) -> str:
    """It is the same after it was written to JSON and read again."""
    text = dumped([subject.edit])
    (other,) = loaded(text, known={type(subject.edit).__name__: type(subject.edit)})
    if repr(other) != repr(subject.edit):
        raise Broken(f"{subject.edit!r} came back as {other!r}")
    if not torch.equal(subject.run(subject.edit)[0], subject.run(other)[0]):
        raise Broken("it does something else when it comes back")
    return f"{len(text)} characters"


LAWS: dict[str, Callable[[Steered], str]] = {
    law.__name__: law for law in (identity, rows, place, groups, decode, padding, again, order, saved)
}


def subject(example: Sample, device: str = "cpu") -> Steered:
    """What the laws look at."""
    return Steered(example)


def example(thing: Edit, **given: Any) -> Sample:
    """An edit from elsewhere as an example."""
    return Sample(type(thing).__name__, thing, given)
