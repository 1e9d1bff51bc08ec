"""Writes authors.json: what the code that authors published with their papers computes.

python tests/reference/authors.py FOLDER        (PyTorch 2.13, Transformers 5.24)

FOLDER holds checkouts, each named owner+repository: mit-han-lab+radial-attention, PCR-git+Adaptive-Filter-Attention,
opallab+positional_attention, thuml+Flowformer, cmsflash+efficient-attention, trestad+CogAttn, ChuanyangZheng+L2ViT,
apple+ml-sigmoid-attention, armingerami+fastmax, apple+ml-probabilistic-attention, SHI-Labs+NATTEN,
facebookresearch+RAM, LeapLabTHU+Agent-Attention, jeffwillette+delta-attention. Of each, the named
functions and classes alone are run.
"""

import ast
import functools
import json
import math
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn
from transformers.masking_utils import sliding_window_causal_mask_function

HEADS, TOKENS, DIM, VALUES = 3, 7, 4, 2
GIVEN = {name: getattr(typing, name) for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")}
GIVEN |= {"torch": torch, "nn": nn, "F": F, "f": F, "math": math, "functools": functools, "t": typing}
GIVEN |= {"rearrange": rearrange, "repeat": repeat, "Tensor": torch.Tensor, "BoolTensor": torch.BoolTensor}


def taken(repository, file, *names, **others):
    """Top-level functions and classes of a file, in a namespace of their own."""
    tree = ast.parse((Path(sys.argv[1]) / repository / file).read_text())
    tree.body = [ast.parse("from __future__ import annotations").body[0]] + [
        part for part in tree.body if getattr(part, "name", None) in names
    ]
    space = GIVEN | others
    exec(compile(ast.fix_missing_locations(tree), file, "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names})


def drawn(*shapes):
    return [rounded(torch.randn(shape)) for shape in shapes]


def rounded(x, digits=3):
    return torch.round(x.double(), decimals=digits).float()


def qkv(values=VALUES):
    return drawn((1, HEADS, TOKENS, DIM), (1, HEADS, TOKENS, DIM), (1, HEADS, TOKENS, values))


def random(module):
    for parameter in module.parameters():
        parameter.copy_(rounded(torch.randn_like(parameter)))
    return module


def identity(linear):
    """A projection that leaves everything as it is."""
    linear.weight.copy_(torch.eye(linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()


def flat(x):
    """``(b, h, n, d)`` as the hidden states of which identities make it."""
    return x.transpose(1, 2).flatten(2)


def heads(x, count=HEADS):
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def radial():
    """Width of the band of frames so far apart, −1 for none, by tokens of a frame, decay factor and distance."""
    own = taken(
        "mit-han-lab+radial-attention", "radial_attn/attn_mask.py", "get_window_width", "get_diagonal_split_mask"
    )
    found, like = {}, torch.zeros(1)
    for tokens, factor in ((300, 0.5), (1000, 1.0), (3600, 0.5), (3600, 0.2)):
        widths = []
        for apart in range(24):
            width = own.get_window_width(0, apart, tokens, "radial", 24, factor, 128, "hunyuan")
            kept = own.get_diagonal_split_mask(0, apart, tokens, "radial", like)[0, 0].item()
            widths.append(int(width) if kept else -1)
        found[f"{tokens} {factor}"] = widths
    return found


def adaptive_filter():
    """Attention times decay, from turned queries and keys."""
    folder = "PCR-git+Adaptive-Filter-Attention"
    own = taken(
        folder, "isotropic_afa/simplified_precision_utils.py", "compute_exp_kernel_isotropic",
        "compute_covariance_matrix_safe", "compute_residual_norm_isotropic",
    )  # fmt: skip
    attention = taken(folder, "model/multihead_isotropic_AFA.py", "MultiheadIsotropicAFA").MultiheadIsotropicAFA
    q, k = drawn((1, HEADS, TOKENS, 6), (1, HEADS, TOKENS, 6))
    decay, process, measurement, anchor, robust, temperature = rounded(torch.rand(6, HEADS) + 0.1)
    options = {"use_full_residual_norm": 1, "additive_bias_type": 1, "multiplicative_bias_type": 1}
    args = SimpleNamespace(**options, use_robust_weight=1)
    times = torch.arange(TOKENS)
    apart = (times[:, None] - times).abs()[..., None]
    _, kept = own.compute_exp_kernel_isotropic(torch.zeros(HEADS, 3), times, -decay * apart)
    v = own.compute_covariance_matrix_safe(-decay, apart, -decay * apart, process, measurement, anchor, times, args)
    turned = [x.unflatten(3, (2, 3)).permute(0, 2, 1, 4, 3) for x in (q, k)]
    residual = own.compute_residual_norm_isotropic(*turned, kept, args)
    causal = torch.ones(TOKENS, TOKENS).tril().view(1, TOKENS, TOKENS, 1)
    self = SimpleNamespace(d_k_head=3, args=args, tau=temperature, causal_mask=causal)
    found = attention._compute_attention_matrix(self, residual, v, v, apart, robust, process, measurement)[0] * kept
    logs = torch.stack([decay, process, measurement, anchor, robust, temperature])
    return {"q": q, "k": k, "numbers": logs, "weights": found.permute(0, 3, 1, 2)}


def positional():
    made = taken("opallab+positional_attention", "model.py", "MultiheadAttention").MultiheadAttention
    layer = random(made(HEADS * VALUES, HEADS, positional=True, pos_dim=DIM))
    identity(layer.v_proj), identity(layer.o_proj)
    p, v = drawn((TOKENS, DIM), (1, HEADS, TOKENS, VALUES))
    weight = layer.qk_proj.weight.unflatten(0, (HEADS, 2, DIM))
    bias = layer.qk_proj.bias.unflatten(0, (HEADS, 2, DIM))
    return {"encodings": p, "v": v, "weight": weight, "bias": bias, "out": heads(layer(flat(v), p))}


def flow():
    """Bidirectional and causal."""
    own = taken("thuml+Flowformer", "Flow_Attention.py", "Flow_Attention", "Flow_Attention_Causal")
    q, k, v = qkv(DIM)
    found = {"q": q, "k": k, "v": v}
    for name, made in (("bidirectional", own.Flow_Attention), ("causal", own.Flow_Attention_Causal)):
        layer = made(HEADS * DIM, HEADS * DIM, HEADS * DIM, HEADS).eval()
        for part in (layer.query_projection, layer.key_projection, layer.value_projection, layer.out_projection):
            identity(part)
        found[name] = heads(layer(flat(q), flat(k), flat(v)))
    return found


def efficient():
    made = taken("cmsflash+efficient-attention", "efficient_attention.py", "EfficientAttention").EfficientAttention
    layer = random(made(5, HEADS * DIM, HEADS, HEADS * VALUES))
    layer.reprojection.weight.zero_(), layer.reprojection.bias.zero_()
    kept = []
    layer.reprojection.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    (x,) = drawn((1, 5, 1, TOKENS))
    layer(x)
    parts = (part(x)[:, :, 0].mT for part in (layer.queries, layer.keys, layer.values))
    q, k, v = (heads(part) for part in parts)
    return {"q": q, "k": k, "v": v, "out": heads(kept[0][:, :, 0].mT)}


def cog():
    own = taken("trestad+CogAttn", "Cogformer/attention.py", "CogAttention", apply_rotary_emb=lambda q, k, _: (q, k))
    q, k, v = qkv(DIM)
    layer = own.CogAttention(0, HEADS * DIM * 3, HEADS, DIM)
    for name, weight in zip(("qw", "kw", "vw"), torch.eye(HEADS * DIM * 3).chunk(3, 1), strict=True):
        setattr(layer, name, nn.Parameter(weight))
    layer.ow = nn.Parameter(torch.eye(HEADS * DIM))
    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]
    x = torch.cat([flat(q), flat(k), flat(v)], -1)
    out, weights, _ = layer(x, torch.zeros(TOKENS), causal)
    return {"q": q, "k": k, "v": v, "weights": weights, "out": heads(out)}


def l2vit():
    """Queries and keys of both signs times ten: some sums are clamped, some are not."""
    file = "semantic_segmentation/mmseg/models/backbone/l2vit.py"
    own = taken("ChuanyangZheng+L2ViT", file, "LinearAttention", Mul=lambda: torch.matmul)
    layer = own.LinearAttention(HEADS * DIM, HEADS)
    layer.qkv = nn.Identity()
    identity(layer.proj)
    layer.temperature.copy_(rounded(torch.rand_like(layer.temperature)))
    q, k, v = qkv(DIM)
    q, k = 4 * q, 4 * k
    layer.qkv.forward = lambda x: torch.stack([flat(q), flat(k), flat(v)], 2).flatten(2)
    x = torch.zeros(1, TOKENS, HEADS * DIM)
    return {"q": q, "k": k, "v": v, "temperature": layer.temperature.flatten(), "out": heads(layer(x))}


def sigmoid():
    """Causal, with one bias."""
    own = taken(
        "apple+ml-sigmoid-attention", "flash_sigmoid/tests/test_flash_attn.py", "attention_ref", "construct_local_mask"
    )
    q, k, v = qkv()
    found = own.attention_ref(*(x.transpose(1, 2) for x in (q, k, v)), causal=True, sigmoid_bias=-1.5)
    return {"q": q, "k": k, "v": v, "bias": -1.5, "out": found[0].transpose(1, 2)}


def fastmax():
    """Of queries and keys that are standardised already: bidirectional and causal, of both orders."""
    own = taken("armingerami+fastmax", "test_fastmax.py", "fastmax_function")
    q, k, v = qkv()
    standard = [(x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0) for x in (q, k)]
    found = {"q": q, "k": k, "v": v}
    for causal in (0, 1):
        found[f"2 {causal}"] = own.fastmax_function(*standard, v, mask=causal, p=2)
        found[f"1 {causal}"] = own.fastmax_function(standard[0] / DIM, standard[1], v, mask=causal, p=1)
    return found


def probabilistic():
    """Without and with one step of key adaptation under a prior: of further steps, see `Probabilistic`."""
    own = taken("apple+ml-probabilistic-attention", "probabilisticattention.py", "ProbabilisticAttention", eps=1e-20)
    q, k, v = qkv()
    found = {"q": q, "k": k, "v": v, "precision": 0.7}
    for steps in (0, 1):
        layer = own.ProbabilisticAttention(True, True, steps == 0, key_adaptation=steps > 0, key_adaptation_iters=steps)
        out = layer(*(x.mT for x in (q, k)), DIM**-0.5, v.mT, 0.0, zeta_prior_precision=0.7)
        found[f"{steps}"] = out.mT
    return found


def neighborhood():
    """Masks of one and two axes, odd, even, strided, dilated, causal: a row of 0 and 1 for each query."""
    own = taken(
        "SHI-Labs+NATTEN", "src/natten/backends/flex.py", "get_na_flex_mask", "idx2crd",
        is_torch_compiling=lambda: True, create_block_mask=lambda mask, **_: mask,
    )  # fmt: skip
    cases = [
        ((13,), (5,), (1,), (1,), (False,)), ((14,), (4,), (3,), (2,), (False,)), ((13,), (5,), (2,), (1,), (True,)),
        ((5, 7), (3, 4), (1, 1), (1, 1), (False, False)), ((6, 7), (3, 3), (2, 1), (1, 2), (True, False)),
    ]  # fmt: skip
    found = []
    for shape, *case in cases:
        mask, total = own.get_na_flex_mask("cpu", len(shape), shape, *case), math.prod(shape)
        i, j = torch.meshgrid(torch.arange(total), torch.arange(total), indexing="ij")
        rows = ["".join(map(str, row)) for row in mask(0, 0, i, j).int().tolist()]
        found.append({"case": [shape, *case], "rows": rows})
    return found


def multi_token():
    """Convolved scores, softmax, mixed heads; causal."""
    own = taken("facebookresearch+RAM", "projects/mta/mta_transformer.py", "Attention", BlockMask=None)
    count = 4
    q, k = drawn((1, count, TOKENS, DIM), (1, count, TOKENS, DIM))
    kernel, mix = drawn((count, 1, 3, 5), (2, 2, 2))
    self = SimpleNamespace(n_heads=count, pad_key="both", head_kernel_size=2, head_kernel=mix)
    mask = torch.full((TOKENS, TOKENS), -torch.inf).triu(1).repeat(1, count, 1, 1)
    scores = own.Attention._mta_convolution(self, q @ k.mT * DIM**-0.5, mask, None, kernel)
    weights = own.Attention._head_convolution(self, torch.softmax(scores + mask, -1), 1, TOKENS)
    return {"q": q, "k": k, "kernel": kernel[:, 0], "mix": mix, "weights": weights}


def agent():
    """On a picture of one column, without its biases of positions and without its convolution."""
    file = "downstream/segmentation/mmseg/models/backbones/agent_pvt.py"
    own = taken("LeapLabTHU+Agent-Attention", file, "AgentAttention", trunc_normal_=nn.init.trunc_normal_)
    layer = own.AgentAttention(HEADS * DIM, 49, HEADS, downstream_agent_shape=(3, 1))
    for parameter in layer.parameters():
        parameter.zero_()
    q, k, v = qkv(DIM)
    layer.q.forward, layer.kv.forward = lambda _: flat(q), lambda _: torch.cat([flat(k), flat(v)], -1)
    identity(layer.proj)
    return {"q": q, "k": k, "v": v, "out": heads(layer(torch.zeros(1, TOKENS, HEADS * DIM), TOKENS, 1))}


def delta():
    """The first queries of two heads: a window of three with a sink, corrected every four queries."""
    seen = torch.ones(150, 150, dtype=torch.bool).tril()
    near = seen & (torch.ones_like(seen).triu(-2) | (torch.arange(150) < 1))

    def rows(q, k, v, where, _):
        return F.scaled_dot_product_attention(q, k, v, seen[where[0]])

    file = "delta_attention/llama.py"
    own = taken("jeffwillette+delta-attention", file, "LlamaAttention", repeat_kv=lambda x, _: x, qsa_kernel=rows)
    q, k, v = drawn((1, 32, 150, DIM), (1, 32, 150, DIM), (1, 32, 150, DIM))
    self = SimpleNamespace(
        config=SimpleNamespace(delta_lambda=4, sliding_window=3, mode="delta"),
        hip_attn_args=SimpleNamespace(need_apply_rope=False),
        hip_attention_interface=lambda _, q, k, v, *__, **___: (
            F.scaled_dot_product_attention(q, k, v, near).transpose(1, 2), None
        ),
    )  # fmt: skip
    out = own.LlamaAttention.delta_forward(self, SimpleNamespace(num_key_value_groups=1), q, k, v, None)[0]
    q, k, v, out = (x[:, :2, :20] for x in (q, k, v, out.transpose(1, 2)))
    return {"q": q, "k": k, "v": v, "out": out}


def window():
    """Softmax attention of PyTorch, causal and under the window of three that Transformers makes."""
    q, k, v = qkv()
    seen = sliding_window_causal_mask_function(3)
    i, j = torch.meshgrid(torch.arange(TOKENS), torch.arange(TOKENS), indexing="ij")
    mask = torch.vmap(torch.vmap(lambda i, j: seen(0, 0, i, j)))(i, j)
    both = {"causal": mask.new_ones(TOKENS, TOKENS).tril(), "window": mask}
    outs = {name: F.scaled_dot_product_attention(q, k, v, m) for name, m in both.items()}
    return {"q": q, "k": k, "v": v, **outs}


MADE = (
    radial, adaptive_filter, positional, flow, efficient, cog, l2vit, sigmoid, fastmax, probabilistic, neighborhood,
    multi_token, agent, delta, window,
)  # fmt: skip


def plain(x):
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    return rounded(x.detach(), 6).double().tolist() if isinstance(x, torch.Tensor) else x


def short(value):
    """Numbers of at most six decimals."""
    if isinstance(value, dict):
        return {name: short(part) for name, part in value.items()}
    if isinstance(value, list):
        return [short(part) for part in value]
    return round(value, 6) if isinstance(value, float) else value


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        found = {each.__name__: short(plain(each())) for each in MADE}
    text = ",\n".join(f'"{name}": {json.dumps(x)}' for name, x in found.items())
    Path(__file__).with_name("authors.json").write_text("{\n" + text + "\n}\n")
