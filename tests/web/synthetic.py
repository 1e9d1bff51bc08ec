"""Records with known contents, written from docs/record.md: heads of every role, at any length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WORDS = [
    "def",
    " return",
    " self",
    ".",
    "(",
    ")",
    ":",
    "\n",
    "    ",
    " for",
    " in",
    " value",
    " key",
    " =",
    ",",
    " if",
    " not",
    " None",
]
KINDS = ["previous", "sink", "induction", "duplicate", "window", "diffuse", "retrieval", "block"]
CELLS = 128


def write_record(
    folder: Path,
    n: int,
    layers: int = 4,
    heads: int = 8,
    *,
    seed: int = 0,
    prompt: int | None = None,
    texts: list[str] | None = None,
) -> Path:
    """A record of ``n`` tokens whose edges are drawn head by head in a recognisable shape; it keeps no tensors."""
    generator = np.random.default_rng(seed)
    texts = texts or (["<s>"] + [WORDS[choice] for choice in generator.integers(0, len(WORDS), n - 1)])
    arrays: dict[str, np.ndarray] = {}
    for layer in range(layers):
        drawn = [draw(KINDS[(head + layer * 3) % len(KINDS)], n, generator) for head in range(heads)]
        pack_layer(arrays, layer, drawn, n)
        score_layer(arrays, layer, [KINDS[(head + layer * 3) % len(KINDS)] for head in range(heads)], n, generator)
    save(folder, n, arrays, texts, layers, heads, prompt=prompt)
    return folder


def draw(kind: str, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(rows, keys, weights)`` of a head's edges, sorted; the weights of a row add up to less than one."""
    per_row = {
        "previous": 2,
        "sink": 2,
        "induction": 3,
        "duplicate": 8,
        "window": 16,
        "diffuse": 30,
        "retrieval": 6,
        "block": 12,
    }[kind]
    rows = np.repeat(np.arange(n), per_row)
    slot = np.tile(np.arange(per_row), n)
    far = (generator.random(rows.shape) * (rows + 1)).astype(np.int64)
    keys = {
        "previous": np.maximum(rows - 1 - 3 * slot, 0),
        "sink": np.where(slot == 0, 0, rows),
        "induction": np.where(slot == 0, np.maximum(rows - n // 5, 0), np.where(slot == 1, 0, far)),
        "duplicate": np.maximum(rows - (slot + 1) * 97, 0),
        "window": np.maximum(rows - slot, 0),
        "diffuse": far,
        "retrieval": np.where(slot < 2, (n // 3) * (rows > n // 3), far),
        "block": np.minimum(rows // 64 * 64 + slot * 4, rows),
    }[kind]
    cell = np.unique(rows * n + keys)
    rows, keys = cell // n, cell % n
    weights = generator.random(len(rows)) ** 2 + 0.02
    weights /= np.maximum(np.bincount(rows, weights, n)[rows] * 1.1, 1)
    weights = weights.astype(np.float16)
    kept = weights.astype(np.float32) >= 0.01
    return rows[kept], keys[kept], weights[kept]


def pack_layer(arrays: dict[str, np.ndarray], layer: int, drawn: list, n: int) -> None:
    """Adds the edges of the layer and what follows from them: pooled maps, received mass, entropies."""
    counts = [np.bincount(rows, minlength=n) for rows, _, _ in drawn]
    arrays[f"{layer}/edge_rows"] = np.stack([np.concatenate([[0], np.cumsum(count)]) for count in counts]).astype(
        np.int32
    )
    arrays[f"{layer}/edge_starts"] = np.concatenate([[0], np.cumsum([len(rows) for rows, _, _ in drawn])]).astype(
        np.int64
    )
    arrays[f"{layer}/edge_keys"] = np.concatenate([keys for _, keys, _ in drawn]).astype(np.int32)
    arrays[f"{layer}/edge_weights"] = np.concatenate([weights for _, _, weights in drawn])
    arrays[f"{layer}/pooled"] = np.stack([pool(*edges, n) for edges in drawn]).astype(np.float16)
    seen_by = np.arange(n, 0, -1)
    arrays[f"{layer}/received"] = np.stack(
        [np.bincount(keys, weights, minlength=n) / seen_by for _, keys, weights in drawn]
    ).astype(np.float32)
    arrays[f"{layer}/entropy_rows"] = np.stack([entropy(rows, weights, n) for rows, _, weights in drawn]).astype(
        np.float32
    )


def pool(rows: np.ndarray, keys: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Mean weight of the visible pairs of each cell, the mass below the threshold spread evenly."""
    cells = min(CELLS, n)
    edges = np.arange(cells + 1) * n // cells
    mass = np.zeros((cells, cells))
    np.add.at(
        mass,
        (np.searchsorted(edges, rows, "right") - 1, np.searchsorted(edges, keys, "right") - 1),
        weights.astype(float),
    )
    pairs = np.add.reduceat(
        np.stack([np.clip(i + 1 - edges[:-1], 0, np.diff(edges)) for i in range(n)]), edges[:-1], axis=0
    )
    return np.where(pairs > 0, mass / np.maximum(pairs, 1) + 0.02 / n * (pairs > 0), 0)


def entropy(rows: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    weights = weights.astype(float)
    return np.bincount(rows, -weights * np.log(weights), minlength=n)


def score_layer(
    arrays: dict[str, np.ndarray], layer: int, kinds: list[str], n: int, generator: np.random.Generator
) -> None:
    """Adds each head's scores: high for the role that it was drawn for."""
    low = lambda: generator.random(len(kinds)) * 0.1  # noqa: E731
    of = lambda kind: low() + 0.7 * np.array([name == kind for name in kinds])  # noqa: E731
    arrays[f"{layer}/entropy"] = arrays[f"{layer}/entropy_rows"].mean(1)
    arrays[f"{layer}/distance"] = (generator.random(len(kinds)) * n / 4).astype(np.float32)
    arrays[f"{layer}/induction"] = of("induction").astype(np.float32)
    arrays[f"{layer}/previous_token"] = of("previous").astype(np.float32)
    arrays[f"{layer}/duplicate_token"] = of("duplicate").astype(np.float32)
    arrays[f"{layer}/sink"] = np.stack([of("sink"), low() / 9, low() / 9, low() / 9], 1).astype(np.float32)


def save(
    folder: Path,
    n: int,
    arrays: dict[str, np.ndarray],
    texts: list[str],
    layers: int,
    heads: int,
    *,
    prompt: int | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    head_dim: int = 32,
    rows: dict | None = None,
) -> None:
    """Writes the folder of docs/record.md."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "arrays.safetensors")
    if tensors is not None:
        save_file(tensors, folder / "tensors.safetensors")
    tokens = {"ids": list(range(n)), "texts": texts, "special": [index == 0 for index in range(n)]}
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    calls = [
        {
            "index": layer,
            "name": f"model.layers.{layer}.self_attn",
            "heads": heads,
            "kv_heads": heads,
            "head_dim": head_dim,
        }
        | {"causal": True, "window": None, "softcap": None, "scaling": head_dim**-0.5, "sinks": False}
        for layer in range(layers)
    ]
    (folder / "record.json").write_text(
        json.dumps(
            {
                "format": "regard-record",
                "version": 1,
                "model": {"name": "regard-tiny", "architecture": "LlamaForCausalLM", "parameters": 3738880},
                "versions": {"regard": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
                "command": "regard look --model tiny --file sample.py",
                "created": "2026-11-20T12:00:00Z",
                "tokens": n,
                "prompt_tokens": prompt or n,
                "rows": rows,
                "layers": calls,
                "cells": min(CELLS, n),
                "edge_threshold": 0.01,
                "kept": tensors is not None,
                "summary": summary(arrays, layers, heads),
            }
        ),
        encoding="utf-8",
    )


def summary(arrays: dict[str, np.ndarray], layers: int, heads: int) -> dict:
    """The ranked heads of each role, best first."""

    def ranked(name: str) -> list:
        score = {
            (layer, head): float(arrays[f"{layer}/{name}"][head].max())
            for layer in range(layers)
            for head in range(heads)
        }
        return [[*place, value] for place, value in sorted(score.items(), key=lambda item: -item[1]) if value >= 0.3]

    roles = {name: ranked(name) for name in ("induction", "previous_token", "duplicate_token", "sink")}
    received = np.mean([arrays[f"{layer}/received"].mean(0) for layer in range(layers)], 0)
    top = np.argsort(-received)[:8]
    return roles | {
        "retrieval": [[layers - 1, heads - 1, 0.44]],
        "sink_positions": [[0, 0.31]],
        "received": [[int(token), float(received[token])] for token in top],
    }


def write_exact_record(folder: Path, n: int, *, heads: int = 3, head_dim: int = 5, seed: int = 0) -> np.ndarray:
    """A causal record of one layer that keeps q, k and lse; returns the weights (heads, n, n) that it follows from."""
    generator = np.random.default_rng(seed)
    q, k = (generator.normal(size=(heads, n, head_dim)).astype(np.float32) * 2 for _ in range(2))
    logits = np.where(np.tri(n, dtype=bool), q @ k.transpose(0, 2, 1) * head_dim**-0.5, -np.inf)
    lse = np.log(np.exp(logits).sum(-1)).astype(np.float32)
    weights = np.exp(logits - lse[..., None])
    drawn = []
    for head in range(heads):
        rows, keys = np.nonzero(weights[head] >= 0.01)
        drawn.append((rows, keys, weights[head, rows, keys].astype(np.float16)))
    arrays: dict[str, np.ndarray] = {}
    pack_layer(arrays, 0, drawn, n)
    score_layer(arrays, 0, KINDS[:heads], n, generator)
    texts = ["<s>"] + [WORDS[choice] for choice in generator.integers(0, len(WORDS), n - 1)]
    save(folder, n, arrays, texts, 1, heads, tensors={"0/q": q, "0/k": k, "0/lse": lse}, head_dim=head_dim)
    return weights


def tell_more(folder: Path, k: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Adds the lengths of values, and what was expected next, to a record that has neither; returns these arrays."""
    generator = np.random.default_rng(seed)
    header, tokens = (json.loads((folder / f"{name}.json").read_text()) for name in ("record", "tokens"))
    n = header["tokens"]
    added = {
        f"{layer['index']}/value_norms": (generator.random((layer["kv_heads"], n)) * 9 + 0.5).astype(np.float32)
        for layer in header["layers"]
    }
    chances = np.sort(generator.random((n, k)), 1)[:, ::-1].astype(np.float32) / k
    added |= {"next/probabilities": chances, "next/log_probability": -generator.random(n).astype(np.float32) * 9}
    added["next/log_probability"][0] = np.nan
    added["next/ids"] = np.stack([generator.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    save_file(load_file(folder / "arrays.safetensors") | added, folder / "arrays.safetensors")
    tokens["vocabulary"] = {str(i): f"<b>{i}" for i in range(n)}
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    return added
