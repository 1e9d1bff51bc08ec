"""Writes pyramid.json: what the authors' kernels compute of pyramid sparse attention, in Triton's interpreter.

TRITON_INTERPRET=1 PYTHONPATH=AUTHORS:tests/reference python tests/reference/pyramid.py

AUTHORS holds files of ziplab/Pyramid-Sparse-Attention be122cf under other names: `psa_attn_pooling_kernel.py`,
`psa_calc_ksim_kernel.py` and `psa_psa_kernel_legacy.py` of src/psa_triton/kernels, `psa_transfer_attn_to_mask.py` of
src/psa_triton/utils. With Triton 3.8, PyTorch 2.14.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import psa_attn_pooling_kernel
import psa_psa_kernel_legacy
import torch
from psa_attn_pooling_kernel import attn_with_pooling_optimized
from psa_calc_ksim_kernel import calc_k_similarity_pytorch
from psa_psa_kernel_legacy import sparse_attention_factory
from psa_transfer_attn_to_mask import transfer_attn_to_mask
from waves import alike_in_places

for module in (psa_attn_pooling_kernel, psa_psa_kernel_legacy):  # there is no driver to ask
    module.is_hip = lambda: False
torch.cuda.device = lambda *_: nullcontext()
QUOTAS = {1: (0.0, 0.05), 2: (0.05, 0.15), 4: (0.15, 0.25), 8: (0.25, 0.5), 0: (0.5, 1.0)}


def importance():
    """Of 24 blocks of 16 tokens by every fourth of them, and the levels that follow; the likeness of keys."""
    q, k, v = alike_in_places(384)
    q4, k4 = (x[:, :, ::4].contiguous() for x in (q, k))
    q4, k4 = (torch.cat([x, x[:, :, -1:].expand(-1, -1, 32, -1)], 2) for x in (q4, k4))
    _, paid = attn_with_pooling_optimized(q4, k4, v, False, 0.25, 4, 4)
    paid = paid[..., :24, :24]
    paid = paid / paid.sum(-1, keepdim=True)
    levels = transfer_attn_to_mask(paid, QUOTAS, 0, "topk", blocksize=16, compute_tile=16)
    limits = SimpleNamespace(sim_2x_threshold=0.7, sim_4x_threshold=0.2, sim_8x_threshold=0.98)
    alike = calc_k_similarity_pytorch(k, 16, limits)
    return {"paid": paid[:, :, ::6].tolist(), "levels": levels[:, :, ::6].tolist(), "alike": alike.tolist()}


def attention():
    """Over five blocks of 128 tokens, of which each row of 128 queries sees some at each level."""
    q, k, v = alike_in_places(640, 64)
    levels = torch.tensor([[[i + 2 * j + h for j in range(5)] for i in range(5)] for h in range(2)]) % 5
    levels = torch.tensor([0, 1, 2, 4, 8])[levels][None].int()
    out = sparse_attention_factory()(q, k, v, levels, None)
    return {"levels": levels.tolist(), "out": out[:, :, ::97].tolist()}


if __name__ == "__main__":
    found = {"importance": importance(), "attention": attention()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n")
