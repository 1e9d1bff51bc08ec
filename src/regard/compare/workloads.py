"""What is timed: a mechanism alone, in a block, or in a small language model, each beside plain fused attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.block import Block
from regard.core.build import build_for, parse
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.networks import LM, Config

Level = Literal["mechanism", "block", "lm"]
Phase = Literal["prefill", "decode", "train"]
VOCABULARY = 512
"""Token ids of the language models that are timed."""


@dataclass(frozen=True)
class Sizes:
    """What all of them share: ``batch``, ``heads``, ``kv_heads``, ``head_dim``, ``dtype``, ``device``, ``seed``."""

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    seed: int = 0

    def generator(self, n: int) -> torch.Generator:
        """What draws inputs of ``n`` tokens."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + n)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Workload:
    """Something with a forward call, a decoding step and a cost.

    Args:
        text: the mechanism, as `core.build.parse` reads it.
    """

    def __init__(self, text: str, sizes: Sizes) -> None:
        name, config = parse(text)
        of = {"heads": sizes.heads, "kv_heads": sizes.kv_heads, "head_dim": sizes.head_dim}
        of |= {"value_dim": sizes.head_dim, "layer_index": 0}
        self.text, self.sizes, self.mechanism = text, sizes, build_for(of, name, **config)
        if sizes.kv_heads != sizes.heads and not self.mechanism.traits.grouped:
            raise wrong("--kv-heads", str(sizes.kv_heads), f"{sizes.heads}: {text} does not group queries")
        self.causal = self.mechanism.traits.causal

    def inputs(self, n: int, grad: bool = False) -> Any:
        """Random inputs of ``n`` tokens."""
        raise NotImplementedError

    def forward(self, inputs: Any) -> Tensor:
        """One pass over all tokens."""
        raise NotImplementedError

    def leaves(self, inputs: Any) -> list[Tensor]:
        """What a training step needs gradients of."""
        raise NotImplementedError

    def start(self) -> Any:
        """The decoding state before any token."""
        raise NotImplementedError

    def extend(self, inputs: Any, state: Any) -> Any:
        """The state after more tokens."""
        raise NotImplementedError

    def cost(self, n: int) -> Cost:
        """By formula."""
        raise NotImplementedError


class MechanismWorkload(Workload):
    """The mechanism on given queries, keys, values and signals."""

    def inputs(self, n: int, grad: bool = False) -> dict[str, Tensor]:
        s = self.sizes
        generator = s.generator(n)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        found = {"q": normal(s.batch, s.heads, n, s.head_dim)}
        found |= {name: normal(s.batch, s.kv_heads, n, s.head_dim) for name in ("k", "v")}
        for name, spec in self.mechanism.signals.items():
            rows = spec.rows(s.heads, s.kv_heads)
            found[name] = spec.within(normal(s.batch, rows, n, *spec.size(s.head_dim, s.head_dim)))
        return {name: x.to(s.device, s.dtype).requires_grad_(grad) for name, x in found.items()}

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.mechanism(**inputs, layout=Layout(causal=self.causal))

    def leaves(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return [*inputs.values(), *self.mechanism.parameters()]

    def start(self) -> Any:
        return self.mechanism.start(self.sizes.batch, device=self.sizes.device, dtype=self.sizes.dtype)

    def extend(self, inputs: dict[str, Tensor], state: Any) -> Any:
        return self.mechanism.extend(**inputs, state=state)[1]

    def cost(self, n: int) -> Cost:
        s = self.sizes
        size = torch.empty(0, dtype=s.dtype).element_size()
        shape = Shape(n, None, s.batch, s.heads, s.kv_heads, s.head_dim, s.head_dim, size)
        return self.mechanism.cost(shape, Layout(causal=self.causal))


class BlockWorkload(Workload):
    """One pre-norm block around it, on hidden states."""

    def __init__(self, text: str, sizes: Sizes) -> None:
        super().__init__(text, sizes)
        config = Config(VOCABULARY, sizes.width, text, sizes.heads, sizes.kv_heads)
        torch.manual_seed(0)
        name, arguments = parse(text)
        block = Block(config.attention(name, arguments), sizes.width, config.inner_width)
        self.network: nn.Module = block.to(sizes.device, sizes.dtype)
        self.inner = config.inner_width

    def inputs(self, n: int, grad: bool = False) -> Tensor:
        x = torch.randn(self.sizes.batch, n, self.sizes.width, generator=self.sizes.generator(n))
        return x.to(self.sizes.device, self.sizes.dtype).requires_grad_(grad)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs, Layout(causal=self.causal))

    def leaves(self, inputs: Tensor) -> list[Tensor]:
        return [inputs, *self.network.parameters()]

    def start(self) -> Any:
        return cast(Any, self.network).start(self.sizes.batch, device=self.sizes.device, dtype=self.sizes.dtype)

    def extend(self, inputs: Tensor, state: Any) -> Any:
        return cast(Any, self.network).extend(inputs, state)[1]

    def cost(self, n: int) -> Cost:
        s, network = self.sizes, 6 * self.sizes.width * self.inner
        size = torch.empty(0, dtype=s.dtype).element_size()
        own = cast(Any, self.network).attention.cost(n, batch=s.batch, causal=self.causal, itemsize=size)
        return Cost(own.flops + s.batch * n * network, own.bytes + network // 2 * size, own.state_bytes)


class LMWorkload(Workload):
    """A language model of two layers of it, on token ids."""

    def __init__(self, text: str, sizes: Sizes) -> None:
        super().__init__(text, sizes)
        config = Config(VOCABULARY, sizes.width, f"{text}*2", sizes.heads, sizes.kv_heads)
        self.network = LM(config, seed=0).to(sizes.device, sizes.dtype)

    def inputs(self, n: int, grad: bool = False) -> Tensor:
        ids = torch.randint(VOCABULARY, (self.sizes.batch, n), generator=self.sizes.generator(n))
        return ids.to(self.sizes.device)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def leaves(self, inputs: Tensor) -> list[Tensor]:
        return list(self.network.parameters())

    def start(self) -> Any:
        return self.network.start(self.sizes.batch)

    def extend(self, inputs: Tensor, state: Any) -> Any:
        return self.network.extend(inputs, state)[1]

    def cost(self, n: int) -> Cost:
        size = self.network.embedding.weight.element_size()
        weights = self.network.parameter_count * size
        batch = self.sizes.batch
        costs = (block.attention.cost(n, batch=batch, itemsize=size) for block in self.network.layers)
        inner = sum(cost.bytes for cost in costs)
        return Cost(self.network.flops(n, batch), weights + inner, self.network.state_bytes(n, batch))


LEVELS: dict[str, type[Workload]] = {"mechanism": MechanismWorkload, "block": BlockWorkload, "lm": LMWorkload}


def fused(inputs: dict[str, Tensor], causal: bool) -> Tensor:
    """PyTorch's fused attention."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def step(call: Callable[[], Tensor], leaves: list[Tensor]) -> None:
    """Forward and backward."""
    torch.autograd.grad(call().float().square().mean(), leaves, allow_unused=True)
