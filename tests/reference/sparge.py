"""Writes sparge.json: what the authors' Triton kernels choose, round and compute, in Triton's interpreter.

TRITON_INTERPRET=1 PYTHONPATH=AUTHORS:tests/reference python tests/reference/sparge.py

AUTHORS holds files of thu-ml/SpargeAttn bfd980b under other names: `sparge_utils.py` and `quant_per_block.py` of
spas_sage_attn, `sparge_triton.py` (Triton_SpargeAttn/triton_kernel_example.py, importing those). With Triton 3.7,
PyTorch 2.13.
"""

import json
from pathlib import Path

import torch
from sparge_triton import forward
from sparge_utils import get_block_map_meansim, get_block_map_meansim_fuse_quant, get_vanilla_qk_quant
from waves import wave

TOKENS, HEADS, D = 512, 2, 64
SHORT = 450
EVERY, COLUMNS = 23, 7


def drawn():
    """q, k, v of two heads that turn slowly, in half precision."""
    q, k, v = (2 * wave((1, HEADS, TOKENS, D), phase).float() for phase in (0.1, 0.2, 0.3))
    slow = torch.sin(torch.arange(TOKENS) / 60)[:, None] * torch.linspace(-3, 3, D)
    return [x.half() for x in (q + slow, k + slow, v)]


def maps():
    """The blocks that are taken, by share, by number and with the first one, causal or not."""
    q, k, _ = (x.float() for x in drawn())
    given = {
        "share": {"cdfthreshd": 0.6, "simthreshd1": 0.3},
        "top": {"cdfthreshd": None, "topk": 0.4, "simthreshd1": -0.1},
        "sink": {"cdfthreshd": 0.3, "simthreshd1": -1.0, "attention_sink": True},
        "heads": {"cdfthreshd": torch.tensor([0.3, 0.8]), "simthreshd1": torch.tensor([0.4, -1.0])},
    }
    km, found = k.mean(2, keepdim=True), {}
    for name, each in given.items():
        for causal in (False, True):
            for size, block in ((128, 64), (64, 128)):
                taken = get_block_map_meansim(q, k - km, is_causal=causal, BLKQ=size, BLKK=block, **each)
                found[f"{name}, {'causal' if causal else 'all'}, {size} × {block}"] = taken.int().tolist()
    return found


def codes():
    """Codes of some tokens and the scales of all blocks, the last of which are shorter."""
    q, k, _ = (x[:, :, :SHORT].float() for x in drawn())
    parts = get_vanilla_qk_quant(q, k, k.mean(2, keepdim=True))
    found = dict(zip(("q", "q_scale", "k", "k_scale"), parts, strict=True))
    return {name: (x[:, :, ::EVERY, ::COLUMNS] if x.dim() == 4 else x).tolist() for name, x in found.items()}


def outputs():
    """Of products of 8 bits over blocks by share, causal or not."""
    q, k, v = drawn()
    wide, found = k.float(), {}
    for causal in (False, True):
        taken, q_int8, q_scale, k_int8, k_scale = get_block_map_meansim_fuse_quant(
            q.float(), wide, wide.mean(2, keepdim=True), is_causal=causal, cdfthreshd=0.6, simthreshd1=0.3
        )
        out = forward(
            *(q_int8, k_int8, taken, v, q_scale * D**-0.5 * 1.44269504, k_scale, torch.full((HEADS,), 50.0)),
            is_causal=causal,
            output_dtype=torch.float32,
        )
        found["causal" if causal else "all"] = out[:, :, ::EVERY, ::COLUMNS].tolist()
    return found


if __name__ == "__main__":
    found = {part.__name__: part() for part in (maps, codes, outputs)}
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.7g}"))
    Path(__file__).with_suffix(".json").write_text(json.dumps(rounded) + "\n")
