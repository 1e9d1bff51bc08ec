"""Writes routing.json: what published code computes for attention that chooses its keys at run time.

TRITON_INTERPRET=1 PYTHONPATH=AUTHORS python tests/reference/routing.py

AUTHORS holds one file of each repository under another name: `moba_naive.py` (MoonshotAI/MoBA 61e456b,
moba/moba_naive.py), `vmoba.py` (KwaiVGI/VMoBA 4da72ff, src/vmoba.py), `sparge_utils.py` (thu-ml/SpargeAttn bfd980b,
spas_sage_attn/utils.py). With flash-linear-attention 0.6.0, Transformers 5.24, PyTorch 2.13.
"""

import json
import sys
import types
from pathlib import Path

import torch
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
from transformers import DogeConfig
from transformers.models.doge.modeling_doge import DogeAttention

for missing in ("flash_attn", "flash_attn.flash_attn_interface"):  # imported by the authors, called by nothing here
    sys.modules[missing] = types.ModuleType(missing)
    for name in ("flash_attn_varlen_func", "_flash_attn_varlen_forward", "_flash_attn_varlen_backward"):
        setattr(sys.modules[missing], name, None)

import sparge_utils  # noqa: E402
import vmoba  # noqa: E402
from moba_naive import moba_attn_varlen_naive  # noqa: E402


def tokens_last(*given):
    """``(tokens, heads, …)`` as ``(1, heads, tokens, …)``."""
    return [x.transpose(0, 1)[None].tolist() for x in given]


def moba():
    """Two packed sequences of 9 and 14 tokens, three heads, blocks of 4, three of them."""
    q, k, v = torch.randn(3, 23, 3, 5)
    out = moba_attn_varlen_naive(q, k, v, torch.tensor([0, 9, 23]), 14, 4, 3)
    return dict(zip(("q", "k", "v", "out"), tokens_last(q, k, v, out), strict=True))


def nsa():
    """16 heads over one of keys, 23 tokens, blocks of 3, of which four are taken."""
    q, k, v = torch.randn(1, 23, 16, 5), torch.randn(1, 23, 1, 5), torch.randn(1, 23, 1, 5)
    pooled = [torch.stack([part.mean(1) for part in x.split(3, 1)], 1) for x in (k, v)]
    index = naive_nsa_topk(q, pooled[0], 4, 3, 5**-0.5)
    named = {"q": q, "k": k, "v": v, "compressed": naive_nsa_compression(q, *pooled, 3, 5**-0.5)[0]}
    named |= {"selected": naive_nsa_selection(q, k, v, index, 3), "index": index}
    return {name: x.transpose(1, 2).tolist() for name, x in named.items()}


def dynamic_mask():
    """The attention of Doge from its own queries, keys, values and scores on: four heads over two, 5 of 17 keys."""
    config = DogeConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=6, keep_window_size=5,
        attn_implementation="eager",
    )  # fmt: skip
    layer, n = DogeAttention(config, 0), 17
    q, k, v, dt = torch.randn(1, 4, n, 6), torch.randn(1, 2, n, 6), torch.randn(1, 2, n, 6), torch.rand(1, 2, n) + 0.5
    causal = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
    mask = layer.prepare_dynamic_mask(torch.zeros(1, n, 24), dt, 5, causal)
    keys, values, mask = (x.repeat_interleave(2, 1) for x in (k, v, mask))
    out = torch.softmax(q @ keys.mT * layer.scaling + mask, -1) @ values
    return {name: x.tolist() for name, x in {"q": q, "k": k, "v": v, "score": dt, "out": out}.items()}


def video():
    """Which of 6 blocks 11 queries of 2 heads take at a share of 0.3, by scope; the own block is the query's half."""
    gate = torch.randn(6, 2, 11)
    own = (torch.arange(11) // 2 == torch.arange(6)[:, None])[:, None].expand(-1, 2, -1)
    valid = torch.ones_like(gate, dtype=torch.bool)
    scopes = {"query_head": vmoba._select_threshold_query_head, "head_global": vmoba._select_threshold_head_global}
    scopes |= {"block": vmoba._select_threshold_block, "overall": vmoba._select_threshold_overall}
    named = {"gate": gate} | {name: select(gate, valid, own, 0.3) for name, select in scopes.items()}
    return {name: x.permute(1, 2, 0)[None].tolist() for name, x in named.items()}


def sparge():
    """The map of 32 queries in blocks of 16 over 48 keys in blocks of 16, two heads of 16."""
    centres = torch.randn(1, 2, 3, 1, 16)
    k = (centres + torch.tensor([0.3, 1.5, 0.3]).view(1, 1, 3, 1, 1) * torch.randn(1, 2, 3, 16, 16)).flatten(2, 3)
    q = (torch.randn(1, 2, 4, 1, 16) + 0.4 * torch.randn(1, 2, 4, 16, 16)).flatten(2, 3)
    found = sparge_utils.get_block_map_meansim(q, k, BLKQ=16, BLKK=16, simthreshd1=0.5, cdfthreshd=0.8)
    return {"q": q.tolist(), "k": k.tolist(), "map": found.bool().tolist()}


if __name__ == "__main__":
    torch.manual_seed(0)
    parts = {each.__name__: each() for each in (moba, nsa, dynamic_mask, video, sparge)}
    rounded = json.loads(json.dumps(parts), parse_float=lambda text: float(f"{float(text):.8g}"))
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in rounded.items())
    (Path(__file__).parent / "routing.json").write_text(f"{{{text}}}\n")
