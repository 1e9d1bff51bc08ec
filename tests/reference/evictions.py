"""Writes evictions.json: which tokens kvpress keeps of a prompt, by layer and kv head.

python tests/reference/evictions.py FOLDER        (kvpress 0.5.5 unpacked there, Transformers 5.24, PyTorch 2.13)

Its presses judge what the model computed; its hooks, which are made for older versions of Transformers, are not used.
"""

import importlib
import json
import sys
import types
from pathlib import Path

import torch

from regard.hosts import small
from regard.laws.policy import text
from regard.laws.small import llama

for name in ("kvpress", "kvpress.presses"):  # whose own imports want more than the presses do
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [f"{sys.argv[1]}/{name.replace('.', '/')}"]


def press(file, name, **about):
    """One of kvpress's presses."""
    return getattr(importlib.import_module(f"kvpress.presses.{file}_press"), name)(**about)


TEXT = (
    "def area(width, height):\n    return width * height\n\n\n"
    "class Square:\n    def __init__(self, side):\n        self.side = side\n"
)


def kept(model, ids, made):
    """The places that a press keeps of each layer and kv head."""
    caught, found = {}, []
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: caught.update({module.layer_idx: kwargs}), with_kwargs=True
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    for hook in hooks:
        hook.remove()
    for layer in model.model.layers:
        module, given = layer.self_attn, caught[layer.self_attn.layer_idx]
        keys, values = (getattr(cache.layers[module.layer_idx], part) for part in ("keys", "values"))
        places = torch.arange(keys.shape[2]).view(1, 1, -1, 1).expand_as(values).to(values)
        about = (module, given["hidden_states"], keys, places, None, given)
        with torch.no_grad():
            _, left = made.compress(*about)
        if getattr(module, "masked_key_indices", None) is None:
            found.append([sorted(head[:, 0].long().tolist()) for head in left[0]])
            continue
        _, heads, gone = module.masked_key_indices
        module.masked_key_indices = None
        every = [sorted(set(range(keys.shape[2])) - set(gone[heads == h].tolist())) for h in range(keys.shape[1])]
        found.append(every)
    return found


def main():
    tiny, tokenizer = small.load("tiny")
    once = list(dict.fromkeys(tokenizer(TEXT).input_ids))  # keys of one token are as long as each other: they tie
    subjects = {"tiny": (tiny, torch.tensor([once])), "llama": (llama(2), text(1))}
    found = []
    for name, (model, ids) in subjects.items():
        ratio = 0.6
        window = {"compression_ratio": ratio, "window_size": 4, "kernel_size": 5}
        made = {
            "knorm": press("knorm", "KnormPress", compression_ratio=ratio),
            "streaming": press("streaming_llm", "StreamingLLMPress", compression_ratio=ratio),
            "tova": press("tova", "TOVAPress", compression_ratio=ratio),
            "snapkv(window=4)": press("snapkv", "SnapKVPress", **window),
            "adakv(snapkv(window=4))": press("adakv", "AdaKVPress", press=press("snapkv", "SnapKVPress", **window)),
            "keydiff": press("keydiff", "KeyDiffPress", compression_ratio=ratio),
        }
        for policy, one in made.items():
            rows = kept(model, ids, one)
            budget = sum(len(head) for head in rows[0]) // len(rows[0])
            found.append({"model": name, "ids": ids[0].tolist(), "policy": policy, "budget": budget, "kept": rows})
    Path(__file__).with_suffix(".json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
