"""The slots of the queries and keys of one attention call, and which of them are no padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.edit import Place
from regard.core.errors import wrong
from regard.core.tile import Tokens
from regard.hosts.forward_pass import Pass, PassTracker
from regard.hosts.slots import Slots
from regard.hosts.softmax_call import SoftmaxCall


def place_of(
    call: SoftmaxCall, inside: Pass, layer: int, slots: Slots, causal: bool, cross: bool, passes: PassTracker
) -> Place:
    """What edits are told of a call."""
    start, stop = slots.key, call.m if cross else slots.query + call.n
    keys, queries = real_tokens(call, inside, slots, stop, causal, cross, passes.real)
    rows = torch.arange(slots.query, slots.query + call.n, device=call.device)
    tokens = tokens_of(inside, keys)
    beyond = max(start + call.m - stop, 0)  # the free slots of a cache of fixed size
    if tokens is not None and beyond:
        tokens = Tokens(pad(tokens.ids, (0, beyond), value=-1))
    kv_heads = call.k.shape[1]
    keys = pad(keys, (0, beyond))
    place = Place(layer, call.q.shape[1], kv_heads, rows, start, queries, keys, tokens, cross, passes.sequence)
    return replace(place, notes=passes.notes)


def tokens_of(inside: Pass, keys: Tensor) -> Tokens | None:
    """The tokens of the slots of ``keys (batch, slots)``, None where they are not known."""
    return inside.tokens if inside.tokens is not None and inside.tokens.ids.shape == keys.shape else None


def real_tokens(
    call: SoftmaxCall, inside: Pass, slots: Slots, stop: int, causal: bool, cross: bool, earlier: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``(keys (batch, stop), queries (batch, n))`` bool: which of them are no padding.

    The pass's own mask of two axes says so; else keys are real that any query may see, and all are in a causal layer of
    a pass without a mask, whose own masks leave keys out for other reasons. What ``earlier`` passes were told holds on
    for keys that a cache with a window shows no longer.
    """
    batch, device, newest = call.q.shape[0], call.q.device, slots.query + call.n
    keys = torch.ones(batch, stop, dtype=torch.bool, device=device)
    queries = torch.ones(batch, call.n, dtype=torch.bool, device=device)
    given = inside.keys if inside.keys is not None and len(inside.keys) == batch else None
    if given is not None and given.shape[1] >= newest:
        queries = given[:, slots.query : newest].to(device)
    if given is not None and given.shape[1] >= max(stop, newest) and not cross:
        keys = given[:, :stop].to(device)
    elif call.mask is not None and (inside.masked or not causal):
        keys[:, slots.key : slots.key + call.m] = call.mask.any(1).any(1)[:, : stop - slots.key]
    if not cross:
        known = earlier.get("keys")
        if given is None and known is not None and len(known) == batch:
            keys = torch.cat([known[:, : slots.key].to(device), keys[:, min(slots.key, known.shape[1]) :]], dim=1)
        earlier["keys"] = keys
    if call.mask is not None:
        queries = queries & call.mask.any(1).any(2)
    return keys, queries


def astray(call: SoftmaxCall, name: str, past: int) -> Exception:
    """What to raise where a layer's keys are not those that its cache and its queries would make."""
    what = f"{call.m} keys for {call.n} queries in {name}, after {past} tokens"
    wanted = "a cache whose length tells which tokens its keys are"
    if call.m > past + call.n:
        wanted = "a key for each token: others beside them, such as compressed runs of tokens, are not read"
    return wrong("past_key_values", what, wanted, RuntimeError)


class Places:
    """The places of earlier calls, for those that gradient checkpointing makes once more outside of any pass."""

    def __init__(self) -> None:
        self.known: dict[str, list[Place]] = {}
        self.asked = False

    def note(self, name: str, place: Place) -> None:
        """Remembers where a module was called; what is remembered ends with the first call after a backward pass."""
        if self.asked:
            self.known, self.asked = {}, False
        held = self.known.setdefault(name, [])
        if not any(place.same(other) for other in held):
            held.append(place)

    def recall(self, name: str, fits: Callable[[Place], bool]) -> Place:
        """The place of the call that is made once more.

        Raises:
            RuntimeError: several passes before this backward one differ in padding or tokens, or the module was called
                several times in each, so that it cannot be told which is meant.
        """
        self.asked = True
        found = [place for place in self.known.get(name, []) if fits(place)]
        if len(found) != 1:
            what = f"{len(found)} earlier calls of {name} that gradient checkpointing may compute again"
            wanted = "one: a backward pass after each forward pass, or gradient checkpointing off"
            raise wrong("model", what, wanted, RuntimeError)
        return replace(found[0], again=True)
