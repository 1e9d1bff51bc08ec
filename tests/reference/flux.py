"""Writes flux.json: what the authors' router gives for the queries of two prompts.

PYTHONPATH=tests/reference python tests/reference/flux.py MODELING

MODELING is fluxattn/training/modeling_flash_qwen.py of qqtang-code/FluxAttention 031f22f, of which the class of the
router alone is run: the file imports kernels for GPUs. With PyTorch 2.13.
"""

import ast
import json
import math
import sys
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from waves import wave, waved


def router():
    """The authors' class."""
    source = Path(sys.argv[1]).read_text()
    (node,) = (x for x in ast.parse(source).body if isinstance(x, ast.ClassDef) and x.name == "AttentionRouter")
    known = {"torch": torch, "nn": nn, "F": F, "math": math, "Optional": Optional}
    exec(compile(ast.Module([node], []), sys.argv[1], "exec"), known)
    return known["AttentionRouter"]


if __name__ == "__main__":
    made = waved(router()(12, 3, d_feature=4, pool_size=5)).train()  # in evaluation it does not run
    q = 2 * wave((2, 17, 3, 4))
    with torch.no_grad():
        found = made(q, range_ids=torch.tensor([[0, 0, 0, 8, 9, 16]] * 2))
    Path(__file__).with_suffix(".json").write_text(json.dumps({"logits": found["logits"][:, 0].tolist()}) + "\n")
