"""Reading a model's activations while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from regard.core.edit import Edit
from regard.edits.trace import Site, Trace
from regard.hosts.attach import attach


@contextmanager
def trace(
    model: Any, keep: Sequence[Site] = ("z",), *, edits: Sequence[Edit] = (), layers: Iterable[int] | None = None
) -> Iterator[Trace]:
    """Keeps activations of every pass until the block is left, with their gradients; edits act before they are read.

        with regard.trace(model, ["z", "resid"]) as seen:
            model(ids)
        seen.get("z", 3)  # (b, heads, n, e), the heads' outputs of layer 3

    Args:
        model: a Transformers model. keep: of ``q``, ``k``, ``v``, ``z``, ``resid``, ``attn``, ``mlp``.
        edits: interventions under which the model runs. layers: indices, None for all.

    Raises:
        ValueError: an unknown site.
    """
    seen = Trace(*keep, layers=layers)
    with attach(model, edits=[*edits, seen]):
        yield seen
