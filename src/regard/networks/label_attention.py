"""Attention heads that stand for labels, and a parser of constituents that reads what they gather."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network


class Standardised(nn.Module):
    """``a (x − mean) / (s + 10⁻³) + b`` with s the deviation of a sample, as the authors' layers have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-3) + self.shift


@published(
    "label_attention",
    family="structured",
    kind="network",
    row=339,
    title="Rethinking Self-Attention: Towards Interpretability in Neural Parsing",
    arxiv="1911.03875",
    year=2020,
    aliases=("lal", "label_attention_layer"),
    fidelity="authors' code",
    claim=(
        Claim(
            "a parser with it has an F1 of brackets at least as high as one with self-attention of the same size",
            cells="parsing.brackets",
            holds="parsing.is_as_good",
        ),
        Claim(
            "without a label's head the F1 of that label falls twice as much as that of others",
            cells="parsing.brackets",
            holds="parsing.heads_are_labels",
        ),
    ),
)
class LabelAttention(Network):
    """A layer whose heads are labels: each asks all words one learned question, and what it hears goes to every word.

        a_l = softmax_j(q_l · (K_l x_j) / √c),   c_l = Σ_j a_lj V_l x_j
        y_il = norm(R (W c_l + x_i)),   y_i = [y_i1; …; y_iL]

    q is learned; W and R are shared by the labels. R (W c + x) is a sum of two parts, so that no tensor has a number
    for each word, label and channel. Where the last ``positional`` channels of x hold position alone, q, K, V and W are
    halves, one for these channels and one for the others, which meet in the scores and in R.

    Shapes: ``x (b, n, c)``, ``key_mask (b, n)`` -> ``(b, n, L projected)``.

    Args:
        channels: c. labels: L. size: of keys and values. projected: of each y_il, even: halves are for spans.
        seed: of the initial weights; None takes PyTorch's. positional: how many channels hold position alone.

    Raises:
        ValueError: sizes below one, an odd ``projected``, halves of an odd size, or x of other channels.

    Paper: Mrini et al., arXiv 1911.03875. In batches of more than one sentence the authors' code gives the queries of
    labels to the keys of others; here a batch is what its sentences are.
    """

    def __init__(
        self,
        channels: int,
        labels: int = 112,
        size: int = 64,
        projected: int = 64,
        seed: int | None = None,
        positional: int = 0,
    ) -> None:
        super().__init__()
        if min(channels, labels, size, projected) < 1 or projected % 2:
            came = f"{channels}, {labels}, {size}, {projected}"
            raise wrong("channels, labels, size, projected", came, "at least 1 each, the last even")
        self.parts, each = parts_of(channels, positional, size)
        if seed is not None:
            torch.manual_seed(seed)
        self.channels, self.labels = channels, labels
        self.query = nn.Parameter(nn.init.xavier_normal_(torch.empty(labels, size)))
        self.key, self.value = (
            nn.ParameterList(nn.init.xavier_normal_(torch.empty(labels, part, each)) for part in self.parts)
            for _ in range(2)
        )
        self.attention = build("softmax", scale=channels**-0.5)
        self.join = nn.ModuleList(nn.Linear(each, part, bias=False) for part in self.parts)
        self.reduce = nn.Linear(channels, projected, bias=False)
        self.norm = Standardised(projected)

    def gather(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """c, ``(b, L, size)``: what each label hears."""
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(b, n, {self.channels})")
        halves = x.split(self.parts, -1)
        k, v = (
            torch.cat([torch.einsum("bnc,lcd->blnd", half, w) for half, w in zip(halves, weights, strict=True)], -1)
            for weights in (self.key, self.value)
        )
        q = self.query[None, :, None].expand(x.shape[0], -1, -1, -1)
        return self.attention(q, k, v, Layout(key_mask=key_mask))[:, :, 0]

    def joined(self, heard: Tensor) -> Tensor:
        """W c, ``(b, L, channels)``."""
        halves = heard.chunk(len(self.parts), -1)
        return torch.cat([join(half) for join, half in zip(self.join, halves, strict=True)], -1)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        heard = self.reduce(self.joined(self.gather(x, key_mask)))
        return self.norm(heard[:, None] + self.reduce(x)[:, :, None]).flatten(2)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": partial(vectors, channels=8), "output": (11, 20)}
        made = {"5 labels": cls(8, 5, 6, 4, seed=0), "position apart": cls(8, 5, 6, 4, seed=0, positional=3)}
        return [Sample(label, network, given) for label, network in made.items()]


def parts_of(channels: int, positional: int, size: int) -> tuple[tuple[int, ...], int]:
    """How many channels hold words and how many position, and what of ``size`` each has."""
    if not positional:
        return (channels,), size
    if not 0 < positional < channels or size % 2:
        raise wrong("positional", f"{positional}, size {size}", f"1 to {channels - 1} channels, and an even size")
    return (channels - positional, positional), size // 2


class SpanParser(Network):
    """Scores of labels for every span of a sentence, read from label attention or from self-attention.

        f_i = forward half of y_i,  b_i = backward half,   span (i, j) = [f_j − f_i; b_{i+1} − b_{j+1}]
        scores = W relu(norm(W' span)),   the label "none" scores zero

    A sentence has a word before its first and one behind its last. Spans go from a fence between words to another.
    Words and their positions are added, or with ``apart`` stand in halves of x, which all attention keeps apart.

    Shapes: ``words (b, n)`` ids -> ``(b, n − 1, n − 1, labels)`` of spans from fence i to fence j.

    Args:
        words: vocabulary. labels: of spans. width: of words. projected: of each head. attention: "labels", a head for
            each label; "self", as many heads of self-attention. longest: of sentences. own: whether a label is scored
            from its own head alone. seed: of the initial weights. apart: position in a half of the channels.

    Raises:
        ValueError: another attention, or a sentence that is too long.

    Paper: Mrini et al., arXiv 1911.03875, after Kitaev and Klein, arXiv 1805.01052.
    """

    def __init__(
        self,
        words: int,
        labels: int,
        width: int = 64,
        projected: int = 16,
        attention: str = "labels",
        longest: int = 32,
        own: bool = False,
        seed: int | None = None,
        apart: bool = False,
    ) -> None:
        super().__init__()
        if attention not in ("labels", "self"):
            raise wrong("attention", repr(attention), "'labels' or 'self'")
        if seed is not None:
            torch.manual_seed(seed)
        self.longest, self.projected, self.labels = longest, projected, labels
        self.apart, half = apart, width // 2 if apart else 0
        self.embedding = nn.Embedding(words, width - half)
        self.places = nn.Parameter(torch.randn(longest, half or width) * 0.5)
        self.before = SelfAttention(width, 4, width // 4, width, half)
        wide = labels * projected
        if attention == "labels":
            self.layer: nn.Module = LabelAttention(width, labels, width // 4, projected, positional=half)
        else:
            self.layer = SelfAttention(width, labels, projected, wide, half)
        self.own, hidden = own, 16 if own else 64
        self.norm = Standardised(hidden)
        self.first = nn.Linear(projected if own else wide, hidden * (labels if own else 1))
        self.second = nn.Linear(hidden, labels)

    def heads(self, words: Tensor) -> Tensor:
        """What the layer says of each word, ``(b, n, labels · projected)``."""
        if words.shape[1] > self.longest:
            raise wrong("words", f"{words.shape[1]} words", f"at most {self.longest}")
        x, places = self.embedding(words), self.places[: words.shape[1]]
        x = torch.cat([x, places.expand(len(x), -1, -1)], -1) if self.apart else x + places
        return self.layer(self.before(x))

    def fences(self, heads: Tensor) -> Tensor:
        """What stands between words: the forward half of the one before and the backward half of the one behind."""
        front, back = heads.unflatten(2, (self.labels, -1)).chunk(2, -1)
        if self.own:
            return torch.cat([front[:, :-1], back[:, 1:]], -1)
        return torch.cat([front[:, :-1].flatten(2), back[:, 1:].flatten(2)], -1)

    def read(self, heads: Tensor) -> Tensor:
        """Scores of the spans."""
        fences = self.fences(heads)
        spans = fences[:, None] - fences[:, :, None]
        if not self.own:
            return self.second(F.relu(self.norm(self.first(spans))))
        weights, shift = (
            self.first.weight.unflatten(0, (self.labels, -1)),
            self.first.bias.unflatten(0, (self.labels, -1)),
        )
        hidden = F.relu(self.norm(torch.einsum("bijlp,lhp->bijlh", spans, weights) + shift))
        return (hidden * self.second.weight).sum(-1) + self.second.bias

    def forward(self, words: Tensor) -> Tensor:
        return self.read(self.heads(words))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": sentences, "output": (8, 8, 5)}
        made = {"labels": cls(13, 5, 8, 4, "labels", 9, seed=0), "self": cls(13, 5, 8, 4, "self", 9, seed=0)}
        made["own heads"] = cls(13, 5, 8, 4, "labels", 9, own=True, seed=0)
        made["position apart"] = cls(13, 5, 16, 4, "labels", 9, seed=0, apart=True)
        return [Sample(label, network, given) for label, network in made.items()]


class SelfAttention(nn.Module):
    """Multi-head self-attention with a residual where the width stays, and the norm behind it.

    Where the last ``positional`` channels hold position alone, their maps are apart from those of the others.
    """

    def __init__(self, width: int, heads: int, size: int, out: int, positional: int = 0) -> None:
        super().__init__()
        self.parts, each = parts_of(width, positional, size)
        self.heads, self.attention = heads, build("softmax")
        self.maps = nn.ModuleList(nn.Linear(part, 3 * heads * each, bias=False) for part in self.parts)
        outs = self.parts if width == out else (out // len(self.parts),) * len(self.parts)
        self.join = nn.ModuleList(nn.Linear(heads * each, part, bias=False) for part in outs)
        self.through, self.norm = None if width == out else nn.Linear(width, out, bias=False), Standardised(out)

    def forward(self, x: Tensor) -> Tensor:
        halves = zip(self.maps, x.split(self.parts, -1), strict=True)
        maps = torch.cat([each(half).unflatten(2, (3, self.heads, -1)) for each, half in halves], -1)
        q, k, v = maps.permute(2, 0, 3, 1, 4)
        heard = self.attention(q, k, v, Layout()).transpose(1, 2).chunk(len(self.parts), -1)
        out = torch.cat([join(half.flatten(2)) for join, half in zip(self.join, heard, strict=True)], -1)
        return self.norm(out + (x if self.through is None else self.through(x)))


def vectors(batch: int, seed: int, channels: int) -> tuple[Any, ...]:
    """Words as vectors for examples."""
    return (torch.randn(batch, 11, channels, generator=torch.Generator().manual_seed(seed)),)


def sentences(batch: int, seed: int) -> tuple[Any, ...]:
    """Words as ids for examples."""
    return (torch.randint(13, (batch, 9), generator=torch.Generator().manual_seed(seed)),)
