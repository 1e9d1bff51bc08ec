"""MIDUS: a language model made deeper by copies of blocks, whose networks are memories of each head's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.spec import Layer, parse_layers
from regard.networks.lm import LM, Config, text_sample
from regard.projections.base import Grouped


class HeadMemory(nn.Module):
    """A product-key memory for each head, read by the head's own output, in the place of an output projection.

        q_h = z_h W_h = [q¹, q²];   score(i, j) = q¹·K¹_hi + q²·K²_hj;   y_h = (Σ_top softmax(score)_ij E_ij) P_h

    z_h is what head h of an attention gives, K the head's own sub-keys, E a bank of latent values that all heads share,
    P_h what makes a head's values of them; y are the y_h side by side.

    Args:
        width: of the hidden states. heads: of the attention. size: of a head's output, None for width / heads.
            keys: sub-keys of a half, so that there are keys² slots. top: slots that are read. latent: size of what a
            slot holds.

    Shapes: ``(b, n, heads · size)`` → ``(b, n, width)``.

    Raises:
        ValueError: outputs that have no two halves, a width that heads do not share; no slots, or fewer than are read.
    """

    def __init__(
        self, width: int, heads: int, size: int | None = None, *, keys: int = 16, top: int = 8, latent: int = 32
    ) -> None:
        super().__init__()
        if width % heads:
            raise wrong("width", str(width), f"a multiple of the {heads} heads")
        d = width // heads if size is None else size
        if d % 2:
            raise wrong("size", str(d), "an even number: each half of a query has keys of its own")
        if not 1 <= top <= keys**2:
            raise wrong("top", str(top), f"1 to the {keys**2} slots of {keys} keys a half")
        self.heads, self.top = heads, top
        self.query = nn.Parameter(torch.randn(heads, d, d) * d**-0.5)
        self.keys = nn.Parameter(torch.randn(2, heads, keys, d // 2) * (d // 2) ** -0.5)
        self.bank = nn.Parameter(torch.randn(keys**2, latent) * latent**-0.5)
        self.expand = nn.Parameter(torch.randn(heads, latent, width // heads) * latent**-0.5)

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(slots, weights)``, ``(b, n, heads, top)``: which are read, and their shares."""
        q = torch.einsum("bnhd,hde->bnhe", x.unflatten(2, (self.heads, -1)), self.query)
        scores = torch.einsum("bnhpe,phke->bnhpk", q.unflatten(3, (2, -1)), self.keys)
        size = self.keys.shape[2]
        best, places = scores.topk(min(self.top, size), 4)
        sums = (best[..., 0, :, None] + best[..., 1, None, :]).flatten(3)
        slots = (places[..., 0, :, None] * size + places[..., 1, None, :]).flatten(3)
        chosen, where = sums.topk(self.top, 3)
        return slots.gather(3, where), chosen.softmax(3)

    def forward(self, x: Tensor) -> Tensor:
        slots, weights = self.read(x)
        latent = (weights[..., None] * self.bank[slots]).sum(3)
        return torch.einsum("bnhl,hld->bnhd", latent, self.expand).flatten(2)

    @property
    def flops(self) -> int:
        """FLOPs of the matrix products for one token, by formula."""
        heads, d, _ = self.query.shape
        return 2 * heads * (d * (d + self.keys.shape[2]) + self.expand[0].numel())


class Nothing(nn.Module):
    """Zeros in the place of a block's network."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@published(
    "midus",
    family="training",
    kind="network",
    row=323,
    title="MIDUS: Memory-Infused Depth Up-Scaling",
    arxiv="2512.13751",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "at equal tokens no worse than copies with networks, for at most half of their added parameters, and 60% "
        "of the slots are read: source text",
        cells="deeper.scaled",
        holds="deeper.cheaper",
    ),
)
class Midus(LM):
    """A language model some of whose blocks are memories: attention whose heads read them, and no network.

        M(x) = x + memory(z),   z the heads' outputs of attention(norm(x))

    A block whose memory gives zeros changes nothing, so that a deeper model begins as the one that it is made of
    (`upscaled`, and `hosts.memories.deepened` for Transformers models).

    Args:
        config: of all blocks. memories: indices of those with memories. keys, top, latent: see `HeadMemory`. seed: of
            the weights, None for PyTorch's running generator.

    Raises:
        ValueError: an index of no block, or there a projection without an output matrix of its own.

    Paper: MIDUS, of which abstract and outline were at hand; sizes are ours.
    """

    memories: list[int]
    sizes: dict[str, int]

    def __init__(
        self,
        config: Config,
        memories: Sequence[int] = (),
        keys: int = 16,
        top: int = 8,
        latent: int = 32,
        seed: int | None = None,
    ) -> None:
        if any(not 0 <= place < config.depth for place in memories):
            raise wrong("memories", str(list(memories)), f"some of 0 to {config.depth - 1}")
        self.memories, self.sizes = list(memories), {"keys": keys, "top": top, "latent": latent}  # `block` reads them
        super().__init__(config, seed)

    def block(self, layer: Layer, index: int) -> Block:
        made = super().block(layer, index)
        if index not in self.memories:
            return made
        attention, width = made.attention, self.config.width
        if type(attention.projection) is not Grouped:
            name = type(attention.projection).__name__
            raise wrong("memories", f"block {index}, whose projection is {name}", "one of the grouped projection")
        memory: Any = HeadMemory(width, attention.projection.heads, attention.projection.value_dim, **self.sizes)
        attention.projection.out = memory
        made.network, made.norms[1] = Nothing(), nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        return made

    def flops(self, n: int, batch: int = 1) -> int:
        c, found = self.config, super().flops(n, batch)
        for place in self.memories:
            out: Any = self.layers[place].attention.projection
            own = out.out.flops - 2 * out.heads * out.value_dim * c.width - 6 * c.width * c.inner_width
            found += batch * n * own
        return found

    @torch.no_grad()
    def slots_read(self, ids: Tensor) -> float:
        """The share of all slots that some token of some head reads."""
        found: list[Tensor] = []

        def hear(memory: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(memory, HeadMemory)
            found.append(memory.read(given[0])[0].unique())

        memories = [module for module in self.modules() if isinstance(module, HeadMemory)]
        hooks = [memory.register_forward_pre_hook(hear) for memory in memories]
        try:
            self(ids)
        finally:
            for hook in hooks:
                hook.remove()
        return sum(len(slots) for slots in found) / (len(found) * self.sizes["keys"] ** 2)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        config = Config(29, width=24, layers="softmax*3", heads=2, inner=17)
        return [
            text_sample("the second of three", cls(config, [1], 3, 4, 5, seed=0)),
            text_sample("two of three", cls(replace(config, layers="softmax, lightning, softmax"), [0, 2], 4, 2, 7, 1)),
        ]


def upscaled(model: LM, after: Sequence[int], seed: int = 0, **sizes: int) -> Midus:
    """A deeper model that says what ``model`` does: behind some blocks a copy, whose memory gives zeros.

    Args:
        after: blocks of the model that a copy follows. sizes: of the memories, see `HeadMemory`.
    """
    config, origins, copies = deeper(model.config, after)
    found = Midus(config, copies, seed=seed, **sizes)
    carried(model, found, origins)
    with torch.no_grad():
        for place in copies:
            found.layers[place].attention.projection.out.expand.zero_()  # pyright: ignore
    return found


def duplicated(model: LM, after: Sequence[int]) -> LM:
    """The same with whole copies, as plain depth up-scaling has them, whose parts give zeros."""
    config, origins, copies = deeper(model.config, after)
    found = LM(config, seed=0)
    carried(model, found, origins)
    with torch.no_grad():
        for place in copies:
            found.layers[place].attention.projection.out.weight.zero_()  # pyright: ignore
            found.layers[place].network.down.weight.zero_()
    return found


def deeper(config: Config, after: Sequence[int]) -> tuple[Config, list[int], list[int]]:
    """``(the configuration with copies, the block that each is of, which are copies)``."""
    if not after or any(not 0 <= place < config.depth for place in after):
        raise wrong("after", str(list(after)), f"some of 0 to {config.depth - 1}")
    texts = [str(layer) for layer in parse_layers(config.layers)]
    origins, copies = [], []
    for place in range(len(texts)):
        origins.append(place)
        if place in after:
            copies.append(len(origins))
            origins.append(place)
    return replace(config, layers=", ".join(texts[place] for place in origins)), origins, copies


def carried(model: LM, into: LM, origins: Sequence[int]) -> None:
    """Loads all weights of a model that have the same shape in another, whose blocks are copies of its ``origins``."""
    own, weights = into.state_dict(), model.state_dict()
    for name in own:
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = str(origins[int(parts[1])])
        known: Any = weights.get(".".join(parts))
        if known is not None and known.shape == own[name].shape:
            own[name] = known
    into.load_state_dict(own)
