"""Writes routes.json: routes, signals, paths and sinks in small models, as their authors' code computes them.

python tests/reference/routes.py TRANSPARENCY SIGNALS REUSE SINKS        (checkouts of

facebookresearch/llm-transparency-tool, gaabrielfranco/sparse-attention-decomposition, jmerullo/circuit_reuse and
JeffreyWong20/Secondary-Attention-Sinks; pandas)
"""

import ast
import contextlib
import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import einops
import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, DIM, N = 2, 4, 9


def numbers(x):
    return json.loads(json.dumps(x.detach().tolist()), parse_float=lambda text: float(f"{float(text):.7g}"))


def functions(text, names, code):
    """Some of a file's functions, without their decorators and annotations."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list, node.returns = [], None
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
            exec(compile(ast.Module([node], []), "authors", "exec"), code)
    return code


def small_model():
    """A Llama of two blocks of two heads, with sharp maps; its weights are rounded as they are written down."""
    torch.manual_seed(3)
    sizes = {"hidden_size": HEADS * DIM, "num_hidden_layers": 3, "num_attention_heads": HEADS}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=13, intermediate_size=5, initializer_range=0.7, **sizes))
    model = model.double().eval()
    weights = {name: numbers(value) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in weights.items()})
    return model, weights


def contributions(checkout):
    """`get_attention_contributions` and `get_decomposed_mlp_contributions` of drawn states."""
    names = ("get_contributions", "get_contributions_with_one_off_part", "get_attention_contributions")
    text = (checkout / "llm_transparency_tool/routes/contributions.py").read_text()
    code = functions(text, (*names, "get_decomposed_mlp_contributions"), {"torch": torch, "einops": einops})
    draw = torch.Generator().manual_seed(0)
    before, heads = torch.randn(1, 1, 5, generator=draw), torch.randn(1, 1, 3, 2, 5, generator=draw)
    middle, neurons = before + heads.sum((2, 3)), torch.randn(7, 5, generator=draw)
    attn, resid = code["get_attention_contributions"](before, middle, heads)
    shares, rest = code["get_decomposed_mlp_contributions"](middle[0, 0], middle[0, 0] + neurons.sum(0), neurons)
    given = {"before": before[0, 0], "heads": heads[0, 0], "middle": middle[0, 0], "neurons": neurons}
    made = {"attn": attn[0, 0], "resid": resid[0, 0], "shares": shares, "rest": torch.tensor(rest)}
    return {name: numbers(value) for name, value in (given | made).items()}


def turned(model, i, j):
    """R_iᵀ R_j, which stands between queries and keys."""
    cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.tensor([[i, j]]))
    one = torch.eye(DIM, dtype=torch.float64)
    half = torch.cat([-one[DIM // 2 :], one[: DIM // 2]])
    both = [torch.diag(c) + torch.diag(s) @ half for c, s in zip(cos[0].double(), sin[0].double(), strict=True)]
    return both[0].T @ both[1]


@torch.no_grad()
def signals(checkout, model, ids):
    """`get_contrib_src_dest` of every pair that fires, rotary positions being folded into the queries' matrices."""
    text = (checkout / "utils.py").read_text()
    text = text.replace("k = 64", f"k = {DIM}").replace("(layer, 12)", f"(layer, {HEADS})")
    text = text.replace("range(12)", f"range({HEADS})").replace("torch.ones(1)", "torch.ones(1, dtype=torch.float64)")
    names = ("get_omega_decomposition_all_ahs", "get_components_used", "get_contrib_src_dest")
    code = functions(text, names, {"torch": torch, "np": np, "pd": pd, "tqdm": lambda x: x})
    layers, z = model.model.layers, {}
    hooks = [
        block.self_attn.o_proj.register_forward_pre_hook(lambda m, i, at=at: z.__setitem__(at, i[0]))
        for at, block in enumerate(layers)
    ]
    model.set_attn_implementation("eager")
    out = model(ids[None], output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    found = []
    for layer in range(1, len(layers)):
        for head, i, j in (out.attentions[layer][0] > 0.5).nonzero().tolist():
            names = ("q_proj", "k_proj")
            matrices = {
                name: torch.stack(
                    [
                        getattr(block.self_attn, name).weight.view(HEADS, DIM, -1).mT
                        * block.input_layernorm.weight[:, None]
                        for block in layers
                    ]
                )
                for name in names
            }
            fake = SimpleNamespace(cfg=SimpleNamespace(n_layers=len(layers), n_heads=HEADS), W_K=matrices["k_proj"])
            fake.W_Q = matrices["q_proj"] @ turned(model, i, j)
            fake.b_Q = fake.b_K = torch.zeros(len(layers), HEADS, DIM, dtype=torch.float64)
            fake.W_O = torch.stack([b.self_attn.o_proj.weight.T.reshape(HEADS, DIM, -1) for b in layers])
            cache, epsilon = {}, model.config.rms_norm_eps
            for at, state in enumerate(out.hidden_states[: len(layers)]):
                scale = (state.square().mean(-1, keepdim=True) + epsilon).sqrt()
                cache[f"blocks.{at}.ln1.hook_normalized"], cache[f"blocks.{at}.ln1.hook_scale"] = state / scale, scale
                cache[f"blocks.{at}.attn.hook_pattern"] = out.attentions[at]
                cache[f"blocks.{at}.attn.hook_z"] = z[at].unflatten(-1, (HEADS, DIM))
            x, y = (cache[f"blocks.{layer}.ln1.hook_normalized"][0, at] for at in (i, j))
            score = x @ fake.W_Q[layer, head] @ fake.W_K[layer, head].T @ y
            cache[f"blocks.{layer}.attn.hook_attn_scores"] = score.expand(1, HEADS, N, N)
            with contextlib.redirect_stdout(io.StringIO()):
                u, s, vt, _ = code["get_omega_decomposition_all_ahs"](fake)
                told = code["get_contrib_src_dest"](fake, 0, layer, head, j, i, cache, u, s, vt, 0.5, 0.99)
            if told != -1:
                source, to, used = told
                found.append({"pair": [layer, head, i, j], "key": source.tolist(), "query": to.tolist(), "used": used})
    return found


class Hooked:
    """What the authors' path patching asks of a model, by PyTorch's hooks in a Llama."""

    def __init__(self, model):
        self.model, self.handles = model, []
        self.cfg = SimpleNamespace(n_layers=len(model.model.layers), n_heads=HEADS)
        attention = [
            SimpleNamespace(**{f"hook_{name}": self.point(layer, name) for name in "qkvz"})
            for layer in range(self.cfg.n_layers)
        ]
        networks = [self.point(layer, "mlp_out") for layer in range(self.cfg.n_layers)]
        self.blocks = [SimpleNamespace(attn=a, hook_mlp_out=m) for a, m in zip(attention, networks, strict=True)]

    def point(self, layer, name):
        return SimpleNamespace(add_hook=lambda hook: self.add_hook(f"{layer} {name}", hook))

    def add_hook(self, where, hook):
        layer, name = where.split(" ")
        block, at = self.model.model.layers[int(layer)], SimpleNamespace(name=where)
        if name == "mlp_out":
            self.handles.append(block.mlp.register_forward_hook(lambda m, i, o: hook(o, hook=at)))
            return

        def headwise(x):
            return hook(x.clone().unflatten(-1, (HEADS, DIM)), hook=at).flatten(-2)

        if name == "z":
            module = block.self_attn.o_proj
            self.handles.append(module.register_forward_pre_hook(lambda m, i: (headwise(i[0]),)))
        else:
            module = getattr(block.self_attn, f"{name}_proj")
            self.handles.append(module.register_forward_hook(lambda m, i, o: headwise(o)))

    def reset_hooks(self):
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def run_with_cache(self, ids):
        cache, kept = {}, self.handles
        self.handles = []
        for layer in range(self.cfg.n_layers):
            for name in ("q", "k", "v", "z", "mlp_out"):
                self.add_hook(f"{layer} {name}", partial(keep, cache))
        logits = self.model(ids).logits
        self.reset_hooks()
        self.handles = kept
        return logits, cache

    def run_with_hooks(self, ids, fwd_hooks, return_type):
        for name, hook in fwd_hooks:
            self.add_hook(name, hook)
        logits = self.model(ids).logits
        self.reset_hooks()
        return logits


def keep(cache, x, hook):
    cache[hook.name] = x.detach().clone()
    return x


@torch.no_grad()
def paths(checkout, model, base, donor):
    """`path_patching` into queries, keys and values of the last block's heads, at two positions."""
    code = {"partial": partial, "torch": torch, "track": lambda x: x}
    code["utils"] = SimpleNamespace(get_act_name=lambda name, layer, kind: f"{layer} {name}")
    names = ("logits_to_ave_logit_diff", "patch_head_vector_at_pos", "cache_activation_hook", "path_patching")
    functions((checkout / "patching_utils.py").read_text(), (*names, "patch_full_residual_component"), code)
    hooked, found = Hooked(model), []
    for into in "qkv":
        for slot, receivers in ((-1, [(2, 0)]), (5, [(2, 1)]), (-1, [(2, 0), (2, 1)])):
            with contextlib.redirect_stdout(io.StringIO()):
                told = code["path_patching"](
                    hooked, receivers, base[None], donor[None], torch.tensor([[3, 8]]), into, slot
                )
            found.append({"into": into, "slot": slot, "receivers": receivers, "effects": told[:2].tolist()})
    return found


def sinks(checkout):
    """`hidden_state_norm_detection` and what `prefill_steering_meansure` does, of drawn states."""
    text = (checkout / "src/hidden_state_base.py").read_text()
    names = ("hidden_state_norm_detection", "sink_labeling_machine", "prefill_steering_meansure")
    code = {"torch": torch, "logger": SimpleNamespace(info=lambda text: None)}
    functions(text.replace("List[int]", "list").replace("List", "list"), names, code)
    draw = torch.Generator().manual_seed(1)
    layers, n, channels = 24, 11, 7
    states = torch.randn(layers + 1, n, channels, generator=draw, dtype=torch.float64)
    states[3:23, 0] *= 40
    for token, first, last in ((4, 5, 12), (7, 8, 11), (9, 3, 23)):
        noise = 0.1 * torch.randn(last - first, channels, generator=draw, dtype=torch.float64)
        states[first:last, token] = (token % 3 - 1.5) * states[first:last, 0] + noise * 40
    kept = [state[None].double() for state in json_round(states)]
    ids = {"input_ids": torch.arange(n)[None]}
    found = code["hidden_state_norm_detection"](kept, [0], ids)
    labelled, _ = code["sink_labeling_machine"](found, layers)
    mlp = SimpleNamespace(**{name: torch.nn.Identity() for name in ("up_proj", "gate_proj", "act_fn", "down_proj")})
    x = states[8].abs().sqrt()
    bos = (x[7] ** 2).float().double()
    torch.save(bos, kept_at := Path(tempfile.mkdtemp()) / "bos.pt")
    model = SimpleNamespace(device="cpu", model=SimpleNamespace(layers=[SimpleNamespace(mlp=mlp)]))
    x[9] = (2.5 * x[7].square() + 0.02).sqrt()
    x[1] = x[7]
    with contextlib.redirect_stdout(io.StringIO()):
        code["prefill_steering_meansure"](model, kept_at, 0, 3.0)
        scaled = mlp.forward(x[None])[0]
    return {
        "states": numbers(torch.cat(kept)),
        "found": {str(token): about for token, about in labelled.items()},
        "direction": numbers(bos),
        "given": numbers(x.square()),
        "scaled": numbers(scaled),
    }


def json_round(x):
    return torch.tensor(numbers(x), dtype=torch.float64)


if __name__ == "__main__":
    transparency, decomposition, reuse, secondary = map(Path, sys.argv[1:])
    model, weights = small_model()
    draw = torch.Generator().manual_seed(7)
    base, donor = (torch.randint(0, 13, (N,), generator=draw) for _ in range(2))
    found = {"weights": weights, "base": base.tolist(), "donor": donor.tolist()}
    found |= {"contributions": contributions(transparency), "sinks": sinks(secondary)}
    found["paths"] = paths(reuse, model, base, donor)
    found["signals"] = signals(decomposition, model, base)
    (Path(__file__).parent / "routes.json").write_text(json.dumps(found) + "\n")
