"""The TransNormer block: gated lightning attention and a gated network without activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.state import count_new
from regard.mechanisms.linear.base import RecurrentState
from regard.mechanisms.linear.lightning import Lightning
from regard.mechanisms.slopes import alibi_slopes
from regard.projections.base import merge_heads, split_heads


class RootNorm(nn.Module):
    """``x √d / ‖x‖``: RMS normalisation with no parameter (SRMSNorm)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), eps=1e-6)


class PlainGated(nn.Module):
    """``y = (x W_1 ⊙ x W_2) W_3``, a gated network without an activation (SGLU)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(x) * self.up(x))


class GatedLightning(nn.Module):
    """Lightning attention with a learned rotation, normed over all heads and gated.

        y = (norm(A v) ⊙ x W_u) W_o,   q = φ(silu(x W_q)),   k = φ(silu(x W_k)),   v = x W_v,
        φ(x_p) = [x_p cos pθ, x_p sin pθ],   so that φ(q_i) · φ(k_j) = Σ_c q_ic k_jc cos((i − j) θ_c)

    θ is ``angles (heads, head_dim)``, learned (LRPE-d), where the block is ``turned``; else φ is the identity. λ is one
    decay for each head. p is the place among the real tokens of a document.

    Shapes: ``x (b, n, width)`` -> ``(b, n, width)``, causal. State: that of `Lightning`, with 2 d features if turned.

    Args:
        width: of the hidden states. heads: of the attention. slopes: −log λ of each head. turned: whether φ turns.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int, slopes: tuple[float, ...], turned: bool) -> None:
        super().__init__()
        if width % heads:
            raise wrong("width", str(width), f"a multiple of the {heads} heads")
        self.heads = heads
        self.qkvu, self.out = nn.Linear(width, 4 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mechanism, self.norm = Lightning(slopes), RootNorm()
        steps = torch.arange(width, dtype=torch.float32).view(heads, 1, -1) / width
        self.angles = nn.Parameter(10_000.0 ** (-2 * steps)) if turned else None

    def inputs(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(q, k, v, u)`` of tokens at ``positions (b or 1, n)``."""
        q, k, v, u = self.qkvu(x).chunk(4, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (F.silu(q), F.silu(k), v))
        return self.turn(q, positions), self.turn(k, positions), v, u

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """φ, ``(b, h, n, d)`` -> ``(b, h, n, 2 d)``."""
        if self.angles is None:
            return x
        angles = positions[:, None, :, None].to(self.angles.dtype) * self.angles
        return torch.cat([x * angles.cos().to(x.dtype), x * angles.sin().to(x.dtype)], dim=-1)

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True)) -> Tensor:
        q, k, v, u = self.inputs(x, layout.positions(x.shape[1], x.device))
        return self.out(self.norm(merge_heads(self.mechanism(q, k, v, layout))) * u)

    def extend(self, x: Tensor, state: RecurrentState, key_mask: Tensor | None = None) -> tuple[Tensor, RecurrentState]:
        """``(y of the new tokens, the state after them)``."""
        positions, _ = count_new(state, key_mask, x.shape[1], x.shape[0])
        q, k, v, u = self.inputs(x, positions)
        out, state = self.mechanism.extend(q, k, v, state, key_mask)
        return self.out(self.norm(merge_heads(out)) * u), state

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``; bytes of weights and the mechanism's tensors, of the state."""
        width, d = self.out.in_features, self.out.in_features // self.heads
        features = d if self.angles is None else 2 * d
        shape = Shape(n, m, batch, self.heads, self.heads, features, d, itemsize)
        inner = self.mechanism.cost(shape, Layout(causal=causal))
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        return Cost(batch * n * 10 * width**2 + inner.flops, weights + inner.bytes, inner.state_bytes)


class TransnormerBlock(nn.Module):
    """A pre-norm block of gated lightning attention and a gated network without activations.

        h = x + attention(norm(x)),   y = h + network(norm(h)),   norm(x) = x √d / ‖x‖
        λ_h = exp(−slope_h (1 − l / (L − 1) + 1e-5))

    l of L is ``layer`` of ``depth``, from 0: lower layers forget faster, the last hardly at all. The rotation is in the
    first layer alone, as in the authors' models. See `GatedLightning` and `PlainGated`.

    Shapes: ``x (b, n, width)`` -> ``(b, n, width)``, causal.

    Args:
        width: of the hidden states. heads: of the attention. inner: of the gated network. layer, depth: l and L.

    Raises:
        ValueError: heads that do not divide the width, or a layer that is not below the depth.

    Papers: Qin et al., arXiv 2405.17381 and 2307.14995.
    """

    def __init__(self, width: int, heads: int, inner: int, layer: int = 0, depth: int = 1) -> None:
        super().__init__()
        if not 0 <= layer < depth:
            raise wrong("layer", str(layer), f"0 to {depth - 1}, below the depth")
        slopes = tuple(slope * (1 - layer / max(depth - 1, 1) + 1e-5) for slope in alibi_slopes(heads))
        self.attention = GatedLightning(width, heads, slopes, turned=layer == 0)
        self.network, self.norm = PlainGated(width, inner), RootNorm()

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True)) -> Tensor:
        x = x + self.attention(self.norm(x), layout)
        return x + self.network(self.norm(x))

    def start(
        self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> RecurrentState:
        """The state before any token."""
        return self.attention.mechanism.start(batch, device=device, dtype=dtype)

    def extend(self, x: Tensor, state: RecurrentState, key_mask: Tensor | None = None) -> tuple[Tensor, RecurrentState]:
        """``(the new tokens' hidden states, the state after them)``."""
        out, state = self.attention.extend(self.norm(x), state, key_mask)
        x = x + out
        return x + self.network(self.norm(x)), state
