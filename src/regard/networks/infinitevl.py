"""InfiniteVL's language model: a layer of a sliding window, then three of the gated delta rule, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.networks.lm import LM, Config, text_sample


def examples() -> Sequence[Sample]:
    """Of the laws."""
    sizes: dict[str, Any] = {"heads": 2, "kv_heads": 1, "head_dim": 6, "inner": 17}
    return [
        text_sample("a period of 4", infinitevl(29, 24, 1, window=5, seed=0, **sizes)),
        text_sample("two periods of 2", infinitevl(29, 24, 2, window=3, linear=1, seed=0, **sizes)),
    ]


@published(
    "infinitevl",
    family="linear",
    kind="network",
    row=290,
    title="InfiniteVL: Synergizing Linear and Sparse Attention for Highly-Efficient, Unlimited-Input Vision-Language "
    "Models",
    arxiv="2512.08829",
    year=2025,
    aliases=("infinite_vl",),
    fidelity="hand values",
    claim=(
        Claim("decoding token by token is one pass", cells="infinitevl.continued", holds="common.within(most=1e-4)"),
        Claim(
            "memory and time of a token are the same after 1,024 and after 32,768 tokens",
            cells="infinitevl.steady",
            holds="infinitevl.does_not_grow",
        ),
        Claim(
            "a model whose layers became linear loses less than one whose layers became windows, trained alike",
            cells="infinitevl.distilled",
            holds="infinitevl.keeps_more",
        ),
    ),
)
@shown_by(examples)
def infinitevl(
    vocabulary: int,
    width: int = 2048,
    periods: int = 9,
    window: int = 8192,
    linear: int = 3,
    heads: int = 16,
    kv_heads: int | None = None,
    head_dim: int = 128,
    inner: int | None = 11008,
    seed: int | None = None,
) -> LM:
    """A language model of periods: softmax attention within a window, then layers of the gated delta rule.

    In the linear layers a value has twice the channels of a key, every query head keys of its own. See
    `regard.train.linearise` for a model of one's own that becomes such a one, and is taught instructions and long
    sequences then. This is the decoder, which reads tokens; what a vision tower gives is not read.

    Args:
        vocabulary: of token ids. width: of the hidden states. periods: how many. window: tokens that the first layer of
            each sees. linear: layers behind it. heads, kv_heads, head_dim, inner: as of `Config`; kv heads are those of
            the windows. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: no periods or no linear layers, and what `Config` refuses.

    Paper: Tao et al., arXiv 2512.08829, on Qwen2.5-VL-3B: 9 periods of 4 layers.
    """
    if min(periods, linear) < 1:
        raise wrong("periods, linear", f"{periods}, {linear}", "at least 1 each")
    delta = f"gated_deltanet with grouped(kv_heads={heads}, value_dim={2 * head_dim})"
    period = ", ".join([f"window(size={window})", *[delta] * linear])
    config = Config(vocabulary, width, ", ".join([period] * periods), heads, kv_heads, head_dim, None, inner)
    return LM(config, seed)
