"""What follows a mechanism in its layer: skip, norm, bonus and gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.affine import ACTIVATIONS, Affine, inner_size
from regard.core.errors import wrong
from regard.core.layer import LayerSpec, Norm
from regard.core.mechanism import repeat_heads
from regard.projections.base import Projection, split_heads


class HeadNorm(nn.Module):
    """RMS or layer norm of the heads' outputs, over each head, the heads of a group, or all.

        y_c = factor w_c (x_c − mean) / √(mean_{c'} (x_c' − mean)² + ε) + b_c,   mean and b being 0 unless centred

    Args:
        spec: what is normed together. heads, groups: h and the number of groups. value_dim: e.
    """

    def __init__(self, spec: Norm, heads: int, groups: int, value_dim: int) -> None:
        super().__init__()
        self.spec, self.parts = spec, {"head": heads, "group": groups, "all": 1}[spec.over]
        each = spec.each or spec.over != "head"
        self.weight = nn.Parameter(torch.ones(heads, value_dim) if each else torch.ones(value_dim))
        self.bias = nn.Parameter(torch.zeros(heads, value_dim)) if spec.centred else None

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, n, e)``."""
        if self.weight.dim() == 1 and self.bias is None:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.spec.eps) * self.spec.factor
        together = self.together(x)
        norm = F.layer_norm if self.spec.centred else F.rms_norm
        normed = norm(together, (together.shape[-1],), eps=self.spec.eps)
        normed = normed.unflatten(3, (-1, x.shape[-1])).flatten(2, 3).transpose(1, 2) * self.scales
        return normed if self.bias is None else normed + self.bias[:, None]

    def factors(self, x: Tensor) -> Tensor:
        """What each element of ``x (b, h, n, e)`` is multiplied with, if it is not centred: ``(b, h, n, e)``."""
        roots = (self.together(x).square().mean(-1) + self.spec.eps).rsqrt()
        return roots.repeat_interleave(x.shape[1] // self.parts, 2).mT[..., None] * self.scales

    def together(self, x: Tensor) -> Tensor:
        """``(b, n, parts, channels)``: what is normed together."""
        return x.transpose(1, 2).unflatten(2, (self.parts, -1)).flatten(3)

    @property
    def scales(self) -> Tensor:
        """w, for all queries, times the factor."""
        return (self.weight[:, None] if self.weight.dim() == 2 else self.weight) * self.spec.factor


class Output(nn.Module):
    """``gate(x) ⊙ (norm(o + D v) + (q · (u ⊙ k)) v)``, or ``norm(gate(x) ⊙ (o + D v))``, of the heads' outputs o.

    D starts as 1, u as 0. What the layer does not name is left out. The gate may read the heads' outputs instead.

    Args:
        layer: what there is. projection: whose heads and sizes count.
    """

    def __init__(self, layer: LayerSpec, projection: Projection) -> None:
        super().__init__()
        heads, e, spec = projection.heads, projection.value_dim, layer.gated
        self.heads, self.spec = heads, spec
        self.norm = None if layer.normed is None else HeadNorm(layer.normed, heads, projection.counts[1], e)
        self.skip = nn.Parameter(torch.ones(heads)) if layer.skip else None
        self.bonus = nn.Parameter(torch.zeros(heads, projection.head_dim)) if layer.bonus else None
        self.gate = None
        if spec is not None:
            width, size = (projection.width, heads * e) if spec.of == "input" else (e, 1)
            self.gate = Affine(width, size, inner_size(spec.rank, width, e), spec.inner, spec.bias)

    def forward(
        self, out: Tensor, x: Tensor, v: Tensor | None = None, own: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """``(b, h, n, e)`` of ``out``, what the gate reads, the values and the mechanism's queries and written keys."""
        if self.skip is not None:
            out = out + self.skip[:, None, None] * self.values(v, out)
        gate = self.opened(x)
        if gate is not None and self.spec is not None and self.spec.before_norm:
            out, gate = out * gate, None
        out = out if self.norm is None else self.norm(out)
        if self.bonus is not None:
            if own is None:
                raise wrong("given", "None", "what the mechanism was given: the bonus reads it")
            q, k = own
            out = out + (q * k * self.bonus[:, None]).sum(-1, keepdim=True) * self.values(v, out)
        if self.gate is not None and self.spec is not None and self.spec.of == "output":
            return out * self.acted(self.gate(out))
        return out if gate is None else out * gate

    def values(self, v: Tensor | None, out: Tensor) -> Tensor:
        """The tokens' own values, of every head."""
        if v is None or v.shape[2] != out.shape[2]:
            raise wrong("given", "nothing of these tokens", "what the mechanism was given: a skip or bonus reads it")
        return repeat_heads(v, out.shape[1])

    def opened(self, x: Tensor) -> Tensor | None:
        """The gate ``(b, h, n, e)`` that hidden states make, None without one."""
        if self.gate is None or self.spec is None or self.spec.of == "output":
            return None
        return self.acted(split_heads(self.gate(x), self.heads))

    def acted(self, gate: Tensor) -> Tensor:
        """The gate after its activation."""
        return gate if self.spec is None or self.spec.activation is None else ACTIVATIONS[self.spec.activation](gate)

    @property
    def flops(self) -> int:
        """FLOPs of the matrix products for each token."""
        if self.gate is None or self.spec is None:
            return 0
        times = self.heads if self.spec.of == "output" else 1
        return 2 * times * sum(w.numel() for w in self.gate.parameters() if w.dim() == 2)
