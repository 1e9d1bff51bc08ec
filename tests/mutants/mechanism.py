"""Mutants of mechanisms: for each law, ways of breaking it that really happen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import mutants.memory
import mutants.pairs  # noqa: F401 - registers those about masks and biases
from mutants.register import MUTANTS as MUTANTS
from mutants.register import breaks
from mutants.textbook import Seen, Textbook
from regard.core.cost import Cost
from regard.core.layout import Layout
from regard.core.mechanism import Signal, repeat_heads
from regard.mechanisms.linear.gla import GatedLinear
from regard.mechanisms.scored.forgetting import Forgetting

ORIGINAL = Textbook
"""What they are broken from."""


@breaks("definition")
class MissingScale(Textbook):
    """The fast path forgets 1/√d."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        return super().forward(q * q.shape[-1] ** 0.5, k, v, layout, **signals)


@breaks("definition")
class HalfPrecisionSum(Textbook):
    """Sums in the precision of the inputs, bfloat16 included."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        self.check(q, k, v, layout, signals)
        a, total = (
            self.weights(q, k, layout, **signals),
            torch.zeros_like(q[..., :1]) * repeat_heads(v, q.shape[1])[:, :, :1],
        )
        for j in range(v.shape[2]):
            total = total + a[..., j : j + 1] * repeat_heads(v, q.shape[1])[:, :, j : j + 1]
        return total


@breaks("definition")
class ProductsInHalfPrecision(Textbook):
    """The definition multiplies queries and keys in their own precision, and scales the products."""


def narrow(self, q, k, layout=Layout(), **signals):
    """Scores in the dtype of q."""
    self.check(q, k, None, layout, signals)
    scores = (q @ repeat_heads(k, q.shape[1]).mT * self.scale(q)).to(q.dtype)
    allowed = self.visible(q.shape[2], k.shape[2], layout, q.device)
    return self.normalise(scores.masked_fill(~allowed, -torch.inf), allowed)


ProductsInHalfPrecision.weights = narrow  # past what the base class does to the definitions of subclasses


@breaks("definition")
class TileLost(Textbook):
    """Every key beyond the first tile of 256 is dropped."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        self.check(q, k, v, layout, signals)
        a = self.weights(q, k, layout, **signals)[..., :256]
        return a @ repeat_heads(v, q.shape[1])[:, :, :256]


@breaks("linear")
class ClippedValues(Textbook):
    """Squashes the output, so that it is no longer linear in the values."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        return torch.tanh(super().forward(q, k, v, layout, **signals))


@breaks("causal")
class LeaksInVain(Textbook):
    """Says that its rows choose by later tokens, and they do not."""

    traits = dataclasses.replace(Textbook.traits, leaks=True)


@breaks("causal")
class MaskOffByOne(Textbook):
    """Query i also sees key i + 1."""

    def visible(self, n, m, layout, device):
        if not layout.causal:
            return super().visible(n, m, layout, device)
        late = torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n + 1)
        return layout_without_causal(layout).allowed(n, m, device) & late


@breaks("causal")
class GlobalMaximum(Textbook):
    """Stabilises with the maximum over all rows, so the future changes the rounding of the past."""

    def weights(self, q, k, layout=Layout(), **signals):
        a = super().weights(q, k, layout, **signals)
        shift = (q.detach().abs().sum() * 1e-9).to(q.dtype)
        return a * (1 + shift) if layout.causal else a


@breaks("causal")
class EarlierQueries(Textbook):
    """Adds half of the query before to each, which fewer queries than keys do not have."""

    def weights(self, q, k, layout=Layout(), **signals):
        before = torch.nn.functional.pad(q, (0, 0, 1, -1)) if q.shape[2] else q
        return super().weights(q + before / 2, k, layout, **signals)


@breaks("rows", "definition")
class UnnormalisedRows(Textbook):
    """Rows sum to one half."""

    def normalise(self, scores, allowed):
        return super().normalise(scores, allowed) / 2

    def forward(self, q, k, v, layout=Layout(), **signals):
        return 2 * super().forward(q, k, v, layout, **signals)


@breaks("rows")
class LeakyMask(Textbook):
    """Masked scores are merely small, so hidden keys keep a little weight."""

    def weights(self, q, k, layout=Layout(), **signals):
        self.check(q, k, None, layout, signals)
        scores = q @ repeat_heads(k, q.shape[1]).transpose(-1, -2) * self.scale(q)
        return torch.softmax(scores.masked_fill(~layout.allowed(q.shape[2], k.shape[2], q.device), -10.0), -1)


@breaks("rows")
class NegativeWeights(Textbook):
    """Weights of both signs where non-negative ones are declared."""

    def normalise(self, scores, allowed):
        a = super().normalise(scores, allowed)
        centred = a - 2 * a * (torch.arange(a.shape[-1], device=a.device) % 2)
        return centred


@breaks("extend")
class ShiftedCache(Textbook):
    """Drops the oldest entry of the cache whenever a single token arrives."""

    def extend(self, q, k, v, state, key_mask=None, **signals):
        if k.shape[2] == 1 and state.k.shape[2] > 1:
            state = Seen(state.seen, state.k[:, :, 1:], state.v[:, :, 1:], state.keys[:, 1:])
        return super().extend(q, k, v, state, key_mask, **signals)


@breaks("extend")
class ForgottenPadding(Textbook):
    """The cache forgets which of its entries were padding."""

    def extend(self, q, k, v, state, key_mask=None, **signals):
        state = dataclasses.replace(state, keys=torch.ones_like(state.keys))
        return super().extend(q, k, v, state, key_mask, **signals)


@breaks("extend")
class UnselectedState(Textbook):
    """Selecting sequences reorders the keys but not the values."""

    def start(self, batch, *, device="cpu", dtype=torch.float32):
        return HalfSelected(**super().start(batch, device=device, dtype=dtype).__dict__)

    def extend(self, q, k, v, state, key_mask=None, **signals):
        out, after = super().extend(q, k, v, state, key_mask, **signals)
        return out, HalfSelected(**after.__dict__)


@breaks("extend")
class SignalsOfNewKeysOnly(Forgetting):
    """The cache forgets the gates of earlier tokens."""

    def extend(self, q, k, v, state, key_mask=None, **signals):
        before = dataclasses.replace(state, signals=tuple(torch.zeros_like(x) for x in state.signals))
        return super().extend(q, k, v, before, key_mask, **signals)


@dataclass(frozen=True)
class HalfSelected(Seen):
    """A state whose values stay in the old order."""

    def select(self, index: Tensor):
        return dataclasses.replace(super().select(index), v=self.v[: len(index)])


@breaks("padding")
class PaddingIgnored(Textbook):
    """Attends to padding as if it were text."""

    def visible(self, n, m, layout, device):
        return Layout(causal=layout.causal, segments=layout.segments).allowed(n, m, device)


@breaks("padding")
class SegmentsIgnored(Textbook):
    """Lets packed documents see each other."""

    def visible(self, n, m, layout, device):
        return Layout(causal=layout.causal, key_mask=layout.key_mask).allowed(n, m, device)


@breaks("padding")
class SlotPositions(Textbook):
    """A recency bias by slot of the batch instead of by position: padding shifts it."""

    def visible(self, n, m, layout, device):
        fresh = torch.arange(m, device=device) % 4 != 3
        return super().visible(n, m, layout, device) & fresh


@breaks("gradients")
class DetachedKeys(Textbook):
    """No gradient flows to the keys."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        return super().forward(q, k.detach(), v, layout, **signals)


@breaks("gradients")
class DetachedInBoth(Textbook):
    """The last number of each key has no gradient, in the definition as in the fast path."""

    def weights(self, q, k, layout=Layout(), **signals):
        k = torch.cat([k[..., :-1], k[..., -1:].detach()], -1)
        return super().weights(q, k, layout, **signals)


@breaks("gradients")
class DetachedParameter(Textbook):
    """A learned temperature that the fast path does not train."""

    def __init__(self):
        super().__init__()
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def weights(self, q, k, layout=Layout(), **signals):
        return super().weights(q * self.temperature, k, layout, **signals)

    def forward(self, q, k, v, layout=Layout(), **signals):
        self.check(q, k, v, layout, signals)
        a = Textbook.weights(self, q * self.temperature.detach(), k, layout, **signals)
        return a @ repeat_heads(v, q.shape[1])


@breaks("grouped")
class InterleavedGroups(Textbook):
    """Assigns query heads to kv heads round-robin instead of in runs, in both of its forms."""

    def weights(self, q, k, layout=Layout(), **signals):
        return super().weights(q, k.repeat(1, q.shape[1] // k.shape[1], 1, 1), layout, **signals)

    def forward(self, q, k, v, layout=Layout(), **signals):
        self.check(q, k, v, layout, signals)
        return self.weights(q, k, layout, **signals) @ v.repeat(1, q.shape[1] // v.shape[1], 1, 1)

    @classmethod
    def examples(cls):
        return [dataclasses.replace(super().examples()[0], heads=6, kv_heads=6)]


@breaks("cost")
class ForgottenProduct(Textbook):
    """The formula forgets the second matrix product."""

    def cost(self, shape, layout=Layout()):
        whole = super().cost(shape, layout)
        return Cost(
            2 * shape.batch * shape.heads * shape.n * shape.keys * shape.head_dim, whole.bytes, whole.state_bytes
        )


@breaks("cost")
class ForgottenValues(Textbook):
    """The state's bytes leave out the values."""

    def cost(self, shape, layout=Layout()):
        whole = super().cost(shape, layout)
        return Cost(whole.flops, whole.bytes, whole.state_bytes // 2)


@breaks("cost")
class UntrueGrowth(Textbook):
    """Claims a state of constant size."""

    traits = dataclasses.replace(Textbook.traits, state="constant")


@breaks("symmetry")
class OrderMatters(Textbook):
    """Adds a bias to the first key, in both of its forms."""

    def normalise(self, scores, allowed):
        first = torch.arange(scores.shape[-1], device=scores.device) == 0
        return super().normalise(scores + first.to(scores.dtype), allowed)


@breaks("edges")
class NoKeys(Textbook):
    """NaN where a query has nothing to attend to."""

    def normalise(self, scores, allowed):
        return torch.softmax(scores, dim=-1)


@breaks("edges")
class GradientOfNothing(Textbook):
    """A query with nothing to attend to returns zeros that move with the values."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        out = super().forward(q, k, v, layout, **signals)
        unseen = ~self.visible(q.shape[2], k.shape[2], layout, q.device).any(-1, keepdim=True)
        total = repeat_heads(v, q.shape[1]).sum(2, keepdim=True)
        return out + unseen * (total - total.detach())


@breaks("edges")
class MaskedTooLate(Textbook):
    """Hides keys after the exponential, whose overflow then makes the gradient NaN."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        self.check(q, k, v, layout, signals)
        k, v = (repeat_heads(x, q.shape[1]) for x in (k, v))
        scores = q @ k.mT * self.scale(q)
        allowed = self.visible(q.shape[2], k.shape[2], layout, q.device)
        if not scores.numel():
            return scores @ v
        top = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).amax(-1, keepdim=True)
        powers = torch.where(allowed, torch.exp(scores - top), 0)
        return powers / powers.sum(-1, keepdim=True).clamp(min=torch.finfo(powers.dtype).tiny) @ v


@breaks("edges")
class Unchecked(Textbook):
    """Accepts what does not fit."""

    def check(self, q, k, v, layout, signals):
        """Looks at nothing."""


@breaks("edges")
class UndemandedSignal(Textbook):
    """Declares a signal and gets along without it."""

    signals: ClassVar = {"gate": Signal("scales the row", side="query")}

    def check(self, q, k, v, layout, signals):
        super().check(q, k, v, layout, {"gate": q[..., 0], **signals})


@breaks("edges")
class ContiguityAssumed(Textbook):
    """Reads the values as they lie in memory."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        flat = v.as_strided(v.shape, torch.empty(v.shape, device="meta").stride()) if 0 not in v.stride() else v
        return super().forward(q, k, flat, layout, **signals)


@breaks("edges")
class GradientByMemory(Textbook):
    """Reads the gradient that comes in as it lies in memory."""

    def forward(self, q, k, v, layout=Layout(), **signals):
        return ByMemory.apply(super().forward(q, k, v, layout, **signals))


class ByMemory(torch.autograd.Function):
    """Itself; backward, too, if the gradient is contiguous."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return (
            grad if 0 in grad.stride() else grad.as_strided(grad.shape, torch.empty(grad.shape, device="meta").stride())
        )


@breaks("ranges")
class UncheckedRange(Textbook):
    """Declares a gate between 0 and 1 and takes any number for one."""

    signals: ClassVar = {"gate": Signal("scales the row", side="query", low=0, high=1)}

    def check(self, q, k, v, layout, signals):
        super().check(q, k, v, layout, {name: x.nan_to_num().clamp(0, 1) for name, x in signals.items()})

    def weights(self, q, k, layout=Layout(), **signals):
        return super().weights(q, k, layout, **signals) * signals["gate"][..., None]


@breaks("ranges")
class FirstChecked(UncheckedRange):
    """Asks the first entry of a signal alone whether it is in its range."""

    def check(self, q, k, v, layout, signals):
        first = {name: x.reshape(-1)[0].expand_as(x) for name, x in signals.items()}
        Textbook.check(self, q, k, v, layout, first)


@breaks("ranges")
class LostDecays(GatedLinear):
    """The definition takes differences of sums, which lose weak decays after strong ones, and are NaN after −inf."""

    def pairs(self, x, passing, allowed):
        assert x.log_decay is not None
        since = x.log_decay.nan_to_num().cumsum(2)
        apart = (since[..., :, None, :] - since[..., None, :, :]).masked_fill(~allowed[..., None], -torch.inf)
        return torch.einsum("bhid,bhijd,bhjd->bhij", x.q, apart.exp(), x.k)


def layout_without_causal(layout: Layout) -> Layout:
    """The same layout, bidirectional."""
    return dataclasses.replace(layout, causal=False)
