"""Steering a Transformers model by edits of its attention, while it runs."""

from __future__ import annotations

from transformers import PreTrainedModel

from regard.core.edit import Edit
from regard.hosts.attach import Attached, attach


def steer(model: PreTrainedModel, *edits: Edit) -> Attached:
    """Changes what a Transformers model attends to while it runs, without training it.

        with regard.steer(model, HeadAblation([2, 3], layers=[1])):
            model.generate(**batch)

    Args:
        model: any Transformers model that calls its attention through the attention interface. edits: what is changed,
            from left to right; see `core.edit.Edit` and `regard.edits`.

    Raises:
        TypeError: not a Transformers model, or something that is no edit. ValueError: while it runs, a layer, head or
            row of the batch that the model does not have.
    """
    return attach(model, edits=edits)
