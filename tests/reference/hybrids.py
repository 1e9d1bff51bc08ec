"""Writes hybrids.json: layers of recurrences and attention as their authors' code computes them.

python tests/reference/hybrids.py FOLDER        (PyTorch 2.13)

FOLDER holds checkouts, each named owner+repository: facebookresearch+mega, Smerity+sha-rnn, CLAIRE-Labo+RAT. Of
each, the named functions and classes alone are run; what they import of training frameworks and of GPU kernels is
stood in for by what it computes: dropout by nothing, the scan of RAT by its recurrence, its attention by the same in
float32 on a CPU.
"""

import ast
import json
import math
import sys
import types
import typing
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import flex_attention as flex

OUT = Path(__file__).with_name("hybrids.json")


def taken(repository, file, *names, replaced=(), **others):
    """Top-level functions and classes of a file, in a namespace of their own, some words of it replaced."""
    text = (Path(sys.argv[1]) / repository / file).read_text()
    for old, new in replaced:
        text = text.replace(old, new)
    tree = ast.parse(text)
    tree.body = [part for part in tree.body if getattr(part, "name", None) in names]
    tree.body.insert(0, ast.parse("from __future__ import annotations").body[0])
    space = {"torch": torch, "nn": nn, "F": F, "math": math, "Tensor": torch.Tensor, "Parameter": nn.Parameter}
    space |= {name: getattr(typing, name) for name in ("Dict", "Optional", "Tuple")} | others
    exec(compile(ast.fix_missing_locations(tree), file, "exec"), space)
    return types.SimpleNamespace(**{name: space[name] for name in names})


def drawn(module):
    """The module with parameters of three digits."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.round(0.5 * torch.randn_like(parameter), decimals=3))
    return module.eval()


def told(module, x, out):
    weights = {name: parameter.tolist() for name, parameter in module.named_parameters()}
    return {"weights": weights, "x": x.tolist(), "out": [round(v, 7) for v in out.flatten().tolist()]}


class Nothing(nn.Module):
    """In the place of dropout."""

    def __init__(self, *given, **named):
        super().__init__()

    def forward(self, x, **named):
        return x


class Normed(nn.LayerNorm):
    """In the place of a norm that is told its kind."""

    def __init__(self, kind, width, affine=True, export=False):
        super().__init__(width)


def mega(chunk):
    def same(thing):
        return thing

    average = taken(
        "facebookresearch+mega",
        "fairseq/modules/exponential_moving_average.py",
        "MultiHeadEMA",
        with_incremental_state=same,
    )
    bias = taken("facebookresearch+mega", "fairseq/modules/relative_positional_bias.py", "SimpleRelativePositionalBias")
    utils = types.SimpleNamespace(
        get_activation_fn=lambda activation: F.silu, softmax=lambda x, dim, onnx_trace: F.softmax(x, dim)
    )
    layer = taken(
        "facebookresearch+mega",
        "fairseq/modules/moving_average_gated_attention.py",
        "MovingAverageGatedAttention",
        with_incremental_state=same,
        utils=utils,
        FairseqDropout=Nothing,
        FairseqFeatureDropout=Nothing,
        SequenceNorm=Normed,
        MultiHeadEMA=average.MultiHeadEMA,
        SimpleRelativePositionalBias=bias.SimpleRelativePositionalBias,
    ).MovingAverageGatedAttention
    module = drawn(layer(6, 4, 5, 3, chunk_size=chunk, max_positions=8))
    x = torch.round(torch.randn(8, 2, 6), decimals=3)
    size = 8 if chunk < 0 else chunk
    mask = torch.full((size, size), -math.inf).triu(1)
    return told(module, x.transpose(0, 1), module(x, attn_mask=mask)[0].transpose(0, 1))


def sha_rnn():
    parts = taken(
        "Smerity+sha-rnn",
        "model.py",
        *("attention", "Overparam", "Attention", "Block", "GELU", "Boom"),
        LayerNorm=nn.LayerNorm,
        checkpoint=lambda f, *given: f(*given),
    )
    module = drawn(parts.Block(6, 12, dropout=0.0, rnn=True, residual=False, use_attn=True))
    x = torch.round(torch.randn(7, 2, 6), decimals=3)
    pe, first, rest = [0] * 100, x[:4], x[4:]
    whole = module(x, pe, torch.full((7, 7), -math.inf).triu(1))[0]
    out, memory, hidden, _ = module(first, pe, torch.full((4, 4), -math.inf).triu(1))
    seen = torch.cat([torch.zeros(3, 4), torch.full((3, 3), -math.inf).triu(1)], 1)
    carried = torch.cat([out, module(rest, pe, seen, mem=memory, hidden=hidden)[0]])
    torch.testing.assert_close(carried, whole)
    return told(module, x.transpose(0, 1), whole.transpose(0, 1))


def recurrence(gate, written):
    """``h_t = g_t h_{t−1} + w_t`` along the third axis."""
    state, states = torch.zeros_like(written[:, :, 0]), []
    for t in range(written.shape[2]):
        state = gate[:, :, t] * state + written[:, :, t]
        states.append(state)
    return torch.stack(states, 2)


def masked(seen, *sizes, device):
    """A mask of a method, which the operator does not take by itself."""
    return flex.create_block_mask(lambda b, h, i, j: seen(b, h, i, j), *sizes, device="cpu")


class Registry(dict):
    """In the place of a table of layers."""

    def register(self, name):
        return lambda thing: thing


def rat():
    folder = "CLAIRE-Labo+RAT"
    rotary = taken(folder, "src/model/backbone/util.py", "rotate_half", "apply_rotary_pos_emb")
    merge = taken(folder, "src/model/op/merge_lastt.py", "merge_last_token_naive")
    turn = taken(folder, "src/model/embedding/pe.py", "InterRoPE", pe_registry=Registry())
    layer = taken(
        folder,
        "src/model/backbone/rat/rat.py",
        "RAT",
        replaced=(("bfloat16", "float32"), ('device="cuda"', 'device="cpu"')),
        Base=nn.Module,
        RATCache=None,
        layer_registry=Registry(),
        norm_registry=Registry(rmsnorm=lambda width, eps, **named: nn.RMSNorm(width, eps)),
        fla=types.SimpleNamespace(create_block_mask=masked, flex_attention=flex.flex_attention),
        ascan=recurrence,
        apply_rotary_pos_emb=rotary.apply_rotary_pos_emb,
        merge_last_token_naive=merge.merge_last_token_naive,
    ).RAT
    module = drawn(layer(16, num_head=4, chunk_size=3, ngroups=2, device="cpu"))
    x = torch.round(torch.randn(2, 12, 16), decimals=3)
    _, angles = turn.InterRoPE(4, 4, 3)(0, 12, "cpu", torch.float32)
    return told(module, x, module(x, **angles))


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        found = {"mega": mega(-1), "mega in chunks of 4": mega(4), "sha_rnn": sha_rnn(), "rat": rat()}
    OUT.write_text(json.dumps(found) + "\n")
