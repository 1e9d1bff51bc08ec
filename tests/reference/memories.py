"""Writes memories.json: what titans-pytorch answers with one summed step a chunk.

PYTHONPATH=LIBRARIES python tests/reference/memories.py

LIBRARIES holds titans-pytorch 0.5.5 and what it needs. Of its layer the memory alone is compared: one head, no norms
around it, gradients at the weights that the last chunk left. Gates of a chunk are constants, as the layer makes them of
a chunk's mean. With PyTorch 2.13.
"""

import json
from pathlib import Path

import torch
from titans_pytorch import NeuralMemory
from torch import nn

CHUNK, DIM, N = 4, 5, 14


class Unit(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x, dim=-1)


def rounded(x):
    return [[round(value, 13) for value in row] for row in x.tolist()]


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    made = NeuralMemory(
        DIM, CHUNK, CHUNK, pre_rmsnorm=False, mem_model_norm_add_residual=False, default_step_transform_max_lr=0.5,
        default_model_kwargs={"depth": 2, "expansion_factor": 2.0}, init_momentum_bias=0.4, init_decay_bias=-2.0,
    )  # fmt: skip
    made.to_queries, made.to_keys = (nn.Sequential(x, Unit()) for x in (made.to_queries, made.to_keys))
    x = torch.randn(1, N, DIM)
    with torch.no_grad():
        found = {
            name: rounded(getattr(made, f"to_{long}")(x)[0])
            for name, long in zip("qkv", ("queries", "keys", "values"), strict=True)
        }
        step = made.adaptive_step_transform(made.to_adaptive_step(x)) / DIM  # its loss is a mean
        found["step"] = rounded(step)[0]
        found |= {"layers": [rounded(w[0]) for w in made.memory_model_parameters], "out": rounded(made(x)[0][0])}
    gates = {"momentum": torch.tensor(0.4).sigmoid().item(), "forget": torch.tensor(-2.0).sigmoid().item()}
    written = {"chunk": CHUNK, **gates, **found}
    Path(__file__).with_suffix(".json").write_text(json.dumps(written) + "\n")
