"""What is attached to a Transformers model: the one attention function of ours in it, and the order of all in a call.

Edits of queries, keys and values, then the cache or the state of the mechanism, then A·v with edits of mass in it, then
edits of the heads' outputs, then probes. Whatever is attached, and in whichever order: a swapped or edited model is
watched as it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.edit import Edit, Place, uses
from regard.core.errors import wrong
from regard.hosts.asides import Asides, applied
from regard.hosts.attention_arguments import Asked, Reader
from regard.hosts.attention_interface import Installed, configurations, label, owner
from regard.hosts.edited_call import Outcome, attend_edited, edited_heads, edited_inputs
from regard.hosts.forward_pass import Pass, PassTracker, recomputing
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.places import Places, astray, place_of
from regard.hosts.sites import Sites
from regard.hosts.slots import Slots
from regard.hosts.softmax_call import attend

GIVEN = ("query", "key", "value")
"""The first arguments of an attention function after its module."""


@dataclass(frozen=True)
class Spot:
    """Which call of the attention function this is.

    Args:
        module: that makes it. name: of the module. label: of the call, ``name#turn`` where it is not the first of its
            module in a pass. layer: index of the call, in order of execution. inside: the innermost running pass.
    """

    module: nn.Module
    name: str
    label: str
    layer: int
    inside: Pass


class Part(Protocol):
    """What can be attached."""

    verb: ClassVar[str]
    """The function that attaches it."""
    doing: ClassVar[str]
    """What is being done to a model that has it, which errors repeat."""

    def finished(self, done: Pass) -> None:
        """Is told of every outermost pass that raised nothing."""
        ...


class Computing(Part, Protocol):
    """A part that computes A·v in some layers in the model's place."""

    def aside(self, function: Any) -> Any:
        """The function, whose own use of PyTorch is none of the model's."""
        ...

    def heard(self) -> list[str] | None:
        """The modules whose softmax weighed something in the pass without being called here; None: nobody listened."""
        ...

    def before(self, spot: Spot, k: Tensor) -> int:
        """How many keys the call is not given, since their state is kept instead."""
        ...

    def takes(self, spot: Spot) -> bool:
        """Whether the layer's attention is computed here."""
        ...

    def slots(self, spot: Spot, asked: Asked) -> Slots:
        """Where the call stands; refuses one that cannot be computed here."""
        ...

    def compute(self, spot: Spot, asked: Asked, slots: Slots) -> tuple[Tensor, ImplicitAttention | None, str]:
        """``(A v, what its rows follow from, what computes it)``."""
        ...


class Keeping(Part, Protocol):
    """A part that keeps the cache of some layers in the model's place."""

    def before(self, spot: Spot, k: Tensor) -> int:
        """How many keys the call is not given, since not all of them are left."""
        ...

    def takes(self, spot: Spot) -> bool:
        """Whether keys are kept here of which some are not at hand as the model would have them."""
        ...

    def compute(self, spot: Spot, asked: Asked) -> Tensor:
        """``A v`` of a call that it takes, over what is left."""
        ...

    def spread(self, spot: Spot, asked: Asked) -> Asked:
        """A call that it takes over all slots, with what is left, for those who want to see or edit A."""
        ...

    def after(self, spot: Spot, asked: Asked, out: Tensor) -> None:
        """Is told of every call but those of a mechanism, with its outputs."""
        ...


class Watching(Part, Protocol):
    """A part that is shown A."""

    def aside(self, function: Any) -> Any:
        """The function, whose own use of PyTorch is none of the model's."""
        ...

    def observe(self, spot: Spot, asked: Asked, outcome: Outcome, slots: Slots | None) -> None:
        """Is shown a softmax call."""
        ...

    def observe_mechanism(self, spot: Spot, source: ImplicitAttention | None, mechanism: str) -> None:
        """Is shown a call that a mechanism computed."""
        ...


class Edits:
    """Edits that were attached together."""

    verb: ClassVar[str] = "regard.steer"
    doing: ClassVar[str] = "edited"

    def __init__(self, attachment: Attachment, edits: Sequence[Edit]) -> None:
        self.attachment, self.edits = attachment, [edit for edit in edits if not edit.idle]
        self.sites = Sites(attachment, self.edits)
        self.asides = Asides(attachment, [edit for edit in self.edits if uses(edit, "inputs")])

    def finished(self, done: Pass) -> None:
        """Refuses layers that the model does not have."""
        last = len(self.attachment.order) - 1
        absent = {
            layer for edit in self.edits for layer in edit.where.named_layers if layer > last + ("resid" in edit.parts)
        }
        if absent:
            there = f"some of 0 to {last}, the attention layers of {label(self.attachment.model)}"
            raise wrong("layers", f"{sorted(absent)}", there)


class Attachment:
    """What is attached to one model, from the first part on until the last is taken off.

    Args:
        model: a Transformers model that has none of ours in it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.names = {id(module): name for name, module in model.named_modules()}
        self.order: dict[str, int] = {}
        self.parts: list[Part] = []
        self.computing: Computing | None = None
        self.keeping: Keeping | None = None
        self.watching: Watching | None = None
        self.silent = False  # while a block is run only to find its parts
        self.noted: list[tuple[Tensor, Tensor]] | None = None  # while one is run only for its queries and keys
        self.sites = Sites(self, [])
        self.reader = Reader(model, "regard")
        self.places = Places()
        self.checkpointing: list[Any] = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        self.installed = Installed(model, self.attend)
        self.passes = PassTracker(model, self.finished)

    @classmethod
    def on(cls, model: PreTrainedModel) -> Attachment:
        """That which is on the model, or a new one.

        Raises:
            RuntimeError: another model that shares a configuration with it has one.
        """
        for config in configurations(model):
            found = owner(model, config)
            if found is not None and found.model is not model:
                raise taken(model, found)
            if found is not None:
                return found
        return cls(model)

    @property
    def edits(self) -> list[Edit]:
        """All edits that do something, in the order in which they were attached."""
        return [edit for part in self.parts if isinstance(part, Edits) for edit in part.edits]

    def add(self, part: Part) -> None:
        """Attaches one thing more.

        Raises:
            RuntimeError: there is another of its kind, which there can be but one of.
        """
        if not isinstance(part, Edits) and any(other.doing == part.doing for other in self.parts):
            raise taken(self.model, self, part.doing)
        self.parts.append(part)
        self.reader.verb = self.parts[0].verb

    def discard(self, part: Part) -> None:
        """Takes it off; the model is as it was before once nothing is left."""
        self.parts = [other for other in self.parts if other is not part]
        if isinstance(part, Edits):
            part.sites.remove()
            part.asides.remove()
        self.computing = None if self.computing is part else self.computing
        self.keeping = None if self.keeping is part else self.keeping
        self.watching = None if self.watching is part else self.watching
        self.settle()

    def settle(self) -> None:
        """Leaves the model as it was before, where nothing is attached."""
        if not self.parts:
            self.passes.remove()
            self.installed.remove()

    def finished(self, done: Pass) -> None:
        """Tells all parts of a pass, and refuses edits and mechanisms in a model that calls no attention interface."""
        self.reader.forget()
        for part in list(self.parts):
            if part is self.watching:
                part.finished(done)
        if done.module is not self.model:
            return
        others = [part for part in self.parts if part is not self.watching]
        if others and not any(called.partition("#")[0] in done.calls for called in self.order):
            raise self.never_called()
        for part in others:
            part.finished(done)

    def never_called(self) -> Exception:
        """What to raise for a model that ran without one call of the attention function."""
        what = f"{label(self.model)}, which ran a whole forward pass without calling the attention interface"
        wanted = "a model that does: this one computes attention in its own code, or has none"
        own = None if self.computing is None else self.computing.heard()
        if own is not None:
            wanted = "a model that does"
            what += ": no softmax in it weighs tokens" if not own else ""
        if own:
            more = f", and {len(own) - 1} more do" if len(own) > 1 else ""
            kind = type(self.model.get_submodule(own[0])).__name__
            what += f": {own[0]}, a {kind}, computes attention in its own code{more}"
        return wrong("model", what, wanted, RuntimeError)

    def attend(self, module: nn.Module, *args: Any, eager: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The attention function that Transformers calls."""
        run = self.run
        for part in (self.computing, self.watching):
            run = run if part is None else part.aside(run)
        return run(module, *args, eager=eager, **kwargs)

    def run(self, module: nn.Module, *args: Any, eager: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """One call: edits of inputs, A·v under edits of mass, edits of outputs, probes."""
        if self.noted is not None:
            given: list[Tensor] = [kwargs[name] if name in kwargs else args[at] for at, name in enumerate(GIVEN)]
            q, k, v = given
            self.noted.append((q, k))
            return v.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3]), None
        if self.silent:
            asked = self.reader.read(eager, module, args, kwargs)
            return attend(asked.call, asked.v)[0].transpose(1, 2).contiguous(), None
        spot, edits = self.spot(module), self.edits
        k = kwargs["key"] if "key" in kwargs else args[1]
        before = 0 if self.computing is None else self.computing.before(spot, k)
        if self.keeping is not None:
            before = max(before, self.keeping.before(spot, k))
        asked = self.reader.read(eager, module, args, kwargs, before)
        if self.computing is not None and self.computing.takes(spot):
            return self.run_mechanism(self.computing, spot, asked, edits), None
        if self.keeping is not None and self.keeping.takes(spot):
            if not edits and self.watching is None and not self.passes.weights:
                return self.keeping.compute(spot, asked).transpose(1, 2).contiguous(), None
            asked = self.keeping.spread(spot, asked)
        slots = self.slots(spot, asked) if edits or self.watching is not None else None
        edits = [edit for edit in edits if edit.where.takes(spot.layer)]
        place = self.place(spot, asked, slots) if edits else None
        asked = self.edited(edits, asked, place)
        outcome = attend_edited(edits, asked.call, asked.v, asked.dropout, place)
        if place is not None:
            asides = [part.asides for part in self.parts if isinstance(part, Edits) and part.asides.found]
            outcome = applied(asides, outcome, edits, asked.call, asked.v, asked.dropout, place)
        weights = outcome.weights().to(outcome.out.dtype) if self.passes.weights else None
        out = outcome.out if place is None else edited_heads(edits, outcome.out, place)
        if self.watching is not None and not recomputing():
            self.watching.observe(spot, asked, outcome, slots)
        if self.keeping is not None:
            self.keeping.after(spot, asked, out)
        return out.transpose(1, 2).contiguous(), weights

    def run_mechanism(self, computing: Computing, spot: Spot, asked: Asked, edits: Sequence[Edit]) -> Tensor:
        """A call in which a mechanism stands for the model's own attention."""
        slots = computing.slots(spot, asked)
        edits = [edit for edit in edits if edit.where.takes(spot.layer)]
        place = self.place(spot, asked, slots) if edits else None
        for edit in edits:
            refuse_mass(edit, spot)
        asked = self.edited(edits, asked, place)
        out, source, mechanism = computing.compute(spot, asked, slots)
        out = out if place is None else edited_heads(edits, out, place)
        if self.watching is not None and not recomputing():
            self.watching.observe_mechanism(spot, source, mechanism)
        return out.transpose(1, 2).contiguous()

    @property
    def shown(self) -> bool:
        """Whether somebody sees A."""
        return self.watching is not None or self.passes.weights

    def layer_of(self, name: str) -> int:
        """The index that an attention module has, or will have when it is called for the first time."""
        turn = 0 if recomputing() else self.passes.turn(name)
        return self.order.get(name if turn == 0 else f"{name}#{turn}", len(self.order))

    def spot(self, module: nn.Module) -> Spot:
        """Which call this is."""
        name = self.names[id(module)]
        inside, turn = self.passes.locate(name)
        called = name if turn == 0 else f"{name}#{turn}"
        return Spot(module, name, called, self.order.setdefault(called, len(self.order)), inside)

    def slots(self, spot: Spot, asked: Asked) -> Slots | None:
        """Where the call stands, None if its keys are another sequence."""
        return self.passes.slots(spot.inside, spot.name, spot.module, asked.call.n, asked.call.m)

    def place(self, spot: Spot, asked: Asked, slots: Slots | None) -> Place:
        """What edits are told of the call."""
        call, batch = asked.call, asked.call.q.shape[0]
        if recomputing():
            return self.places.recall(
                spot.name,
                lambda known: (known.part, known.n, known.m, len(known.keys)) == (CALL, call.n, call.m, batch),
            )
        cross = self.passes.crosses(spot.inside, spot.name, slots, asked)
        if not cross and slots is None:
            raise astray(call, spot.name, spot.inside.past)
        at = Slots(spot.inside.past) if cross or slots is None else slots
        causal = not cross and asked.causal(at.query - at.key)
        place = place_of(call, spot.inside, spot.layer, at, causal, cross, self.passes)
        self.remember(spot.name, place)
        return place

    def remember(self, name: str, place: Place) -> None:
        """Notes where a module was called, if gradient checkpointing may call it again."""
        if torch.is_grad_enabled() and any(module.gradient_checkpointing for module in self.checkpointing):
            self.places.note(name, place)

    def edited(self, edits: Sequence[Edit], asked: Asked, place: Place | None) -> Asked:
        """The call with its edited inputs."""
        if place is None:
            return asked
        q, k, v = edited_inputs(edits, asked.call.q, asked.call.k, asked.v, place)
        if q is asked.call.q and k is asked.call.k and v is asked.v:
            return asked
        return replace(asked, v=v, call=replace(asked.call, q=q, k=k))


def refuse_mass(edit: Edit, spot: Spot) -> None:
    """Raises a ValueError for an edit of inputs, scores or masses in a layer that a mechanism computes without them."""
    for method in ("inputs", "scores", "masses"):
        if uses(edit, method):
            what = f"{type(edit).__name__}, which edits {method}, in the swapped layer {spot.layer}"
            wanted = "edits of queries, values, heads or hidden states there, or layers of the model's own softmax"
            raise wrong("edits", what, wanted)


def taken(model: PreTrainedModel, found: Attachment, doing: str | None = None) -> Exception:
    """What to raise where a model, or one that shares a configuration with it, has what there can be but one of."""
    doing = doing or found.parts[0].doing
    what = f"{label(model)}, which is {doing} already or shares its configuration with a model that is"
    wanted = "one watch, one swap and one compression at a time: leave the other first, or give it all that you want"
    return wrong("model", what, wanted, RuntimeError)


CALL = "attention"
"""The part of a block that a call of attention itself is about."""
