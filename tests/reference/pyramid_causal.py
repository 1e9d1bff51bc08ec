"""Writes pyramid_causal.json: what the authors' code makes of causal pyramids, of shares of the mass and of curves.

TRITON_INTERPRET=1 PYTHONPATH=AUTHORS:tests/reference python tests/reference/pyramid_causal.py

AUTHORS holds files of ziplab/Pyramid-Sparse-Attention be122cf under other names: `psa_causal`, a package of
qwen2.5-vl-example/src/attention/PSA_casual, `psa_gilbert3d.py` and `psa_transfer_attn_to_mask.py` of
src/psa_triton/utils. With Triton 3.7, PyTorch 2.13.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from psa_causal.kernels import psa_kernel_causal
from psa_causal.PyramidAdaptiveBlockSparseAttn import transfer_attn_to_mask as causal_levels
from psa_causal.utils.block_importance import estimate_block_importance
from psa_gilbert3d import gilbert3d
from psa_transfer_attn_to_mask import transfer_attn_to_mask
from waves import alike_in_places

psa_kernel_causal.is_hip = lambda: False  # there is no driver to ask
torch.cuda.device = lambda *_: nullcontext()
QUOTAS = {1: (0.0, 0.3), 2: (0.3, 0.5), 4: (0.5, 0.7), 8: (0.7, 0.9), 0: (0.9, 1.0)}
GRIDS = ((1, 1, 5), (2, 4, 6), (5, 3, 4), (3, 8, 2), (5, 4, 5), (7, 5, 9))


def importance():
    """Of 24 blocks of 16 tokens by squares of 4, causal or not, and the levels that follow, by count and by mass."""
    q, k, _ = alike_in_places(384)
    found = {}
    for causal in (True, False):
        chunk = 256 if causal else 128  # a multiple: padding is seen unless causal, none hides everything if it is
        paid = estimate_block_importance(q, k, 16, 4, chunk_size=chunk, use_triton=False, causal=causal)
        way = "causal" if causal else "all"
        found[f"{way} paid"] = paid[:, :, ::5].tolist()
        for mode, name in (("topk", "count"), ("energybound", "mass")):
            levels = causal_levels(paid, QUOTAS, 0, mode, block_size=16, causal=causal)
            found[f"{way} {name}"] = levels[:, :, ::5].tolist()
    return found


def mass():
    """Levels by shares of the mass, of weights that fall off in three ways, of which the last has one block alone."""
    weights = torch.stack([torch.arange(1, 22) ** -p for p in (0.3, 1.0, 9.0)])[None, None]
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    weights = weights[..., order]
    levels = transfer_attn_to_mask(weights, QUOTAS, 0, "thresholdbound", blocksize=32, compute_tile=32)
    return {"weights": weights.tolist(), "levels": levels.tolist()}


def attention():
    """Causal, over five blocks of 128 tokens, of which each row of 128 queries sees the past ones at some level."""
    q, k, v = alike_in_places(640, 64)
    levels = torch.tensor([[[i + 2 * j + h for j in range(5)] for i in range(5)] for h in range(2)]) % 5
    levels = torch.tensor([0, 1, 2, 4, 8])[levels].tril()
    levels.diagonal(dim1=1, dim2=2).fill_(1)
    out = psa_kernel_causal.sparse_attention_factory(causal=True)(q, k, v, levels[None].int(), None)
    return {"levels": levels[None].tolist(), "out": out[:, :, ::97].tolist()}


def curves():
    """Grids of frames, height and width, and their cells along the curve."""
    return [[list(grid), [x + grid[2] * (y + grid[1] * z) for x, y, z in gilbert3d(*grid[::-1])]] for grid in GRIDS]


if __name__ == "__main__":
    found = {part.__name__: part() for part in (importance, mass, attention, curves)}
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.7g}"))
    Path(__file__).with_suffix(".json").write_text(json.dumps(rounded) + "\n")
