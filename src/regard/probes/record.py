"""Making a record: one watched pass over a text with every probe of docs/record.md."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.hosts.call import Call, Map
from regard.hosts.watch import Layer, Session, watch
from regard.probes.folder import FORMAT, VERSION, Record, check_folder
from regard.probes.means import Distance, DuplicateToken, Entropy, Estimate, Induction, PreviousToken, Retrieval, Sink
from regard.probes.texts import decode, encode
from regard.probes.tokens import Edges, EntropyRows, Pooled, Received

__all__ = ["Record", "check_folder", "record"]

KEPT_BYTES = 256 << 20
"""What ``keep=None`` keeps at most."""
CELLS, EDGE_THRESHOLD = 128, 0.01
RANKED_HEADS, RANKED_TOKENS = 32, 16
SEEN_OFTEN = 16
"""Queries that must see a token before the summary ranks it: the last tokens of a text receive much from few."""
SCORES = ("induction", "previous_token", "duplicate_token", "retrieval")


def record(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[int] | Tensor,
    *,
    layers: Iterable[int] | None = None,
    rows: int | None = None,
    seed: int = 0,
    generate: int = 0,
    keep: bool | None = None,
    progress: Callable[[str], None] | None = None,
    command: str | None = None,
    name: str | None = None,
) -> Record:
    """Lets the model read ``text``, and go on for ``generate`` tokens, and records what it attends to.

    The tokens that it generates are recorded by a second pass over the whole text, which has the same A.

    Args:
        model: any Transformers model of text that calls the attention interface; not an encoder-decoder.
        tokenizer: its tokenizer; None where ``text`` is token ids.
        text: the document, or its token ids. layers, rows, seed: as for `hosts.watch.watch`.
        keep: keep q, k and the log-sum-exp, so that every region can be recomputed; None: up to `KEPT_BYTES`.
        progress: called with a line on what is being done. command, name: noted in the record.

    Raises:
        ValueError: no tokens, more than the model has positions for, or an encoder-decoder model.
    """
    if model.config.is_encoder_decoder:
        raise wrong("model", f"{type(model).__name__}, an encoder-decoder", "a decoder or an encoder; use regard.watch")
    ids, texts, special = read(tokenizer, text)
    refuse_length(model, len(ids) + generate)
    prompt = len(ids)
    if generate:
        if progress is not None:
            progress(f"generating {generate} tokens …")
        ids = continued(model, ids, generate)
        more = decode(tokenizer, ids, prompt) if tokenizer is not None else unnamed(ids[prompt:])
        texts, special = texts + more[0], special + more[1]
    n = len(ids)
    probes = [
        Received(), Entropy(), EntropyRows(), Sink(), Distance(), Induction(), PreviousToken(), DuplicateToken(),
        Retrieval(), Pooled(n, min(CELLS, n)), Edges(EDGE_THRESHOLD),
    ]  # fmt: skip
    budget = {True: math.inf, False: 0, None: KEPT_BYTES}[keep]
    with watch(
        model, probes, layers=layers, rows=rows, seed=seed, keep=budget, seen=reporter(model, progress)
    ) as session:
        run(model, ids)
    return gather(session, ids, texts, special, prompt, rows, seed, command, name)


def read(tokenizer: Any, text: str | Sequence[int] | Tensor) -> tuple[list[int], list[str], list[bool]]:
    """``(ids, texts, special)`` of the document."""
    if isinstance(text, str):
        if tokenizer is None:
            raise wrong("tokenizer", "None", "a tokenizer, or token ids for text")
        found = encode(tokenizer, text)
    else:
        ids = [int(i) for i in torch.as_tensor(text).flatten()]
        found = (ids, *(decode(tokenizer, ids) if tokenizer is not None else unnamed(ids)))
    if not found[0]:
        raise wrong("text", "no tokens", "at least one")
    return found


def unnamed(ids: Sequence[int]) -> tuple[list[str], list[bool]]:
    """Texts of tokens without a tokenizer."""
    return [f"⟨{i}⟩" for i in ids], [False] * len(ids)


def refuse_length(model: Any, n: int) -> None:
    """Raises a ValueError where the text is longer than the model can place."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and n > most:
        raise wrong("text", f"{n:,} tokens", f"at most {most:,}, the positions of {type(model).__name__}")


def reporter(model: Any, progress: Callable[[str], None] | None) -> Callable[[int], None] | None:
    """What to call after each layer."""
    if progress is None:
        return None
    total = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return lambda layer: progress(f"layer {layer + 1}" + (f" of {total}" if total else ""))


def continued(model: Any, ids: Sequence[int], more: int) -> list[int]:
    """The ids with up to ``more`` greedily generated ones."""
    if not model.can_generate():
        raise wrong("generate", str(more), f"0: {type(model).__name__} does not generate")
    prompt = torch.tensor([list(ids)], device=model.device)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=more, do_sample=False)
    return out[0].tolist()


@torch.no_grad()
def run(model: Any, ids: Sequence[int]) -> None:
    """One pass that computes no more than it must."""
    wanted = {"use_cache": False, "logits_to_keep": 1}
    accepted = inspect.signature(model.forward).parameters
    model(
        input_ids=torch.tensor([list(ids)], device=model.device), **{k: v for k, v in wanted.items() if k in accepted}
    )


def gather(
    session: Session,
    ids: list[int],
    texts: list[str],
    special: list[bool],
    prompt: int,
    rows: int | None,
    seed: int,
    command: str | None,
    name: str | None,
) -> Record:
    """The record of a finished session."""
    watched = [layer for layer in session.layers if session.choice.takes(layer.index)]
    sampled = rows is not None and rows < len(ids)
    tensors = kept_tensors(session, watched)
    arrays: dict[str, Tensor] = {}
    results = {probe.name: probe.result() for probe in session.probes if not isinstance(probe, Edges)}
    for layer in watched:
        arrays |= {
            f"{layer.index}/{key}": value.cpu()
            for key, value in layer_arrays(session, results, layer.index, len(ids), sampled).items()
        }
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": about_model(session.model, name),
        "versions": versions(),
        "command": command,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tokens": len(ids),
        "prompt_tokens": prompt,
        "rows": {"count": rows, "seed": seed} if sampled else None,
        "layers": [about_layer(layer) for layer in watched],
        "cells": min(CELLS, len(ids)),
        "edge_threshold": EDGE_THRESHOLD,
        "kept": tensors is not None,
        "summary": summary(session),
    }
    return Record(header, {"ids": ids, "texts": texts, "special": special}, arrays, tensors)


def layer_arrays(session: Session, results: Mapping[str, Any], layer: int, n: int, sampled: bool) -> dict[str, Tensor]:
    """The arrays of one layer by their names."""
    found: dict[str, Tensor] = {}
    for probe in session.probes:
        if isinstance(probe, Edges):
            links = probe.links(layer, n)
            found |= {"edge_rows": links.rows, "edge_starts": links.starts}
            found |= {"edge_keys": links.keys, "edge_weights": links.weights.half()}
            continue
        value = results[probe.name][layer]
        if isinstance(value, Estimate):
            one = isinstance(probe, Received)
            found[probe.name] = (value.value[0] if one else value.value).float()
            if sampled:
                found[f"{probe.name}_error"] = (value.error[0] if one else value.error).float()
        elif isinstance(probe, EntropyRows):
            found[probe.name] = nn.functional.pad(value[0], (0, n - value.shape[2]), value=math.nan)
        else:
            found[probe.name] = value[0].half()
    return found


def about_model(model: Any, name: str | None) -> dict[str, Any]:
    return {
        "name": name or model.config.name_or_path or type(model).__name__,
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def versions() -> dict[str, str]:
    import regard

    return {"regard": regard.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def about_layer(layer: Layer) -> dict[str, Any]:
    names = ("index", "name", "heads", "kv_heads", "head_dim", "causal", "window", "softcap", "scaling", "sinks")
    return {name: getattr(layer, name) for name in names}


def kept_tensors(session: Session, layers: Sequence[Layer]) -> dict[str, Tensor] | None:
    """q, k and lse of every layer; None if they are not all kept, or do not say all of what A is."""
    if any(layer.index not in session.maps for layer in layers):
        return None
    if not all(describes(layer, session.maps[layer.index]) for layer in layers):
        return None
    found = {}
    for layer in layers:
        source = session.maps[layer.index]
        for name, tensor in {"q": source.call.q, "k": source.call.k, "lse": source.lse}.items():
            found[f"{layer.index}/{name}"] = tensor[0].float().cpu()
    return found


def describes(layer: Layer, source: Map) -> bool:
    """Whether ``causal`` and ``window`` say what may be seen, and nothing is added to the scores."""
    call = source.call
    if call.bias is not None:
        return False
    said = Call(call.q, call.k, call.scaling, layer.causal, layer.window if layer.causal else None)
    for rows in call.blocks():
        true, told = (every.visible(rows, 0, call.m) for every in (call, said))
        everything = torch.ones(1, 1, len(rows), call.m, dtype=torch.bool, device=rows.device)
        if not torch.equal(*((everything if seen is None else seen).expand_as(everything) for seen in (true, told))):
            return False
    return True


def summary(session: Session) -> dict[str, Any]:
    """The ranked heads and tokens of record.json."""
    scores: dict[str, Mapping[int, Estimate]] = {name: session[name] for name in SCORES}
    found: dict[str, Any] = {name: ranked_heads({i: e.value for i, e in scores[name].items()}) for name in SCORES}
    found["sink"] = ranked_heads({i: e.value.sum(1) for i, e in session["sink"].items()})
    received = next(probe for probe in session.probes if isinstance(probe, Received))
    moments = [received.moments(layer) for layer in sorted(received.layers)]
    mass = torch.cat([m.total[0] / m.total[0].sum(1, keepdim=True) for m in moments]).mean(0)
    mean = torch.cat([m.estimate().value[0].nan_to_num(0) for m in moments]).mean(0)
    often = torch.stack([m.count[0, 0] for m in moments]).amax(0) >= min(SEEN_OFTEN, int(moments[0].count.max()))
    found["sink_positions"] = ranked_tokens(mass)
    found["received"] = ranked_tokens(mean * often)
    return found


def ranked_heads(scores: Mapping[int, Tensor]) -> list[list[float]]:
    """``[layer, head, score]``, best first; heads without a score are left out."""
    every = [[layer, head, float(score)] for layer, row in scores.items() for head, score in enumerate(row)]
    return sorted((entry for entry in every if not math.isnan(entry[2])), key=lambda entry: -entry[2])[:RANKED_HEADS]


def ranked_tokens(scores: Tensor) -> list[list[float]]:
    """``[token, score]``, best first."""
    best = scores.topk(min(RANKED_TOKENS, len(scores)))
    return [[int(i), float(score)] for score, i in zip(best.values, best.indices, strict=True)]
