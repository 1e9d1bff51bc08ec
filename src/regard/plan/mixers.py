"""FLOPs, parameters and cache of the layers that mix tokens: grouped and latent attention, and recurrent states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from regard.core.errors import wrong
from regard.plan.device import Device

LatentForm = Literal["cached", "expanded", "absorbed"]


@dataclass(frozen=True)
class Work:
    """FLOPs (two for each multiply-add), bytes of weights read, and bytes of keys, values and states moved."""

    flops: float = 0
    weights: float = 0
    cache: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weights + other.weights, self.cache + other.cache)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.weights * times, self.cache * times)

    @property
    def bytes(self) -> float:
        return self.weights + self.cache

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes

    def seconds(self, device: Device) -> float:
        """The roofline: no less than either ceiling allows, the work spread evenly over the pool."""
        return max(self.flops / device.flops, self.bytes / device.bandwidth) / device.count


class Mixer(Protocol):
    """A layer through which tokens see each other.

    ``width`` is that of the hidden states; ``window`` the most tokens that a query sees, None for all.
    """

    @property
    def width(self) -> int: ...

    @property
    def window(self) -> int | None: ...

    @property
    def parameters(self) -> int: ...

    def seen(self, context: float) -> float:
        """Of ``context`` tokens, those whose keys a step reads; 0 of a state."""
        ...

    def bends(self, first: int, last: int) -> list[int]:
        """Contexts, those from ``first`` to ``last`` among them, after which `seen` is no more the same line."""
        ...

    def kept(self, context: int) -> float:
        """Numbers that the cache holds of a sequence of ``context`` tokens."""
        ...

    def projections(self, batch: int, itemsize: float) -> Work:
        """Products with weights for one token in each of ``batch`` sequences."""
        ...

    def core(self, batch: int, context: float, itemsize: float) -> Work:
        """What a step does because of ``context`` tokens, itself among them."""
        ...


@dataclass(frozen=True)
class GroupedAttention:
    """Multi-head, grouped and multi-query attention, of all tokens or in a window.

    Args:
        width: of the hidden states. heads, kv_heads, head_dim: of the projections. window: most tokens that a query
            sees, itself among them; the cache keeps no more. chunked: the window does not slide but begins anew every
            ``window`` tokens. gated: an output gate, as large as the queries.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    chunked: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise wrong("window", str(self.window), "at least one token, or None for all")
        if self.chunked and self.window is None:
            raise wrong("chunked", "True without a window", "the length of a chunk as window")

    @property
    def parameters(self) -> int:
        return self.width * ((2 + self.gated) * self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def token_numbers(self) -> int:
        """Numbers that the cache keeps of a token."""
        return 2 * self.kv_heads * self.head_dim

    def seen(self, context: float) -> float:
        if self.window is None or context <= self.window:
            return context
        return (context - 1) % self.window + 1 if self.chunked else self.window

    def bends(self, first: int, last: int) -> list[int]:
        if self.window is None:
            return []
        if not self.chunked:
            return [self.window]
        return [self.window * i for i in range(first // self.window, last // self.window + 1)]

    def kept(self, context: int) -> float:
        return self.token_numbers * (context if self.window is None else min(context, self.window))

    def projections(self, batch: int, itemsize: float) -> Work:
        return Work(2 * batch * self.parameters, self.parameters * itemsize)

    def core(self, batch: int, context: float, itemsize: float) -> Work:
        """Scores and the mix of values over the keys that are seen."""
        seen = self.seen(context)
        flops = 4 * batch * self.heads * self.head_dim * seen
        return Work(flops, cache=batch * seen * self.token_numbers * itemsize)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention, as DeepSeek-V2 has it (Liu et al., arXiv 2405.04434).

    Args:
        width, heads: as usual. query_rank, rank: of the latents of queries (0: none) and of keys and values.
        plain, rotary, value: dimensions of a head's keys without and with positions, and of its values.
        form: "cached" keeps every head's keys and values; "expanded" keeps the latent and makes keys and values of all
            tokens anew in every step; "absorbed" keeps the latent and attends to it directly.
    """

    width: int
    heads: int
    query_rank: int
    rank: int
    plain: int
    rotary: int
    value: int
    form: LatentForm = "absorbed"

    def __post_init__(self) -> None:
        if self.form not in ("cached", "expanded", "absorbed"):
            raise wrong("form", repr(self.form), "cached, expanded or absorbed")

    @property
    def window(self) -> None:
        return None

    @property
    def expansion(self) -> int:
        """Parameters of the maps from the latent to keys and values of all heads."""
        return self.rank * self.heads * (self.plain + self.value)

    @property
    def parameters(self) -> int:
        query = self.heads * (self.plain + self.rotary)
        to_query = self.query_rank * (self.width + query) if self.query_rank else self.width * query
        return to_query + self.width * (self.rank + self.rotary) + self.expansion + self.heads * self.value * self.width

    @property
    def token_numbers(self) -> int:
        if self.form == "cached":
            return self.heads * (self.plain + self.rotary + self.value)
        return self.rank + self.rotary

    def seen(self, context: float) -> float:
        return context

    def bends(self, first: int, last: int) -> list[int]:
        return []

    def kept(self, context: int) -> float:
        return self.token_numbers * context

    def projections(self, batch: int, itemsize: float) -> Work:
        """Those of one token in each of ``batch`` sequences, the maps out of the latent included.

        Absorbed, they are applied to the query and to the mixed latent instead of to the key: as many FLOPs.
        """
        own = self.parameters - (self.expansion if self.form == "expanded" else 0)
        return Work(2 * batch * own, own * itemsize)

    def core(self, batch: int, context: float, itemsize: float) -> Work:
        if self.form == "absorbed":
            flops = 2 * batch * self.heads * context * (2 * self.rank + self.rotary)
        else:
            flops = 2 * batch * self.heads * context * (self.plain + self.rotary + self.value)
        read = Work(flops, cache=batch * context * self.token_numbers * itemsize)
        if self.form == "expanded":
            read += Work(2 * batch * context * self.expansion, weights=self.expansion * itemsize)
        return read


@dataclass(frozen=True)
class Recurrence:
    """A layer whose past is a state of fixed size, which every step reads and writes.

    Args:
        width: of the hidden states. parameters: of its projections and convolution. state: numbers that a sequence
            keeps, those of the convolution among them. flops: of one token's products with the state.
    """

    width: int
    parameters: int
    state: int
    flops: int

    @property
    def window(self) -> None:
        return None

    @classmethod
    def delta(cls, width: int, key_heads: int, heads: int, key_dim: int, value_dim: int, kernel: int) -> Recurrence:
        """Gated DeltaNet (Yang et al., arXiv 2412.06464) as in Qwen3-Next: q, k, v, an output gate, two numbers a head.

        The state is read for the removal, written, and read for the output.
        """
        keys, values = key_heads * key_dim, heads * value_dim
        convolved, matrix = 2 * keys + values, heads * key_dim * value_dim
        parameters = width * (2 * keys + 2 * values + 2 * heads) + convolved * kernel + values * width
        return cls(width, parameters, matrix + convolved * kernel, 6 * matrix)

    @classmethod
    def mamba2(cls, width: int, heads: int, head_dim: int, groups: int, state: int, kernel: int) -> Recurrence:
        """Mamba-2 (Dao and Gu, arXiv 2405.21060): heads of one decay each, B and C shared by groups."""
        inner = heads * head_dim
        convolved = inner + 2 * groups * state
        parameters = width * (inner + convolved + heads) + convolved * kernel + inner * width
        return cls(width, parameters, inner * state + convolved * kernel, 4 * inner * state)

    @classmethod
    def mamba(cls, width: int, inner: int, state: int, rank: int, kernel: int) -> Recurrence:
        """Mamba (Gu and Dao, arXiv 2312.00752): a decay for each channel and number of the state."""
        parameters = 3 * width * inner + inner * (kernel + 2 * rank + 3 * state)
        return cls(width, parameters, inner * (state + kernel), 4 * inner * state)

    @classmethod
    def lightning(cls, width: int, heads: int, head_dim: int) -> Recurrence:
        """Lightning attention (Qin et al., arXiv 2401.04658) as in MiniMax-Text-01: q, k, v and an output gate."""
        matrix = heads * head_dim**2
        return cls(width, 5 * width * heads * head_dim, matrix, 4 * matrix)

    @classmethod
    def convolution(cls, width: int, kernel: int) -> Recurrence:
        """The gated short convolution of LFM2."""
        return cls(width, 4 * width**2 + width * kernel, width * kernel, 0)

    def seen(self, context: float) -> float:
        return 0

    def bends(self, first: int, last: int) -> list[int]:
        return []

    def kept(self, context: int) -> float:
        return self.state

    def projections(self, batch: int, itemsize: float) -> Work:
        return Work(2 * batch * self.parameters, self.parameters * itemsize)

    def core(self, batch: int, context: float, itemsize: float) -> Work:
        return Work(batch * self.flops, cache=2 * batch * self.state * itemsize)
