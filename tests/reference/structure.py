"""Writes structure.json: label attention and a pose lifter of their authors, from weights to outputs.

python tests/reference/structure.py FOLDER        (PyTorch 2.13)

FOLDER holds KM_parser.py and hpsg_decoder.pyx of src_joint/ of KhalilMrini/LAL-Parser, and model/ of xiu-cs/IGANet. Of
each, the named classes and functions alone are run; the decoder without its types, as Python.
"""

import ast
import json
import re
import sys
import types
from functools import partial
from pathlib import Path

import numpy
import torch
import torch.nn.functional
from torch import nn

PARSER = ("LayerNormalization", "ScaledDotProductAttention", "LabelAttention")
DEPENDENTS = ("BiLinear", "BiAAttention", "Dep_score")
LIFTER = ("linear_block", "encoder", "uMLP", "Attention", "GCN", "Block", "IGANet")
GRAPH = ("Graph", "get_hop_distance", "normalize_digraph")


def rearrange(x, how):
    """What the authors rearrange, without einops."""
    swaps = {"b j c -> b c j", "b c j -> b j c"}
    if how in swaps:
        return x.transpose(1, 2)
    return {"b ck j -> b ck 1 j": lambda: x[:, :, None], "b c 1 j -> b j c": lambda: x[:, :, 0].transpose(1, 2)}[how]()


def parts_of(file, names, known):
    """The named classes and functions of a file."""
    nodes = [node for node in ast.parse(file.read_text()).body if getattr(node, "name", None) in names]
    exec(compile(ast.Module(nodes, []), str(file), "exec"), known)
    return types.SimpleNamespace(**{name: known[name] for name in names})


def label_attention(folder):
    """Three labels over sentences of 5 and 3 words, each alone: in a batch the code gives queries to other labels."""
    known = {"torch": torch, "nn": nn, "torch_t": torch, "init": nn.init, "DTYPE": torch.bool}
    known["FeatureDropout"] = lambda p: None
    code = parts_of(folder / "KM_parser.py", PARSER, known)
    options = types.SimpleNamespace(lal_combine_as_self=False)
    made = code.LabelAttention(options, 6, 4, 4, 3, 2, use_resdrop=False, attention_dropout=0.0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    found = {}
    for name, count in (("long", 5), ("short", 3)):
        x = torch.randn(count, 6)
        indices = types.SimpleNamespace(max_len=count, batch_size=1, boundaries_np=numpy.array([0, count]))
        out, weights = made(x.clone(), indices)
        found |= {f"{name}_x": x, f"{name}_out": out, f"{name}_weights": weights[:, 0]}
    return found, made.state_dict()


def label_attention_apart(folder):
    """The same with position in the last two of six channels, on five words."""
    known = {"torch": torch, "nn": nn, "torch_t": torch, "init": nn.init, "DTYPE": torch.bool}
    known["FeatureDropout"] = lambda p: None
    code = parts_of(folder / "KM_parser.py", PARSER, known)
    options = types.SimpleNamespace(lal_combine_as_self=False)
    made = code.LabelAttention(
        options, 6, 4, 4, 3, 2, use_resdrop=False, attention_dropout=0.0, d_positional=2
    )  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(5, 6)
    indices = types.SimpleNamespace(max_len=5, batch_size=1, boundaries_np=numpy.array([0, 5]))
    out, weights = made(x.clone(), indices)
    return {"x": x, "out": out, "weights": weights[:, 0]}, made.state_dict()


def heads(folder):
    """Scores of heads and types of four fences of five channels."""
    known = {"torch": torch, "nn": nn, "torch_t": torch, "init": nn.init}
    code = parts_of(folder / "KM_parser.py", DEPENDENTS, known)
    made = code.Dep_score(types.SimpleNamespace(annotation_dim=5, d_biaffine=3, d_label_hidden=3), 2).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(4, 5)
    arcs, kinds = made(x, x)
    return {"x": x, "arcs": arcs.T, "types": kinds}, made.state_dict()


def trees(folder):
    """Best trees of random scores, with one label of phrases that are no constituents; and one of a single word."""
    text = (folder / "hpsg_decoder.pyx").read_text()
    text = re.sub(r"cdef np\.ndarray\[[^]]*\] ", "", re.sub(r"np\.ndarray\[[^]]*\] (?=\w+[,)])", "", text))
    text = re.sub(r"(?m)^c(typedef|import).*|^(cimport|from numpy cimport|@).*", "", text)
    text = re.sub(r"(?m)^(\s*)cdef \w+ (\w+ = )", r"\1\2", text)
    text = re.sub(r"(?m)^\s*(cdef \w+ [\w, ]+|label_scores_for_span)(#.*)?$", "", text)
    known = {}
    exec(compile(re.sub(r"int (?=force_gold|sentence_len|is_train)", "", text), "hpsg_decoder", "exec"), known)
    found = {}
    for name, n in (("one", 1), ("four", 4), ("six", 6), ("seven", 7)):
        spans = numpy.random.default_rng(n).normal(size=(n + 1, n + 1, 4)).astype("float32")
        spans[..., 0] = 0
        arcs = numpy.random.default_rng(n + 50).normal(size=(n + 1, n + 1)).astype("float32")
        score, i, j, label, father, *_ = known["decode"](False, n, spans * 0.5, arcs * 0.5, False, None, None, None)
        chart = torch.zeros(n + 1, n + 1)
        chart[i, j] = torch.tensor(label).float()
        found |= {f"{name}_spans": torch.tensor(spans[..., 1:]), f"{name}_arcs": torch.tensor(arcs)}
        told = {"labels": chart, "heads": torch.tensor(father), "score": torch.tensor(float(score))}
        found |= {f"{name}_{key}": value for key, value in told.items()}
    return found, {}


def pose_lifter(folder):
    """Two blocks, of the authors' only width, on one pose, with weights that their names alone decide."""
    known = {
        "torch": torch,
        "nn": nn,
        "F": torch.nn.functional,
        "partial": partial,
        "DropPath": lambda p: nn.Identity(),
    }
    known |= {"rearrange": rearrange, "np": numpy}
    code = parts_of(folder / "model" / "model_IGANet.py", LIFTER, known)
    graph = parts_of(folder / "model" / "graph_frames.py", GRAPH, {"np": numpy}).Graph("hm36_gt", "spatial", pad=1)
    adjacency = torch.tensor(graph.A)
    made = nn.ModuleDict(
        {"embed": code.encoder(2), "net": code.IGANet(2, 512, adjacency, length=17), "out": nn.Linear(512, 3)}
    )
    made = made.double().eval()
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            parameter.data = filled(name, parameter.shape)
    x = filled("poses", (1, 17, 2))
    out = made["out"](made["net"](made["embed"](x)))
    return {"adjacency": adjacency, "out": out}, {}


def filled(name, shape):
    """Numbers that a name and a shape alone decide, so that both sides can make them."""
    count, spread = int(numpy.prod(shape)), 1.0 if len(shape) == 1 else shape[-1] ** -0.5
    place = torch.arange(count, dtype=torch.float64) + sum(i * ord(letter) for i, letter in enumerate(name, 1)) % 997
    return (torch.sin(1.7 * place * place % 6.1) * spread).reshape(tuple(shape))


if __name__ == "__main__":
    torch.manual_seed(0)
    found = {}
    for make in (label_attention, pose_lifter, label_attention_apart, heads, trees):
        values, state = make(Path(sys.argv[1]))
        found[make.__name__] = {key: value.tolist() for key, value in values.items()}
        found[make.__name__]["state"] = {key: value.tolist() for key, value in state.items()}
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.9g}"))
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in rounded.items())
    (Path(__file__).parent / "structure.json").write_text(f"{{{text}}}\n")
