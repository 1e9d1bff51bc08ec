"""Errors of coding weighed by what a layer is given: each group of a row makes up for those that were coded before."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.codecs.half import from_half, to_half
from regard.codecs.pyramid_vector import PyramidVector, index_of, nearest
from regard.core.errors import wrong

DAMPED = 0.01
"""Of the mean of H's diagonal, which is added to it, so that inputs that never came count for a little."""


def encode_weighed(codec: PyramidVector, x: Tensor, hessian: Tensor) -> dict[str, Tensor]:
    """Codes of rows ``(n, d)`` by which ``Σ_rows (x' − x) H (x' − x)ᵀ`` is small, read by the codec as any others.

    Groups are coded in turn, and what is left of the row moves to make up for a group's error as well as it can,

        x_rest ← x_rest − (x_b − x'_b) (U_bb)⁻¹ U_b,rest,   H⁻¹ = Uᵀ U, U upper triangular

    in the coordinates that the codec's Hadamard matrix gives rows and H.

    Args:
        codec: pyramids. x: rows of a matrix. hessian: H ``(d, d)``, the sum of ``z zᵀ`` over the layer's inputs z.

    Raises:
        ValueError: H of another size, or one that is not positive definite though damped.

    Paper: van der Ouderaa et al., arXiv 2410.16926, which weighs by the Hessian; the order and the update are those of
    Frantar et al., arXiv 2210.17323, by groups.
    """
    d, g = x.shape[-1], codec.group
    if hessian.shape != (d, d):
        raise wrong("hessian", f"shape {tuple(hessian.shape)}", f"({d}, {d}), by the numbers of a row")
    x = x.float()
    norm = to_half(x.norm(dim=-1, keepdim=True))
    left, upper = codec.mixed(x), upper_of(codec, hessian)
    size = from_half(norm)
    middles, borders = (part.to(left) for part in codec.quantiles(d)) if codec.groups(d) > 1 else (None, None)
    found, amplitudes = [], []
    for start in range(0, d, g):
        block = slice(start, start + g)
        y = nearest(left[:, block], codec.pulses)
        found.append(index_of(y))
        coded = size * y / y.float().norm(dim=-1, keepdim=True)
        if middles is not None and borders is not None:
            share = left[:, block].norm(dim=-1) / size[:, 0].clamp(min=torch.finfo(size.dtype).tiny)
            amplitudes.append(torch.bucketize(share, borders).clamp(max=codec.levels - 1))
            coded = coded * middles[amplitudes[-1]][:, None]
        error = torch.linalg.solve_triangular(upper[block, block], left[:, block] - coded, upper=True, left=False)
        left[:, start + g :] -= error @ upper[block, start + g :]
    codes = {"points": torch.stack(found, -1), "scales": norm}
    return codes | ({"amplitudes": torch.stack(amplitudes, -1)} if amplitudes else {})


def upper_of(codec: PyramidVector, hessian: Tensor) -> Tensor:
    """U ``(d, d)`` float32 of H in the codec's coordinates."""
    turned = codec.mixed(codec.mixed(hessian.double()).T)
    turned = (turned + turned.T) / 2
    turned.diagonal().add_(DAMPED * turned.diagonal().mean() + torch.finfo(torch.float32).tiny)
    inverse, failed = torch.linalg.inv_ex(turned)
    factor, short = torch.linalg.cholesky_ex((inverse + inverse.T) / 2, upper=True)
    if int(failed) or int(short):
        raise wrong("hessian", "one that is not positive definite", "a sum of products of inputs with themselves")
    return factor.float()
