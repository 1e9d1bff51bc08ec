"""Watching the attention of a model while it runs as it always does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.core.tile import Probe, Tile
from regard.hosts.attachment import Attachment, Spot
from regard.hosts.attention_arguments import Asked
from regard.hosts.attention_interface import host, label
from regard.hosts.caught_weights import Reading
from regard.hosts.edited_call import Outcome, TiltedMap
from regard.hosts.forward_pass import Pass
from regard.hosts.lm_session import LMSession
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.network_session import NetworkSession, is_ours
from regard.hosts.places import astray, real_tokens, tokens_of
from regard.hosts.recurrent_hooks import RecurrentHooks
from regard.hosts.session import Choice, Layer, Session
from regard.hosts.slots import Slots
from regard.hosts.softmax_call import AttentionMap, SoftmaxCall
from regard.hosts.softmax_hooks import Softmaxes
from regard.networks import LM


class Watched(Session):
    """The session of a Transformers model.

    Args:
        model: the watched model; the rest as for `Session`.
    """

    verb: ClassVar[str] = "regard.watch"
    doing: ClassVar[str] = "being watched"

    def __init__(self, model: PreTrainedModel, *about: Any) -> None:
        super().__init__(*about)
        self.model = model
        self.attachment: Attachment | None = None

    def install(self) -> None:
        """Attaches the session to the model.

        Raises:
            RuntimeError: another one is attached to it already.
        """
        attachment = Attachment.on(self.model)
        attachment.add(self)
        self.attachment, attachment.watching = attachment, self
        self.names, self.passes = attachment.names, attachment.passes
        self.follower = RecurrentHooks(self.model, self, self.passes)
        self.softmaxes = Softmaxes(self.model, self.passes, Reading(self))

    def remove(self) -> None:
        """Takes it off, and its hooks out."""
        if self.attachment is not None:
            for hooks in ("softmaxes", "follower"):
                if hasattr(self, hooks):
                    getattr(self, hooks).remove()
            self.attachment.discard(self)
            self.attachment = None

    def aside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose own use of PyTorch is not heard as the model's."""
        return self.softmaxes.aside(function)

    def finished(self, done: Pass) -> None:
        """Refuses a model, or one of its layers, that ran without being seen."""
        if done.module is not self.model:
            return
        name, unread = label(self.model), [*self.follower.unread(done), *self.softmaxes.unread(self.names)]
        own = f"{unread[0]}, a {self.follower.kind(unread[0])}, mixes tokens in its own code" if unread else ""
        if not done.calls:
            raise wrong(
                "model",
                f"{name}, which ran a whole forward pass without calling the attention interface"
                + (f": {own}" if own else ""),
                "a model that does, or whose recurrences are read, as those of Mamba-like mixers and delta nets are",
                RuntimeError,
            )
        if own and self.choice.layers is None:
            more = f", and {len(unread) - 1} more do" if len(unread) > 1 else ""
            wanted = f"layers=range({len(self.layers)}), those that can be read, or a model of such layers alone"
            raise wrong("model", f"{name}, of which {own}{more}", wanted, RuntimeError)
        self.refuse_absent(name)

    @torch.no_grad()
    def observe(self, spot: Spot, asked: Asked, outcome: Outcome, slots: Slots | None) -> None:
        """Shows the probes a softmax call that has just been made."""
        call, place = outcome.call, spot.inside
        self.refuse_two_sequences(spot.name, call, place)
        if self.choice.layers is None and call.q.shape[1] == place.new and place.new not in (call.n, call.m):
            what = f"{spot.name}, which attends to {call.m} streams within each of {place.new} tokens"
            raise wrong("model", what, "layers=…, those of its layers that attend among tokens", RuntimeError)
        layer = self.layer(spot, asked, call, slots)
        if layer.cross:
            slots = Slots(place.past)
        elif slots is None:
            raise astray(call, layer.name, place.past)
        if self.choice.takes(layer.index):
            call, lse, tilt = detached(call), outcome.lse.detach(), outcome.tilt
            if (heads := self.choice.heads(layer.index, layer.heads)) is not None:
                chosen = torch.tensor(heads, device=lse.device)
                call, lse = call.select(chosen), lse[:, chosen]
                tilt = None if tilt is None else tilt.select(chosen)
            source = AttentionMap(call, lse) if tilt is None else TiltedMap(call, lse, tilt)
            for tile in self.tiles(layer, source, place, slots):
                for probe in self.probes:
                    probe.update(tile)
            self.retain(layer.index, source)
        if self.seen is not None:
            self.seen(layer.index)

    @torch.no_grad()
    def observe_mechanism(self, spot: Spot, source: ImplicitAttention | None, mechanism: str) -> None:
        """Shows the probes a call that a mechanism computed in the model's place."""
        if source is None:
            what = f"one that {spot.name}, swapped, goes on with, begun outside of the watch"
            raise wrong("past_key_values", what, "a cache that begins inside", RuntimeError)
        source = replace(source, q=source.q.detach(), k=source.k.detach())
        held = source.layout.key_mask
        keys = torch.ones(len(source.k), source.m, dtype=torch.bool, device=source.device) if held is None else held
        self.implied(spot.label, mechanism, source, tokens_of(spot.inside, keys), self.passes.sequence)

    def layer(self, spot: Spot, asked: Asked, call: SoftmaxCall, slots: Slots | None) -> Layer:
        """The layer of this call, noted at its first."""
        cross = self.passes.crosses(spot.inside, spot.name, slots, asked)
        causal = not cross and asked.causal(0 if slots is None else slots.query - slots.key)
        sizes = (call.q.shape[1], call.k.shape[1], call.q.shape[3])
        scores = (asked.window, call.softcap, call.scaling, call.sinks is not None)
        return self.noted(spot.label, lambda index: Layer(index, spot.label, *sizes, causal, cross, *scores))

    def refuse_two_sequences(self, name: str, call: SoftmaxCall, place: Pass) -> None:
        """Raises a RuntimeError for keys that are the module's own tokens and those of another sequence at once."""
        handed = self.passes.handed(place, name)
        if any(call.m == handed.past + call.n + other for other in handed.others):
            what = f"{name}, whose keys are its own tokens and another sequence's at once"
            raise wrong("model", what, "layers that attend to one sequence: distances have no meaning", RuntimeError)

    def tiles(self, layer: Layer, source: AttentionMap, place: Pass, slots: Slots) -> Iterator[Tile]:
        """The rows of one call, in the slots of the whole sequence."""
        call, first = source.call, slots.key
        stop = call.m if layer.cross else slots.query + call.n
        keys, queries = real_tokens(call, place, slots, stop, layer.causal, layer.cross, self.passes.real)
        tokens = None if layer.cross else tokens_of(place, keys)
        blocks, share = self.choice.blocks(call, layer.index, slots.query)
        for rows in blocks:
            strip = source.strip(rows)
            width = min(strip.weights.shape[3], stop - first - strip.start)
            yield Tile(
                layer=layer.index,
                weights=strip.weights[..., :width],
                rows=rows + slots.query,
                start=first + strip.start,
                m=stop,
                queries=queries[:, rows],
                key_mask=keys,
                causal=layer.causal,
                visible=None if strip.visible is None else strip.visible[..., :width],
                log_weights=strip.log_weights[..., :width],
                tokens=tokens,
                sequence=self.passes.sequence,
                share=share,
                cross=layer.cross,
            )


@contextmanager
def watch(
    model: PreTrainedModel | LM | nn.Module,
    probes: Sequence[Probe] = (),
    *,
    layers: Iterable[int] | Mapping[int, Sequence[int]] | None = None,
    rows: int | None = None,
    seed: int = 0,
    keep: float = 0,
    seen: Callable[[int], None] | None = None,
    shares: bool = False,
) -> Iterator[Session]:
    """Feeds ``probes`` from every attention call of a model of Transformers or of ours until the block is left.

    The model computes what it would without: its output comes from PyTorch's fused attention, and the rows of
    A are recomputed from the log-sum-exp, block by block, so memory grows with the length and not its square. On
    leaving, also by an exception, the model is as it was. Prefill, padded batches, chunked prefill, several caches in
    turn, gradient checkpointing and ``generate`` with any cache are followed. A step of beam search that exchanges
    sequences begins another sequence, which probes of one refuse; recurrent layers go on by what their cache holds.

    Args:
        model: any Transformers model that calls its attention through the attention interface, with adapters of PEFT
            or without; or a model of ours, of layers of any mechanism, which is to be run whole, not extended; or any
            module with mechanisms or gates of ours in it, whose gates are then in ``session.gates``.
        probes: see `regard.probes`. layers: indices to watch, or a mapping from index to heads; None for all.
        rows: sample so many query rows of each call instead of all; results then carry standard errors.
        seed: of the sample. keep: bytes of q, k and log-sum-exp to keep at most in ``session.maps``: `Session`.
        seen: called with a layer's index after each of its calls. shares: show the probes ``|A_ij| / Σ_j |A_ij|`` of
            layers where A is of either sign or has rows above one, so that all statistics are of shares.

    Raises:
        TypeError: not a Transformers model. RuntimeError: it is being watched already; a second thread runs it; or
            its first forward pass ends without a call of the attention interface.
    """
    about = (probes, Choice(layers, rows, seed), keep, seen, shares)
    session = session_of(model, *about)
    try:
        session.install()
        yield session
    finally:
        session.remove()


def session_of(model: Any, *about: Any) -> Session:
    """The session that can watch a model.

    Raises:
        TypeError: nothing here can.
    """
    if isinstance(model, LM):
        return LMSession(model, *about)
    if isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel) and is_ours(model):
        return NetworkSession(model, *about)
    return Watched(host(model), *about)


def detached(call: SoftmaxCall) -> SoftmaxCall:
    """The same without a gradient."""
    return replace(call, **{name: value.detach() for name, value in vars(call).items() if isinstance(value, Tensor)})
