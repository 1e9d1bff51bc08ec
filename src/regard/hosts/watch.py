"""Watching the attention of a model while it runs as it always does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.core.tile import Probe, Tile
from regard.hosts.attention_arguments import Asked, Reader
from regard.hosts.attention_interface import Installed, host, label
from regard.hosts.caught_weights import Reading
from regard.hosts.forward_pass import Pass, PassTracker, recomputing
from regard.hosts.lm_session import LMSession
from regard.hosts.recurrent_hooks import RecurrentHooks
from regard.hosts.session import Choice, Layer, Session
from regard.hosts.slots import Slots
from regard.hosts.softmax_call import AttentionMap, SoftmaxCall, attend, dense
from regard.hosts.softmax_hooks import Softmaxes
from regard.networks import LM


class Watched(Session):
    """The session of a Transformers model.

    Args:
        model: the watched model; the rest as for `Session`.
    """

    def __init__(self, model: PreTrainedModel, *about: Any) -> None:
        super().__init__(*about)
        self.model = model
        self.names = {id(module): name for name, module in model.named_modules()}
        self.reader = Reader(model, "regard.watch")
        self.passes = PassTracker(model, self.finished)
        self.follower = RecurrentHooks(model, self, self.passes)
        self.softmaxes = Softmaxes(model, self.passes, Reading(self))
        self.installed: Installed | None = None

    def install(self) -> None:
        """Puts our attention function in.

        Raises:
            RuntimeError: one of ours is in it already.
        """
        self.installed = Installed(self.model, self.softmaxes.aside(self.attend), "watch")

    def remove(self) -> None:
        """Takes it and the hooks out."""
        self.softmaxes.remove()
        self.follower.remove()
        self.passes.remove()
        if self.installed is not None:
            self.installed.remove()

    def finished(self, done: Pass) -> None:
        """Refuses a model, or one of its layers, that ran without being seen."""
        self.reader.forget()
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

    def attend(self, module: nn.Module, *args: Any, eager: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The attention function that Transformers calls: the model's own result, then a look at it."""
        asked = self.reader.read(eager, module, args, kwargs)
        out, lse = attend(asked.call, asked.v, asked.dropout)
        self.observe(asked, lse)
        weights = dense(asked.call).to(out.dtype) if self.passes.weights else None
        return out.transpose(1, 2).contiguous(), weights

    @torch.no_grad()
    def observe(self, asked: Asked, lse: Tensor) -> None:
        """Shows the probes a call that has just been made, unless it is made once more for its gradients."""
        if recomputing():
            return
        name, call = self.names[id(asked.module)], asked.call
        place, turn = self.passes.locate(name)
        slots = self.passes.slots(place, name, asked.module, call.n, call.m)
        self.refuse_two_sequences(name, call, place)
        layer = self.layer(name if turn == 0 else f"{name}#{turn}", asked, slots, place)
        if layer.cross:
            slots = Slots(place.past)
        elif slots is None:
            raise self.astray(layer, call, place)
        if self.choice.takes(layer.index):
            call, lse = detached(call, lse)
            if (heads := self.choice.heads(layer.index, layer.heads)) is not None:
                chosen = torch.tensor(heads, device=lse.device)
                call, lse = call.select(chosen), lse[:, chosen]
            source = AttentionMap(call, lse)
            for tile in self.tiles(layer, source, place, slots):
                for probe in self.probes:
                    probe.update(tile)
            self.retain(layer.index, source)
        if self.seen is not None:
            self.seen(layer.index)

    def layer(self, name: str, asked: Asked, slots: Slots | None, place: Pass) -> Layer:
        """The layer of this name, noted at its first call."""
        call = asked.call
        cross = self.passes.crosses(place, self.names[id(asked.module)], slots, asked)
        causal = not cross and asked.causal(0 if slots is None else slots.query - slots.key)
        sizes = (call.q.shape[1], call.k.shape[1], call.q.shape[3])
        scores = (asked.window, call.softcap, call.scaling, call.sinks is not None)
        return self.noted(name, lambda index: Layer(index, name, *sizes, causal, cross, *scores))

    def refuse_two_sequences(self, name: str, call: SoftmaxCall, place: Pass) -> None:
        """Raises a RuntimeError for keys that are the module's own tokens and those of another sequence at once."""
        handed = self.passes.handed(place, name)
        if any(call.m == handed.past + call.n + other for other in handed.others):
            what = f"{name}, whose keys are its own tokens and another sequence's at once"
            raise wrong("model", what, "layers that attend to one sequence: distances have no meaning", RuntimeError)

    def astray(self, layer: Layer, call: SoftmaxCall, place: Pass) -> Exception:
        """What to raise where a layer's keys are not those that its cache and its queries would make."""
        what = f"{call.m} keys for {call.n} queries in {layer.name}, after {place.past} tokens"
        return wrong("past_key_values", what, "a cache whose length tells which tokens its keys are", RuntimeError)

    def tiles(self, layer: Layer, source: AttentionMap, place: Pass, slots: Slots) -> Iterator[Tile]:
        """The rows of one call, in the slots of the whole sequence."""
        call, first = source.call, slots.key
        stop = call.m if layer.cross else slots.query + call.n
        keys, queries = real_tokens(call, place, layer, slots, stop)
        tokens = place.tokens if place.tokens is not None and place.tokens.ids.shape == keys.shape else None
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
    model: PreTrainedModel | LM,
    probes: Sequence[Probe] = (),
    *,
    layers: Iterable[int] | Mapping[int, Sequence[int]] | None = None,
    rows: int | None = None,
    seed: int = 0,
    keep: float = 0,
    seen: Callable[[int], None] | None = None,
    shares: bool = False,
) -> Iterator[Session]:
    """Feeds ``probes`` from every attention call of a Transformers model, or of an `LM`, until the block is left.

    The model computes what it would without: its output comes from PyTorch's fused attention, and the rows of
    A are recomputed from the log-sum-exp, block by block, so memory grows with the length and not its square. On
    leaving, also by an exception, the model is as it was. Prefill, padded batches, chunked prefill, several caches in
    turn, gradient checkpointing and ``generate`` with any cache are followed. A step of beam search that exchanges
    sequences begins another sequence, which probes of one refuse; recurrent layers go on by what their cache holds.

    Args:
        model: any Transformers model that calls its attention through the attention interface, with adapters of PEFT
            or without; or a model of ours, of layers of any mechanism, which is to be run whole, not extended.
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
    session = LMSession(model, *about) if isinstance(model, LM) else Watched(host(model), *about)
    try:
        session.install()
        yield session
    finally:
        session.remove()


def detached(call: SoftmaxCall, lse: Tensor) -> tuple[SoftmaxCall, Tensor]:
    """The same without a gradient."""
    parts = {name: value.detach() for name, value in vars(call).items() if isinstance(value, Tensor)}
    return replace(call, **parts), lse.detach()


def real_tokens(call: SoftmaxCall, place: Pass, layer: Layer, slots: Slots, stop: int) -> tuple[Tensor, Tensor]:
    """``(keys (batch, stop), queries (batch, n))`` bool: which of them are no padding.

    The pass's own mask of two axes says so; else keys are real that any query may see, and all are in a causal layer of
    a pass without a mask, whose own masks leave keys out for other reasons.
    """
    batch, device, newest = call.q.shape[0], call.q.device, slots.query + call.n
    keys = torch.ones(batch, stop, dtype=torch.bool, device=device)
    queries = torch.ones(batch, call.n, dtype=torch.bool, device=device)
    given = place.keys if place.keys is not None and len(place.keys) == batch else None
    if given is not None and given.shape[1] >= newest:
        queries = given[:, slots.query : newest].to(device)
    if given is not None and given.shape[1] >= max(stop, newest) and not layer.cross:
        keys = given[:, :stop].to(device)
    elif call.mask is not None and (place.masked or not layer.causal):
        keys[:, slots.key : slots.key + call.m] = call.mask.any(1).any(1)[:, : stop - slots.key]
    if call.mask is not None:
        queries = queries & call.mask.any(1).any(2)
    return keys, queries
