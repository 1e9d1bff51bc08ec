"""Rows that attend with queries and keys of their own: a layer's projections run once more on edited states.

The module of the attention runs again on what an edit's `inputs` gives, without its cache, up to the attention
function, which notes the queries and keys that it is called with: so projections, norms and positions are the model's
own in every architecture. Keys of earlier tokens are remembered beside the cache, and go along with its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from regard.core.edit import Edit, Place, uses
from regard.core.errors import wrong
from regard.hosts import caches
from regard.hosts.edited_call import Outcome, Tilt, attend_edited, edited_inputs, of_heads
from regard.hosts.forward_pass import recomputing
from regard.hosts.sites import calls_interface
from regard.hosts.softmax_call import SoftmaxCall

if TYPE_CHECKING:
    from regard.hosts.attachment import Attachment


@dataclass
class Asides:
    """Hooks before the attention modules of a model, by which edits of `inputs` act, until `remove`.

    Args:
        attachment: that the edits are of. edits: those of `inputs`.
        found: by edit, ``(q, k)`` of the new tokens in the call that comes next.
    """

    attachment: Attachment
    edits: Sequence[Edit]
    handles: list[Any] = field(default_factory=list)
    found: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.edits:
            for name, module in self.attachment.model.named_modules():
                if calls_interface(module):
                    self.handles.append(module.register_forward_pre_hook(self.enter(name), with_kwargs=True))

    def remove(self) -> None:
        """Takes the hooks out."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def enter(self, name: str) -> Callable[..., None]:
        """The hook before an attention module."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            attachment = self.attachment
            if attachment.silent or attachment.noted is not None:
                return
            layer, self.found = attachment.layer_of(name), {}
            for edit in self.edits:
                if edit.where.takes(layer):
                    x = args[0] if args else kwargs["hidden_states"]
                    place = attachment.sites.place("inputs", x, name, layer)
                    if (fresh := edit.inputs(x, place)) is not None:
                        given = torch.where(edit.where.chosen_batch(place)[:, None, None], fresh.to(x.dtype), x)
                        self.found[id(edit)] = self.projected(module, given, args, kwargs)

        return hook

    def projected(
        self, module: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The queries and keys that a module makes of states ``x``, positions in them."""
        plain = [None if caches.is_cache(value) else value for value in args[1:]]
        named = {name: None if caches.is_cache(value) else value for name, value in kwargs.items()}
        self.attachment.noted = []
        try:
            if args:
                module.forward(x, *plain, **named)
            else:
                module.forward(**named | {"hidden_states": x})
            noted = self.attachment.noted
        finally:
            self.attachment.noted = None
        if len(noted) != 1:
            what = f"{type(module).__name__}, which calls its attention {len(noted)} times"
            raise wrong("edits", what, "edits of queries, values or heads there", RuntimeError)
        return noted[0]


def applied(
    asides: Sequence[Asides],
    outcome: Outcome,
    edits: Sequence[Edit],
    call: SoftmaxCall,
    v: Tensor,
    dropout: float,
    place: Place,
) -> Outcome:
    """The outcome of a call with the rows that attend with queries and keys of their own in it.

    Raises:
        ValueError: two edits of the same rows; one beside an edit of masses that reads whole columns of A.
    """
    taken = torch.zeros(1, dtype=torch.bool, device=call.device)
    for aside in asides:
        for edit in [edit for edit in aside.edits if id(edit) in aside.found]:
            q, k = aside.found.pop(id(edit))
            own = edit.where.entries(place)
            if bool((own & taken).any()):
                what = f"two edits of inputs for the same rows of layer {place.layer}"
                raise wrong("edits", what, "one, or heads or rows that are not the same")
            if other := next((other for other in edits if uses(other, "masses") and not other.resumable), None):
                what = f"{type(edit).__name__} beside {type(other).__name__}, which reads whole columns of A"
                raise wrong("edits", what, f"one of them in layer {place.layer}")
            taken = taken | own
            k = with_past(f"inputs {id(edit)} {place.layer}", k, call, place)
            k = of_heads(edit, call.k, k, edit.where.chosen_keys(place)[:, None, :, None], place)
            rows = own.any(0).any(0).nonzero()[:, 0]
            if len(rows):
                q = torch.where(own[..., None], q, call.q)
                q, k, _ = edited_inputs([other for other in edits if other is not edit], q, k, v, place)
                part = of_rows(replace(call, q=q, k=k), rows)
                inner = attend_edited(edits, part, v, dropout, place.of_rows(rows))
                outcome = put(outcome, inner, own, rows, aside.attachment.shown)
    return outcome


def with_past(name: str, k: Tensor, call: SoftmaxCall, place: Place) -> Tensor:
    """Keys of all tokens of the call, those of earlier ones as they were remembered."""
    past = int(place.rows[0])
    if place.cross:
        raise wrong("edits", "an edit of inputs in attention to another sequence", "one of queries there")
    if past:
        earlier = place.notes.get(name)
        if earlier is None or len(earlier) != len(k) or earlier.shape[2] < past:
            what = f"a text that goes on after {past} tokens, whose states were not all edited"
            raise wrong("cache", what, "a cache that begins inside, and goes on with the same edits", RuntimeError)
        k = torch.cat([earlier[:, :, :past].to(k), k], 2)
    if not (recomputing() or place.again):
        place.notes[name] = k.detach()
    return pad(k, (0, 0, 0, max(place.start + call.m - k.shape[2], 0)))[:, :, place.start : place.start + call.m]


def of_rows(call: SoftmaxCall, rows: Tensor) -> SoftmaxCall:
    """The call of some of its queries, over all keys."""
    sinks = call.sinks
    if sinks is not None and sinks.dim() > 1 and sinks.shape[2] > 1:
        sinks = sinks[:, :, rows]
    return replace(
        call,
        q=call.q[:, :, rows],
        causal=False,
        window=None,
        mask=call.visible(rows, 0, call.m),
        bias=None if call.bias is None else call.bias[..., rows, :],
        sinks=sinks,
    )


def put(outcome: Outcome, inner: Outcome, own: Tensor, rows: Tensor, shown: bool) -> Outcome:
    """An outcome with ``rows`` of another in it, where ``own (b, heads, n)`` says so.

    If A is ``shown`` to somebody, what its scores are off is a bias of the call.
    """
    chosen = own[:, :, rows]
    out = outcome.out.index_copy(
        2, rows, torch.where(chosen[..., None], inner.out, outcome.out[:, :, rows]).to(outcome.out.dtype)
    )
    lse = outcome.lse.detach()
    lse = lse.index_copy(2, rows, torch.where(chosen, inner.lse.to(lse.dtype), lse[:, :, rows]))
    tilt = outcome.tilt
    if inner.tilt is not None:
        ratio = inner.tilt.ratio.new_ones(*lse.shape, inner.tilt.ratio.shape[3]) if tilt is None else tilt.ratio
        fresh = torch.where(chosen[..., None], inner.tilt.ratio, ratio[:, :, rows])
        tilt = Tilt(ratio.index_copy(2, rows, fresh), inner.tilt.groups)
    call = outcome.call
    if shown:
        every, m = torch.arange(len(rows), device=rows.device), call.m
        off = inner.call.scores(every, 0, m) - call.scores(rows, 0, m)
        bias = off.new_zeros(*call.q.shape[:3], m) if call.bias is None else call.bias.expand(*call.q.shape[:3], m)
        bias = bias.to(off.dtype)
        off = torch.where(chosen[..., None], off, 0)
        call = replace(call, bias=bias.index_add(2, rows, off))
    return Outcome(out, call, lse, tilt)
