"""Attaching a mechanism, edits and probes to a Transformers model at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from transformers import PreTrainedModel

from regard.core.edit import Edit
from regard.core.errors import wrong
from regard.core.mechanism import Mechanism
from regard.core.policy import Policy
from regard.core.tile import Probe
from regard.hosts.attachment import Attachment, Edits
from regard.hosts.attention_interface import host
from regard.hosts.compress import Compression, compress
from regard.hosts.session import Choice
from regard.hosts.swap import Swap, swap
from regard.hosts.watch import Watched
from regard.patterns import Pattern


class Attached(AbstractContextManager["Attached"]):
    """What `attach` puts into a model, for the length of a ``with`` block, or from `install` to `remove`.

    Args:
        model: the host. swapped, edits, session, compression: what is attached; None or empty for nothing of the kind.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        swapped: Swap | None,
        edits: Sequence[Edit],
        session: Watched | None,
        compression: Compression | None,
    ) -> None:
        self.model, self.swapped, self.session, self.compression = model, swapped, session, compression
        self.edits = list(edits)
        self.attachment: Attachment | None = None
        self.part: Edits | None = None

    def __getitem__(self, name: str) -> Any:
        """The result of the probe of this name."""
        if self.session is None:
            raise wrong("name", repr(name), "the name of a probe, and none was attached: probes=[…]", KeyError)
        return self.session[name]

    def install(self) -> Attached:
        """Puts all of it in, to stay until `remove`; if one part is refused, none stays."""
        try:
            self.attachment = Attachment.on(self.model)
            self.part = Edits(self.attachment, self.edits)
            self.attachment.add(self.part)
            for part in (self.swapped, self.compression, self.session):
                if part is not None:
                    part.install()
        except BaseException:
            self.remove()
            raise
        return self

    def remove(self) -> None:
        """Takes it out; what else is attached to the model stays."""
        for part in (self.session, self.compression, self.swapped):
            if part is not None:
                part.remove()
        if self.attachment is not None and self.part is not None:
            self.attachment.discard(self.part)
        elif self.attachment is not None:  # edits that could not be put in
            self.attachment.settle()
        self.attachment = self.part = None

    def __enter__(self) -> Attached:
        return self if self.part is not None else self.install()

    def __exit__(self, *exception: object) -> None:
        self.remove()


def attach(
    model: PreTrainedModel,
    mechanism: str | Mechanism | Pattern | Mapping[int, str | Mechanism | Pattern] | None = None,
    *,
    edits: Sequence[Edit] = (),
    policy: str | Policy | None = None,
    budget: int | float | str = 512,
    probes: Sequence[Probe] | None = None,
    layers: Iterable[int] | Mapping[int, Sequence[int]] | None = None,
    rows: int | None = None,
    seed: int = 0,
    keep: float = 0,
    shares: bool = False,
) -> Attached:
    """Puts a mechanism, edits, a policy and probes into a Transformers model; leaving the block takes them out again.

        with regard.attach(model, "window(size=256)", edits=[HeadAblation({3: [2]})], probes=[Entropy()]) as attached:
            model.generate(**batch)
        attached["entropy"]

    In each call of the model's attention: edits of queries, keys and values → the cache, or the mechanism's state →
    A·v, edits of scores and masses in it → edits of the heads' outputs → probes. `regard.watch`, `regard.swap`,
    `regard.compress` and `regard.steer` attach one of these; used inside of each other, in whichever order, they act on
    the same calls in this order, edits in that in which they were attached.

    Args:
        model: any Transformers model that calls its attention through the attention interface.
        mechanism: as for `regard.swap`. edits: see `core.edit.Edit`; the later ones act on what the earlier ones left.
        policy, budget: which keys a cache keeps in layers without a mechanism, as for `regard.compress`; None for all.
        probes: as for `regard.watch`, None for no watch.
        layers, rows, seed, keep, shares: of the probes, as for `regard.watch`.

    Raises:
        TypeError: not a Transformers model; something that is no edit. RuntimeError: on entering, a second mechanism, a
            second policy or a second watch on the model. ValueError: as `regard.swap` and `regard.compress`.
    """
    model = host(model)
    for edit in edits:
        if isinstance(edit, type) or not isinstance(edit, Edit):
            what = f"{edit!r}, a {type(edit).__name__}"
            raise wrong("edits", what, "edits as objects, of regard.core.edit.Edit", TypeError)
    swapped = None if mechanism is None else swap(model, mechanism)
    session = None if probes is None else Watched(model, probes, Choice(layers, rows, seed), keep, None, shares)
    compression = None if policy is None else compress(model, policy, budget)
    return Attached(model, swapped, edits, session, compression)
