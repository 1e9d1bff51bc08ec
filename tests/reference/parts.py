"""Writes parts.json: what authors' code computes with parts of their methods that other files here leave out.

python tests/reference/parts.py FOLDER        (PyTorch 2.13)

FOLDER holds checkouts, each named owner+repository: facebookresearch+RAM, facebookresearch+mega,
piotrpiekos+MoSA, awayfromzel+neural-attention-research, mit-han-lab+radial-attention. Of each, the named
functions and classes alone are run.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from authors import plain, random, rounded, short, taken
from hybrids import Normed, Nothing
from torch import nn


class OnCpu:
    """torch, for code that makes its tensors on a GPU."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def tensor(self, *given, device=None, **named):
        return torch.tensor(*given, **named)


def told(module, x, out):
    """Weights, input and output."""
    weights = dict(module.named_parameters())
    return {"weights": weights, "x": x, "out": out}


def multi_token():
    """The whole layer, without positions: convolved and mixed before and after the softmax, normed, gated."""
    own = taken(
        "facebookresearch+RAM", "projects/mta/mta_transformer.py", "Attention", "RMSNorm", "MTATransformerArgs",
        BlockMask=None, AttentionBias=None, torch=OnCpu(), apply_rotary_emb=lambda q, k, *_: (q, k),
        repeat_kv=lambda x, count, dim: x.repeat_interleave(count, dim), field=None, dataclass=lambda x: x,
    )  # fmt: skip
    sizes = {
        "query_kernel_size": 2,
        "key_kernel_size": 3,
        "after_sm_query_kernel_size": 3,
        "after_sm_key_kernel_size": 5,
    }
    args = own.MTATransformerArgs()
    given = {**sizes, "use_mta": True, "head_kernel_size": 2, "pre_sm_linear_head": True}
    for name, value in {**given, "group_norm": True, "add_gating": True}.items():
        setattr(args, name, value)
    layer = random(own.Attention(7, 3, 4, 2, 1e4, False, 16, args, 0.0, 0))
    x = rounded(torch.randn(2, 11, 7))
    return told(layer, x, layer(x, torch.zeros(11)))


def mega(attention, both, chunk):
    """A layer of 8 tokens in chunks, all of them for −1; causal unless it is of both ways."""
    folder, same = "facebookresearch+mega", {"with_incremental_state": lambda thing: thing, "Parameter": nn.Parameter}
    average = taken(folder, "fairseq/modules/exponential_moving_average.py", "MultiHeadEMA", **same)
    bias = taken(folder, "fairseq/modules/relative_positional_bias.py", "SimpleRelativePositionalBias")
    laplace = taken(folder, "fairseq/utils.py", "laplace").laplace
    utils = SimpleNamespace(
        get_activation_fn=lambda activation: F.silu,
        laplace=laplace,
        softmax=lambda x, dim, onnx_trace: F.softmax(x, dim),
    )
    layer = taken(
        folder, "fairseq/modules/moving_average_gated_attention.py", "MovingAverageGatedAttention", **same,
        utils=utils, FairseqDropout=Nothing, FairseqFeatureDropout=Nothing, SequenceNorm=Normed,
        MultiHeadEMA=average.MultiHeadEMA, SimpleRelativePositionalBias=bias.SimpleRelativePositionalBias,
    ).MovingAverageGatedAttention  # fmt: skip
    made = layer(6, 4, 5, 3, chunk_size=chunk, max_positions=8, bidirectional=both, attention_activation=attention)
    module, x = random(made), rounded(torch.randn(8, 2, 6))
    size = 8 if chunk < 0 else chunk
    seen = torch.ones(size, size).tril()
    mask = None if both else (seen if attention == "laplace" else torch.full((size, size), -math.inf).triu(1))
    return told(module, x.transpose(0, 1), module(x, attn_mask=mask)[0].transpose(0, 1))


def mosa(first):
    """Three heads that choose a quarter of 19 tokens, half of their coordinates turned, beside two of all tokens."""
    folder, places = "piotrpiekos+MoSA", "mosa/positional_encoding.py"
    turn = vars(taken(folder, places, "RotaryPosEncoding", "MoSARotaryPosEncoding"))
    pure = vars(taken(folder, "mosa/MoSA.py", "ExpertGather", "ExpertScatter", "PureMoSA", **turn))
    hybrid = taken(folder, "mosa/hybrid.py", "MultiHeadAttention", "Dense", "MoSA", **turn, **pure)
    module, x = random(hybrid.MoSA(6, 5, 3, 2, 19, 4, include_first=first)), rounded(torch.randn(2, 19, 6))
    return told(module, x, module(x))


def neural():
    """The whole layer: queries and keys projected to four coordinates, hidden layers of four and two."""
    file = "nlp_neural_attention/Models/NeuralAttention.py"
    own = taken("awayfromzel+neural-attention-research", file, "NeuralAttention")
    module, x = random(own.NeuralAttention(9, 3, 3, True, 4)), rounded(torch.randn(2, 7, 9))
    return told(module, x, module(x))


def radial():
    """Rows of the kept blocks, by frames, tokens of a frame and decay factor, in blocks of 128."""
    names = "shrinkMaskStrict", "get_window_width", "get_diagonal_split_mask", "gen_log_mask_shrinked"
    own, found = taken("mit-han-lab+radial-attention", "radial_attn/attn_mask.py", *names), {}
    for frames, tokens, factor in ((12, 300, 0.5), (16, 256, 1.0), (9, 700, 0.2)):
        given = {"block_size": 128, "sparse_type": "radial", "decay_factor": factor, "model_type": "wan"}
        mask = own.gen_log_mask_shrinked(torch.zeros(1), frames * tokens, frames * tokens, frames, **given)
        found[f"{frames} {tokens} {factor}"] = ["".join(map(str, row)) for row in mask.int().tolist()]
    return found


MADE = {
    "multi_token": multi_token,
    "mega laplace": lambda: mega("laplace", False, 4),
    "mega both laplace": lambda: mega("laplace", True, -1),
    "mega both laplace in chunks of 4": lambda: mega("laplace", True, 4),
    "mega both softmax": lambda: mega("softmax", True, 4),
    "neural": neural,
    "radial": radial,
    "mosa 0": lambda: mosa(0),
    "mosa 1": lambda: mosa(1),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        found = {name: short(plain(make())) for name, make in MADE.items()}
    text = ",\n".join(f'"{name}": {json.dumps(x)}' for name, x in found.items())
    Path(__file__).with_name("parts.json").write_text("{\n" + text + "\n}\n")
