"""Steps of attention: any mechanism among cells, cells with summaries, one head of part of the channels, channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.spatial import flat, image
from regard.core.build import build_for, build_text
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.sizes import Sizes
from regard.core.spec import Spec
from regard.networks.stages.norms import ConvNorm, norm_of, whole
from regard.networks.stages.steps.base import Step
from regard.projections.base import Grouped, merge_heads


class Biased(Grouped):
    """`Grouped` whose matrices have biases, those of queries, keys and values if ``inputs``."""

    def __init__(self, width: int, heads: int, inputs: bool = True) -> None:
        super().__init__(Sizes.even(width, heads))
        self.inputs = inputs
        self.q, self.k, self.v = (nn.Linear(width, width, bias=inputs) for _ in range(3))
        self.out = nn.Linear(width, width)

    @property
    def parameter_count(self) -> int:
        return super().parameter_count + self.width * (4 if self.inputs else 1)

    @property
    def flops(self) -> int:
        return 2 * super().parameter_count


def mechanism_of(text: str | Spec, projection: Biased) -> Mechanism:
    """The mechanism of a text, of the projection's sizes.

    Raises:
        ValueError: one that is causal only.
    """
    sizes = {"heads": projection.heads, "kv_heads": projection.kv_heads}
    made = build_text(text, sizes | {"head_dim": projection.head_dim, "value_dim": projection.value_dim})
    if not made.traits.bidirectional:
        raise wrong("mechanism", str(text), "one that attends to both sides")
    return made


class Attend(Step):
    """Attention of any bidirectional mechanism among the cells of the map, which it is told as a grid.

    Args:
        width: c. heads: of q, k and v. mechanism: its text. bias: whether queries, keys and values have one.

    Raises:
        ValueError: heads that do not divide the width, or a mechanism that is causal only.
    """

    def __init__(self, width: int, heads: int, mechanism: str | Spec, bias: bool = True) -> None:
        super().__init__()
        projection = Biased(width, heads, bias)
        self.attention = Attention(mechanism_of(mechanism, projection), projection)

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        return image(self.attention(flat(x), Layout(grid=grid)), grid)


class Enhanced(Step):
    """Attention of a mechanism with a depthwise convolution beside it, of the values or of what comes in.

        y = W (A(q, k) v + conv(v))   or   W (A(q, k) v + conv(x))

    Args:
        width, heads, bias: see `Attend`. mechanism: its text. side: of the kernel, odd. of: values or inputs.

    Papers: Ren et al. (LCE), arXiv 2111.15193; Zhu et al. (BiFormer), 2303.08810.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool = True,
        mechanism: str = "softmax",
        side: int = 5,
        of: Literal["values", "inputs"] = "values",
    ) -> None:
        super().__init__()
        if of not in ("values", "inputs"):
            raise wrong("of", repr(of), "values or inputs")
        self.projection, self.of = Biased(width, heads, bias), of
        self.mechanism = mechanism_of(mechanism, self.projection)
        self.convolution = nn.Conv2d(width, width, side, padding=side // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        grid, tokens = (x.shape[2], x.shape[3]), flat(x)
        q, k, v = self.projection(tokens, tokens)
        near = self.convolution(image(merge_heads(v), grid) if self.of == "values" else x)
        seen = self.mechanism(q, k, v, Layout(grid=grid))
        return image(self.projection.out(merge_heads(seen) + flat(near)), grid)


class Summary(Step):
    """Softmax attention of every cell to one key for each ``ratio × ratio`` of them (spatial reduction).

        k, v of  norm(conv_{r, stride r}(x))

    Args:
        ratio: r; 1 is full attention, without convolution and norm. norm: of the summaries. width, heads, bias: see
            `Attend`. Sides that r does not divide are filled up with zeros for the convolution.

    Papers: Wang et al. (PVT), arXiv 2102.12122; Chu et al. (GSA), 2104.13840.
    """

    def __init__(self, width: int, heads: int, norm: str = "layer", bias: bool = True, ratio: int = 1) -> None:
        super().__init__()
        if ratio < 1:
            raise wrong("ratio", str(ratio), "at least 1")
        self.attention = Attention(build_for({}, "softmax"), Biased(width, heads, bias))
        self.ratio = ratio
        self.summary = nn.Conv2d(width, width, ratio, ratio) if ratio > 1 else None
        self.norm = norm_of(norm, width) if ratio > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = flat(x)
        if self.summary is None or self.norm is None:
            out = self.attention(tokens)
        else:
            out = self.attention(tokens, Layout(), flat(self.norm(self.summary(whole(x, self.ratio)))))
        return image(out, (x.shape[2], x.shape[3]))


class SingleHead(Step):
    """One head of softmax attention over the first ``channels`` of the map; the others pass beside it.

        y = norm(W relu([A(q, k) v, x_rest])),   q, k, v = norm(W' groupnorm(x_first))

    Norms are batch norms but the first, over the whole of its channels; the last one begins at zero.

    Args:
        width: c. channels: of v. keys: channels of q and k.

    Paper: Yun and Ro (SHViT), arXiv 2401.16456.
    """

    normed = False

    def __init__(self, width: int, channels: int, keys: int = 16) -> None:
        super().__init__()
        if not 0 < channels <= width:
            raise wrong("channels", str(channels), f"1 to the width {width}")
        self.parts, self.channels = (keys, keys, channels), channels
        self.first_norm = nn.GroupNorm(1, channels)
        self.qkv = ConvNorm(channels, sum(self.parts))
        self.mechanism = build_for({}, "softmax")
        self.out = ConvNorm(width, width, start=0.0)

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        own, rest = x.split([self.channels, x.shape[1] - self.channels], 1)
        q, k, v = (flat(part)[:, None] for part in self.qkv(self.first_norm(own)).split(self.parts, 1))
        seen = image(self.mechanism(q, k, v, Layout(grid=grid))[:, 0], grid)
        return self.out(torch.relu(torch.cat([seen, rest], 1)))


class Channels(Step):
    """Attention among the channels of each group, over all cells: channels are the tokens.

        y_g = W (softmax(s k_g v_gᵀ) q_g),   k_g, v_g, q_g ``(c / groups, cells)``

    The names are those of the authors' code, whose softmax is of k vᵀ and weighs q; ``swapped=False`` is softmax(q kᵀ)
    v. s is 1 / √(c / groups), or 1 / √cells where ``by_cells``.

    Args:
        width: c. heads: groups. bias: of queries, keys and values. swapped, by_cells: see above.

    Paper: Ding et al. (DaViT), arXiv 2204.03645; by cells as in its later version for Florence-2.
    """

    def __init__(self, width: int, heads: int, bias: bool = True, swapped: bool = True, by_cells: bool = False) -> None:
        super().__init__()
        self.projection, self.swapped = Biased(width, heads, bias), swapped
        self.mechanism = build_for({}, "softmax", scale=None if by_cells else (width // heads) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = flat(x)
        q, k, v = (each.mT for each in self.projection(tokens, tokens))
        out = self.mechanism(k, v, q) if self.swapped else self.mechanism(q, k, v)
        return image(self.projection.merge(out.mT), (x.shape[2], x.shape[3]))
