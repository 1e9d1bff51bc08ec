"""The mutants of memories that learn at test time, whose output is not linear in the values."""

from __future__ import annotations

from dataclasses import replace

import torch

from mutants.register import breaks
from regard.core.layout import Layout
from regard.mechanisms.memory.titans import Titans


@breaks("definition", "gradients")
class ShiftedRead(Titans):
    """Each query reads what the memory was before its own token."""

    def forward(self, q, k, v, layout=Layout(causal=True), **signals):
        out = super().forward(q.roll(-1, 2), k, v, layout, **signals)
        return torch.cat([torch.zeros_like(out[:, :, :1]), out[:, :, :-1]], 2)


@breaks("extend")
class GradientAtTheNewWeights(Titans):
    """A call that begins inside of a chunk takes its gradients where the last call ended."""

    def extend(self, q, k, v, state, key_mask=None, **signals):
        out, state = super().extend(q, k, v, state, key_mask, **signals)
        return out, replace(state, anchor=state.sums)


@breaks("padding")
class DecayOnPadding(Titans):
    """Padding writes nothing, but the memory fades while it passes."""

    def forward(self, q, k, v, layout=Layout(causal=True), **signals):
        if layout.key_mask is not None:
            signals["step"] = signals["step"].masked_fill(~layout.key_mask[:, None], 0)
        return super().forward(q, k, v, replace(layout, key_mask=None), **signals)


@breaks("rows")
class UnscaledInfluence(Titans):
    """Shows the norm of the Jacobian without the root of its channels."""

    def influence(self, q, k, v, layout, rows, **signals):
        return super().influence(q, k, v, layout, rows, **signals) * v.shape[3] ** 0.5


@breaks("rows")
class InfluenceOfTheFuture(Titans):
    """Shows rows in the place of the next ones."""

    def influence(self, q, k, v, layout, rows, **signals):
        return super().influence(q, k, v, layout, slice(rows.start + 1, rows.stop + 1), **signals)
