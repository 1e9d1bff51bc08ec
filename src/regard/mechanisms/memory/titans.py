"""Titans' long-term memory: a network trained by momentum and weight decay on the text that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example, LayerSpec, Signal
from regard.kernels.scan.online import Rule
from regard.kernels.scan.summed import Summed
from regard.mechanisms.memory.base import OnlineMemory

DECAY = Signal("log of what stays of the memory, log(1 − α)", high=0, start=(-0.001, -0.1))
MOMENTUM = Signal("log of what stays of the last steps, log η", high=0, start=(-0.1, -1.0))


def step_of(most: float) -> Signal:
    """θ, at most so large."""
    return Signal("the size of the gradient's step, θ", low=0, high=most, start=most / 4)


@published(
    "titans",
    family="linear",
    row=283,
    title="Titans: Learning to Memorize at Test Time",
    arxiv="2501.00663",
    year=2024,
    aliases=("neural_memory", "lmm"),
    fidelity="hand values",
    claim=(
        Claim(
            "chunks of matrix products are the recurrence, token by token, with its gradients",
            cells="memory.forms_of(rule=titans)",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "a linear memory without momentum is the delta rule",
            cells="memory.linear_of(rule=titans)",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "state and time of a token do not grow with the text",
            cells="memory.state_of(rule=titans)",
            holds="memory.stays",
        ),
        Claim(
            "finds what stood eight times the trained length ago, 20 points more often than a window alone",
            cells="titans.mechanism",
            holds="titans.finds",
        ),
    ),
)
class Titans(OnlineMemory):
    """A memory network that learns each key's value by gradient descent with momentum and weight decay.

        S_t = η_t S_{t−1} − θ_t ∇‖M(W_c; k_t) − v_t‖²,   W_t = (1 − α_t) W_{t−1} + S_t,   o_t = M(W_t; q_t)
        M(W; x) = GELU(x W_1) W_2

    θ, α and η are the signals ``step``, ``log_decay`` = log(1 − α), ``log_momentum`` = log η of each token and head;
    W_0 is learned. W_c are the weights at the start of the token's chunk, W_{t−1} with ``chunk=1``. The host is the
    paper's: short convolution and SiLU on q, k and v, unit q and k, norm and gate of the output. As context, gate or
    layer of attention, with persistent tokens: `regard.networks.titans.TitansLM`.

    Args:
        as of `OnlineMemory`. momentum: whether there is S; False for the step alone. summed: one step for each chunk,
            of the sum of its gradients and the α and η of its last token, taken when it ends; a token is then answered
            by the chunks that have ended with it or before. Fewer products of matrices, less that a chunk's later
            tokens know of its earlier ones; with ``chunk=1`` the same.

    Paper: Behrouz et al., arXiv 2501.00663.
    """

    caution = 32  # with 8, two layers diverge that are trained together with what they learn
    layer = LayerSpec(rotary=False, convolution=4, activation="silu", norm=True, gate="silu")

    def __init__(
        self,
        heads: int,
        head_dim: int,
        value_dim: int | None = None,
        chunk: int = 16,
        hidden: int = 4,
        step: float | None = None,
        momentum: bool = True,
        summed: bool = False,
    ) -> None:
        self.momentum = momentum
        self.rule = Summed() if summed else Rule()
        super().__init__(heads, head_dim, value_dim, chunk, hidden, step)

    def bounded(self, most: float) -> Mapping[str, Signal]:
        signals = {"step": step_of(most), "log_decay": DECAY}
        return signals | {"log_momentum": MOMENTUM} if self.momentum else signals

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("chunks of 5", cls(2, 5, 7, chunk=5, hidden=2, step=0.1), longest=67),
            Example("linear, no momentum, grouped", cls(4, 5, 7, 1, 0, 0.5, False), heads=4, kv_heads=2, longest=67),
            Example("one step a chunk", cls(2, 5, 7, chunk=3, hidden=2, step=0.1, summed=True), longest=67),
        ]
