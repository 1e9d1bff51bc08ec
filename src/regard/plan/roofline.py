"""FLOPs and bytes of one decoding step, part by part: grouped and latent attention, networks and experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.plan.device import Device

LatentForm = Literal["cached", "expanded", "absorbed"]


@dataclass(frozen=True)
class Work:
    """FLOPs (two for each multiply-add), bytes of weights read, and bytes of keys and values read."""

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


@dataclass(frozen=True)
class GroupedAttention:
    """Multi-head, grouped and multi-query attention.

    Args:
        width: of the hidden states. heads, kv_heads, head_dim: of the projections.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def parameters(self) -> int:
        return 2 * self.width * (self.heads + self.kv_heads) * self.head_dim

    @property
    def token_numbers(self) -> int:
        """Numbers that the cache keeps of a token."""
        return 2 * self.kv_heads * self.head_dim

    def projections(self, batch: int, itemsize: float) -> Work:
        """Those of one token in each of ``batch`` sequences."""
        return Work(2 * batch * self.parameters, self.parameters * itemsize)

    def core(self, batch: int, context: float, itemsize: float) -> Work:
        """Scores and the mix of values over ``context`` keys."""
        flops = 4 * batch * self.heads * self.head_dim * context
        return Work(flops, cache=batch * context * self.token_numbers * itemsize)


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
class Network:
    """A gated network of three matrices, or experts of which each token passes a few.

    Args:
        width, inner: of one network or expert. experts, active: 1 and 1 for a plain network. shared: experts of the
            same size that every token passes too.
    """

    width: int
    inner: int
    experts: int = 1
    active: int = 1
    shared: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.experts:
            raise wrong("active", str(self.active), f"1 to the {self.experts} experts")

    @property
    def size(self) -> int:
        """Parameters of one expert."""
        return 3 * self.width * self.inner

    @property
    def parameters(self) -> int:
        router = self.width * self.experts if self.experts > 1 else 0
        return self.size * (self.experts + self.shared) + router

    def touched(self, batch: int) -> float:
        """Experts that some of ``batch`` tokens pass, on average if all are equally likely."""
        return self.experts * (1 - (1 - self.active / self.experts) ** batch)

    def step(self, batch: int, itemsize: float) -> Work:
        router = self.width * self.experts if self.experts > 1 else 0
        flops = 2 * batch * (self.size * (self.active + self.shared) + router)
        return Work(flops, (self.size * (self.touched(batch) + self.shared) + router) * itemsize)

    def expert_step(self, batch: int, itemsize: float) -> Work:
        """One routed expert with its even share of the tokens."""
        return Work(2 * self.size * batch * self.active / self.experts, self.size * itemsize)


@published(
    "bottleneck",
    family="parallel",
    kind="analysis",
    row=331,
    title="The New LLM Bottleneck: A Systems Perspective on Latent Attention and Mixture-of-Experts",
    arxiv="2507.15465",
    year=2025,
    aliases=("roofline", "mla_roofline"),
    claim=Claim(
        text="decoding with absorbed latent attention has over 100 times the arithmetic intensity of multi-head "
        "attention; the formulas equal the FLOPs and bytes of the einsums; an expert's grows with its tokens",
        status="works",
        figure="intensity 241.8 against 1.0 FLOP a byte, 241.8 times; FLOPs and bytes of the einsums exact",
        command="pytest tests/claims/test_plan.py",
    ),
)
@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes, and what one decoding step of it costs.

        time ≥ max(FLOPs / ceiling, (weights + batch · context · cache of a token) / bandwidth)

    Args:
        attention: of every layer. networks: ``(layers, network)`` each. vocabulary: of the output matrix.
        itemsize: bytes of a number. budget: most tokens of the cache that a step reads, None for all: block top-k,
            which adds a score for each block of ``block`` tokens, its key of one token's size.

    Paper: Yun et al., arXiv 2507.15465; block top-k: Sadhukhan et al., 2506.05333.
    """

    attention: GroupedAttention | LatentAttention
    networks: tuple[tuple[int, Network], ...]
    vocabulary: int
    itemsize: float = 2
    budget: int | None = None
    block: int = 16

    def __post_init__(self) -> None:
        if self.budget is not None and (self.budget < 1 or self.block < 1):
            raise wrong("budget, block", f"{self.budget}, {self.block}", "at least 1 each")

    @property
    def layers(self) -> int:
        return sum(layers for layers, _ in self.networks)

    @property
    def parameters(self) -> int:
        """All of them, norms and biases left out; the embedding counts once, as the output matrix."""
        networks = sum(layers * network.parameters for layers, network in self.networks)
        return self.layers * self.attention.parameters + networks + self.vocabulary * self.attention.width

    @property
    def token_bytes(self) -> float:
        """Bytes that the cache keeps of a token."""
        return self.layers * self.attention.token_numbers * self.itemsize

    def fixed(self, batch: int) -> Work:
        """What one decoding step does whatever the context: projections, networks, output matrix."""
        found = self.attention.projections(batch, self.itemsize) * self.layers
        for layers, network in self.networks:
            found += network.step(batch, self.itemsize) * layers
        head = self.vocabulary * self.attention.width
        return found + Work(2 * batch * head, head * self.itemsize)

    def attended(self, batch: int, context: float) -> Work:
        """What one decoding step does because of the context."""
        if self.budget is None or context <= self.budget:
            return self.attention.core(batch, context, self.itemsize) * self.layers
        scored = self.attention.core(batch, context / self.block, self.itemsize) * 0.5  # keys alone
        return (self.attention.core(batch, self.budget, self.itemsize) + scored) * self.layers

    def step(self, batch: int, context: float) -> Work:
        """One token for each of ``batch`` sequences of ``context`` tokens."""
        return self.fixed(batch) + self.attended(batch, context)

    def sparse(self, budget: int, block: int = 16) -> ModelShape:
        """The same model reading at most ``budget`` tokens of its cache."""
        return replace(self, budget=budget, block=block)

    def largest_batch(self, device: Device, context: int) -> int:
        """Most sequences whose caches fit beside the weights; 0 if the weights alone do not."""
        room = device.memory * device.count - self.parameters * self.itemsize
        return max(0, int(room // (self.token_bytes * max(context, 1))))

    def balanced_batch(self, device: Device) -> int | None:
        """The smallest batch at which routed experts are bound by compute, if at any up to 2^20."""
        expert = max((network for _, network in self.networks), key=lambda network: network.experts)
        per_token = expert.expert_step(1, self.itemsize).intensity
        needed = -(-device.ridge // per_token)
        return int(needed) if needed <= 1 << 20 else None


def qwen3(layers: int, width: int, heads: int, inner: int) -> ModelShape:
    """One of the dense Qwen3 models: 8 kv heads of 128."""
    return ModelShape(GroupedAttention(width, heads, 8, 128), ((layers, Network(width, inner)),), 151_936)


MODELS = {
    "qwen3-0.6b": qwen3(28, 1024, 16, 3072),
    "qwen3-1.7b": qwen3(28, 2048, 16, 6144),
    "qwen3-4b": qwen3(36, 2560, 32, 9728),
    "qwen3-8b": qwen3(36, 4096, 32, 12288),
    "qwen3-14b": qwen3(40, 5120, 40, 17408),
    "qwen3-32b": qwen3(64, 5120, 64, 25600),
    "llama3-8b": ModelShape(GroupedAttention(4096, 32, 8, 128), ((32, Network(4096, 14336)),), 128_256),
    "deepseek-v3": ModelShape(
        LatentAttention(7168, 128, 1536, 512, 128, 64, 128),
        ((3, Network(7168, 18432)), (58, Network(7168, 2048, 256, 8, 1))),
        129_280,
    ),
}
"""Published sizes."""
