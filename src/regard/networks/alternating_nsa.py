"""A language model whose layers attend by turns to a window and, by compressed and chosen blocks, to everything."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.networks.lm import LM, Config, text_sample


def examples() -> Sequence[Sample]:
    """Of the laws."""
    made = alternating_nsa(29, 24, 4, heads=4, groups=2, rank=5, plain=3, rotary=2, window=5, block=4, budget=3, seed=0)
    return [text_sample("two of each", made)]


@published(
    "alternating_nsa",
    family="sparse",
    kind="network",
    row=308,
    title="Optimizing Native Sparse Attention with Latent Attention and Local Global Alternating Strategies",
    arxiv="2511.00819",
    year=2025,
    aliases=("alternating_native_sparse", "local_global_nsa"),
    fidelity="abstract only",
    claim=(
        Claim(
            "its cache is at most half of that of native sparse attention in every layer",
            cells="alternating.cached",
            holds="alternating.is_half",
        ),
        Claim(
            "it finds what stands eight windows back at least as often as three branches in every layer",
            cells="alternating.needle",
            holds="alternating.finds_as_well",
        ),
    ),
)
@shown_by(examples)
def alternating_nsa(
    vocabulary: int,
    width: int = 1024,
    layers: int = 24,
    heads: int = 16,
    groups: int = 4,
    rank: int = 64,
    plain: int = 64,
    rotary: int = 32,
    window: int = 512,
    block: int = 64,
    budget: int = 16,
    inner: int | None = None,
    seed: int | None = None,
) -> LM:
    """A language model of alternating layers: a window over one latent a token, then global branches over grouped ones.

    The first layer of each two is softmax attention within a window, its keys and values from one latent of all heads
    (`Latent`); the second `GlobalNative`, from a latent for each group (`GroupLatent`), whose heads choose together.

    Args:
        vocabulary: of token ids. width: of the hidden states. layers: an even number. heads, groups: of queries, and of
            latents in global layers. rank: of a latent. plain, rotary: coordinates of a head without and with position;
            plain is also that of its values. window: tokens that local layers see. block, budget: of global layers.
            inner: of the gated networks. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: an odd number of layers, or none, and what the layers refuse.

    Paper: Hu et al., arXiv 2511.00819, of which only the abstract was at hand.
    """
    if layers < 2 or layers % 2:
        raise wrong("layers", str(layers), "an even number, at least 2")
    sizes = f"rank={rank}, plain={plain}, rotary={rotary}, value={plain}, form=absorbed"
    near = f"window(size={window}) with latent({sizes})"
    far = f"global_nsa(block={block}, budget={budget}) with group_latent(groups={groups}, {sizes})"
    return LM(Config(vocabulary, width, ", ".join([near, far] * (layers // 2)), heads, inner=inner), seed)
