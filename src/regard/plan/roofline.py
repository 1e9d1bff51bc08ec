"""FLOPs and bytes of one decoding step of a whole model: its layers, networks and experts, embedding and head."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.plan.device import Device
from regard.plan.mixers import GroupedAttention, LatentAttention, Mixer, Recurrence, Work

__all__ = ["GroupedAttention", "LatentAttention", "ModelShape", "Network", "Recurrence", "Work"]


@dataclass(frozen=True)
class Network:
    """A network of two or three matrices, or experts of which each token passes a few.

    Args:
        width, inner: of one network or expert. experts, active: 1 and 1 for a plain network. shared: inner width of a
            network beside the experts that every token passes. matrices: 3 where it is gated, else 2.
    """

    width: int
    inner: int
    experts: int = 1
    active: int = 1
    shared: int = 0
    matrices: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.experts:
            raise wrong("active", str(self.active), f"1 to the {self.experts} experts")

    @property
    def size(self) -> int:
        """Parameters of one expert."""
        return self.matrices * self.width * self.inner

    @property
    def common(self) -> int:
        """Parameters that every token passes: the shared network and the router."""
        return self.matrices * self.width * self.shared + (self.width * self.experts if self.experts > 1 else 0)

    @property
    def parameters(self) -> int:
        return self.size * self.experts + self.common

    def touched(self, batch: int) -> float:
        """Experts that some of ``batch`` tokens pass, on average if all are equally likely."""
        return self.experts * (1 - (1 - self.active / self.experts) ** batch)

    def step(self, batch: int, itemsize: float) -> Work:
        flops = 2 * batch * (self.size * self.active + self.common)
        return Work(flops, (self.size * self.touched(batch) + self.common) * itemsize)

    def expert_step(self, batch: int, itemsize: float) -> Work:
        """One routed expert with its even share of the tokens."""
        return Work(2 * self.size * batch * self.active / self.experts, self.size * itemsize)


@published(
    "bottleneck",
    family="parallel",
    kind="study",
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

        time ≥ max(FLOPs / ceiling, (weights + batch · cache that is read) / bandwidth)

    Args:
        mixers: ``(layers, attention or recurrence)`` each. networks: ``(layers, network)`` each. vocabulary: of the
            embedding and the head. tied: both are one matrix. itemsize: bytes of a number. budget: most tokens of a
            layer's cache that a step reads, None for all: block top-k, which adds a score for each block of ``block``
            tokens, its key of one token's size.

    Paper: Yun et al., arXiv 2507.15465; block top-k: Sadhukhan et al., 2506.05333.
    """

    mixers: tuple[tuple[int, Mixer], ...]
    networks: tuple[tuple[int, Network], ...]
    vocabulary: int
    tied: bool = False
    itemsize: float = 2
    budget: int | None = None
    block: int = 16

    def __post_init__(self) -> None:
        if self.budget is not None and (self.budget < 1 or self.block < 1):
            raise wrong("budget, block", f"{self.budget}, {self.block}", "at least 1 each")

    @property
    def head(self) -> int:
        """Parameters of the output matrix."""
        return self.vocabulary * self.mixers[0][1].width

    @property
    def parameters(self) -> int:
        """All of them, embedding and head included; norms and biases, some thousandths, are left out."""
        parts = (layers * part.parameters for layers, part in (*self.mixers, *self.networks))
        return sum(parts) + self.head * (1 if self.tied else 2)

    @property
    def active(self) -> float:
        """Parameters that one token's step reads: the head counts, the embedding does not."""
        return self.fixed(1).weights / self.itemsize

    def cache_bytes(self, context: int) -> float:
        """Bytes that the cache holds of a sequence of ``context`` tokens: keys and values, latents, states."""
        return sum(layers * mixer.kept(context) for layers, mixer in self.mixers) * self.itemsize

    @property
    def token_bytes(self) -> float:
        """Bytes by which each token makes the cache larger once every window is full."""
        full = self.widest
        return self.cache_bytes(full + 1) - self.cache_bytes(full)

    @property
    def bounded_bytes(self) -> float:
        """Bytes that full windows and states hold of a sequence, however long it is."""
        return self.cache_bytes(self.widest) - self.widest * self.token_bytes

    @property
    def widest(self) -> int:
        """The largest window; 1 if there is none."""
        return max((mixer.window or 1 for _, mixer in self.mixers), default=1)

    def fixed(self, batch: int) -> Work:
        """What one decoding step does whatever the context: projections, networks, output matrix."""
        found = Work(2 * batch * self.head, self.head * self.itemsize)
        for layers, mixer in self.mixers:
            found += mixer.projections(batch, self.itemsize) * layers
        for layers, network in self.networks:
            found += network.step(batch, self.itemsize) * layers
        return found

    def attended(self, batch: int, context: float) -> Work:
        """What one decoding step does because of the context."""
        found = Work()
        for layers, mixer in self.mixers:
            found += self.looked(mixer, batch, context) * layers
        return found

    def looked(self, mixer: Mixer, batch: int, context: float) -> Work:
        """`attended` of one layer."""
        seen = mixer.seen(context)
        if self.budget is None or seen <= self.budget:
            return mixer.core(batch, context, self.itemsize)
        scored = mixer.core(batch, seen / self.block, self.itemsize) * 0.5  # keys alone
        return mixer.core(batch, self.budget, self.itemsize) + scored

    def answered(self, batch: int, prompt: int, answer: int) -> Work:
        """`attended` summed over the contexts ``prompt + 1 … prompt + answer``, exactly."""
        first, last = prompt + 1, prompt + answer
        bends = {bend for _, mixer in self.mixers for bend in mixer.bends(first, last)}
        bends |= {bend + self.budget for bend in (0, *bends) if self.budget is not None}
        ends, found = sorted({bend for bend in bends if first <= bend < last} | {last}), Work()
        for end in ends:  # between two bends the cost is affine: the middle is the mean
            found += self.attended(batch, (first + end) / 2) * (end - first + 1)
            first = end + 1
        return found

    def step(self, batch: int, context: float) -> Work:
        """One token for each of ``batch`` sequences of ``context`` tokens."""
        return self.fixed(batch) + self.attended(batch, context)

    def sparse(self, budget: int, block: int = 16) -> ModelShape:
        """The same model reading at most ``budget`` tokens of its cache."""
        return replace(self, budget=budget, block=block)

    def largest_batch(self, device: Device, context: int) -> int:
        """Most sequences whose caches fit beside the weights; 0 if the weights alone do not."""
        room = device.memory * device.count - self.parameters * self.itemsize
        return max(0, int(room // self.cache_bytes(max(context, 1))))

    def balanced_batch(self, device: Device) -> int | None:
        """The smallest batch at which routed experts are bound by compute, if at any up to 2^20."""
        each = (network.expert_step(1, self.itemsize).intensity for _, network in self.networks)
        needed = -(-device.ridge // min(each, default=2 / self.itemsize))
        return int(needed) if needed <= 1 << 20 else None
