"""The mutants of the laws about what a call says of single pairs: masks and biases."""

from __future__ import annotations

import dataclasses

import torch

from mutants.register import breaks
from mutants.textbook import Textbook
from regard.core.layout import Layout


def with_mask(change):
    """A ``visible`` under the layout's mask as ``change`` leaves it."""

    def visible(self, n, m, layout, device):
        given = layout if layout.mask is None else dataclasses.replace(layout, mask=change(layout.mask))
        return Textbook.visible(self, n, m, given, device)

    return visible


@breaks("mask")
class MaskIgnored(Textbook):
    """Takes a mask and shows what it hides, in both of its forms."""

    visible = with_mask(torch.ones_like)


@breaks("mask")
class MaskIgnoredFast(Textbook):
    """The fast path alone forgets the mask."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        return super().forward(q, k, v, dataclasses.replace(layout, mask=None), **signals)


@breaks("mask")
class MaskTransposed(Textbook):
    """Reads the mask's rows as keys."""

    visible = with_mask(lambda mask: mask.mT if mask.shape[2] == mask.shape[3] else mask)


@breaks("mask")
class MaskInverted(Textbook):
    """Takes True for hidden."""

    visible = with_mask(torch.logical_not)


@breaks("mask")
class HeadsOfMaskDropped(Textbook):
    """Uses the first head's mask for all heads, in its fast form."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        mask = layout.mask if layout.mask is None else layout.mask[:, :1]
        return super().forward(q, k, v, dataclasses.replace(layout, mask=mask), **signals)


@breaks("mask")
class BatchOfMaskDropped(Textbook):
    """Uses the first sequence's mask for all, in both of its forms."""

    visible = with_mask(lambda mask: mask[:1])


@breaks("mask")
class MaskInPlaceOfTheRest(Textbook):
    """Where there is a mask, causality and padding are forgotten."""

    def visible(self, n, m, layout, device):
        return super().visible(n, m, layout if layout.mask is None else Layout(mask=layout.mask), device)


@breaks("mask")
class MaskAfterSoftmax(Textbook):
    """Hides weights after they were normalised: those hidden take their share all the same."""

    def weights(self, q, k, layout=Layout(), **signals):
        a = super().weights(q, k, dataclasses.replace(layout, mask=None), **signals)
        return a if layout.mask is None else a * layout.mask


@breaks("mask")
class BlindRowsSpread(Textbook):
    """A query whose keys are all hidden sees all of them, as a softmax of equal scores does."""

    def normalise(self, scores, allowed):
        return torch.softmax(scores.masked_fill(~allowed, torch.finfo(scores.dtype).min), dim=-1)


@breaks("mask")
class RowsUnmasked(Textbook):
    """Some rows of A are read without the mask."""

    def rows(self, q, k, layout, rows, **signals):
        return super().rows(q, k, dataclasses.replace(layout, mask=None), rows, **signals)


@breaks("mask")
class HiddenKeysTrained(Textbook):
    """Gradients flow to what the mask hides."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        out = super().forward(q, k, v, layout, **signals)
        return out if layout.mask is None else out + (v - v.detach()).mean((1, 2), keepdim=True)


@breaks("edges")
class MaskTakenUnclaimed(Textbook):
    """Does not claim masks and runs under one."""

    traits = dataclasses.replace(Textbook.traits, masked=False)

    def forward(self, q, k, v, layout=Layout(), **signals):
        return super().forward(q, k, v, dataclasses.replace(layout, mask=None), **signals)


@breaks("bias")
class BiasIgnored(Textbook):
    """Takes a bias and adds nothing, in both of its forms."""

    def added(self, layout):
        return torch.zeros(())


@breaks("bias")
class BiasIgnoredFast(Textbook):
    """The fast path alone forgets the bias."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        return super().forward(q, k, v, dataclasses.replace(layout, bias=None), **signals)


@breaks("bias")
class BiasScaled(Textbook):
    """Adds the bias to products that are not scaled yet, in both of its forms."""

    def added(self, layout):
        return super().added(layout) * 5**-0.5


@breaks("bias")
class HeadsOfBiasDropped(Textbook):
    """Uses the first head's bias for all heads, in its fast form."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        bias = layout.bias if layout.bias is None else layout.bias[:, :1]
        return super().forward(q, k, v, dataclasses.replace(layout, bias=bias), **signals)


@breaks("bias")
class BiasOfTheFirstRow(Textbook):
    """Adds the first query's bias to all queries, in both of its forms."""

    def added(self, layout):
        return super().added(layout)[..., :1, :]


@breaks("bias")
class BiasAfterSoftmax(Textbook):
    """Multiplies weights that were normalised, in both of its forms."""

    def added(self, layout):
        return torch.zeros(())

    def weights(self, q, k, layout=Layout(), **signals):
        a = super().weights(q, k, layout, **signals)
        return a if layout.bias is None else a * layout.bias.exp()


@breaks("bias")
class RowsUnbiased(Textbook):
    """Some rows of A are read without the bias."""

    def rows(self, q, k, layout, rows, **signals):
        return super().rows(q, k, dataclasses.replace(layout, bias=None), rows, **signals)


@breaks("bias")
class BiasUntrained(Textbook):
    """No gradient flows to the bias in the fast form."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        bias = layout.bias if layout.bias is None else layout.bias.detach() + 0 * layout.bias
        return super().forward(q, k, v, dataclasses.replace(layout, bias=bias), **signals)


@breaks("bias")
class BiasInPlaceOfTheRest(Textbook):
    """Where there is a bias, causality is forgotten by the fast form."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        given = layout if layout.bias is None else dataclasses.replace(layout, causal=False)
        return super().forward(q, k, v, given, **signals)


@breaks("edges")
class BiasTakenUnclaimed(Textbook):
    """Does not claim biases and runs under one."""

    traits = dataclasses.replace(Textbook.traits, biased=False)

    def forward(self, q, k, v, layout=Layout(), **signals):
        return super().forward(q, k, v, dataclasses.replace(layout, bias=None), **signals)
