"""Making a record: one watched pass over a text with every probe of docs/record.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from regard._version import __version__
from regard.core.build import check_spec
from regard.core.errors import wrong
from regard.core.spec import parse
from regard.hosts.caught_weights import Caught
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.session import Choice, Layer, Session
from regard.hosts.softmax_call import AttentionMap, SoftmaxCall
from regard.networks import LM
from regard.probes.head_statistics import (
    Distance,
    DuplicateToken,
    Entropy,
    Estimate,
    Induction,
    Moments,
    PreviousToken,
    Retrieval,
    Sink,
)
from regard.probes.token_statistics import Edges, EntropyRows, Pooled, Received
from regard.records.chat import Messages, encode_chat, is_chat
from regard.records.format import FORMAT, VERSION, Record, check_folder
from regard.records.models import LMModel, TransformersModel
from regard.records.predictions import Logits, Predictions, predictions, texts
from regard.records.token_texts import Tokens, decode, encode, unnamed
from regard.records.watching import Looking, LookingAtLM, looking

__all__ = ["Record", "check_folder", "record"]

KEPT_BYTES = 256 << 20
"""What ``keep=None`` keeps at most."""
CELLS, EDGE_THRESHOLD = 128, 0.01
RANKED_HEADS, RANKED_TOKENS = 32, 16
SCORES = ("induction", "previous_token", "duplicate_token", "retrieval")


def record(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[int] | Tensor | Messages,
    *,
    layers: Iterable[int] | None = None,
    rows: int | None = None,
    seed: int = 0,
    generate: int = 0,
    keep: bool | None = None,
    predict: int = 5,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    command: str | None = None,
    name: str | None = None,
) -> Record:
    """Lets the model read ``text``, and go on for ``generate`` tokens, and records what it attends to.

    Of layers where A is of either sign, or has rows above one, everything is that of ``|A_ij| / Σ_j |A_ij|``, and the
    header says so (``shares``). The tokens that it generates are recorded by a second pass over the whole text, which
    has the same A.

    Args:
        model: any Transformers model of text that `hosts.watch.watch` can watch, not an encoder-decoder; or a model of
            ours, whose layers may be of any mechanism. tokenizer: its tokenizer; None where ``text`` is token ids.
        text: the document, its token ids, or messages ``{"role": …, "content": …}``, which the tokenizer's chat
            template puts together. layers, rows, seed: as for `hosts.watch.watch`.
        keep: keep what A follows from, so that every region can be recomputed; None: up to `KEPT_BYTES`.
        predict: how many of the likeliest next tokens to keep after each token, where the model is a causal language
            model whose logits are known; 0 for none.
        progress: called with what is being done, how many layers are, and of how many (0: not known).
        command, name: noted in the record.

    Raises:
        ValueError: no tokens, more than the model has positions for, or an encoder-decoder model.
    """
    subject = LMModel(model) if isinstance(model, LM) else TransformersModel(model)
    tokens = read(tokenizer, text)
    ids = tokens.ids
    if subject.longest is not None and len(ids) + generate > subject.longest:
        most = f"at most {subject.longest:,}, the positions of {subject.architecture}"
        raise wrong("text", f"{len(ids) + generate:,} tokens", most)
    prompt = len(ids)
    if generate:
        progress(f"generating {generate} tokens", 0, 0)
        ids = subject.continued(ids, generate)
        chat = bool(tokens.turns)
        tokens += decode(tokenizer, ids, prompt) if tokenizer is not None else unnamed(ids[prompt:])
        tokens.turns += [("assistant", prompt, len(ids))] if chat else []
    n = len(ids)
    probes = [
        Received(), Entropy(), EntropyRows(), Sink(), Distance(), Induction(), PreviousToken(), DuplicateToken(),
        Retrieval(), Pooled(n, min(CELLS, n)), Edges(EDGE_THRESHOLD),
    ]  # fmt: skip
    budget = {True: math.inf, False: 0, None: KEPT_BYTES}[keep]
    about = (probes, Choice(layers, rows, seed), budget, reporter(subject, progress), True)
    with looking(model, *about) as session:
        logits = subject.run(ids, predict > 0)
    made = gather(session, subject, tokens, prompt, rows, seed, command, name)
    return made if logits is None or not causal(session) else predicting(made, logits, tokenizer, predict, subject)


def causal(session: Session) -> bool:
    """Whether every layer lets a token see those before it alone, so that what is said of the next is a prediction."""
    return all(layer.causal for layer in session.layers)


def predicting(
    made: Record, logits: Logits, tokenizer: Any, count: int, subject: LMModel | TransformersModel
) -> Record:
    """The record with what the model expects after each token."""
    found = predictions(logits, made.tokens["ids"], count, subject.vocabulary)
    made.arrays |= {f"next/{field.name}": getattr(found, field.name) for field in fields(Predictions)}
    made.tokens["vocabulary"] = texts(tokenizer, found.ids.unique().tolist())
    return made


def read(tokenizer: Any, text: Any) -> Tokens:
    """The tokens of the document."""
    if isinstance(text, str) or is_chat(text):
        if tokenizer is None:
            raise wrong("tokenizer", "None", "a tokenizer, or token ids for text")
        found = encode(tokenizer, text) if isinstance(text, str) else encode_chat(tokenizer, text)
    else:
        ids = [int(i) for i in torch.as_tensor(text).flatten()]
        found = decode(tokenizer, ids) if tokenizer is not None else unnamed(ids)
    if not len(found):
        raise wrong("text", "no tokens", "at least one")
    return found


def reporter(subject: LMModel | TransformersModel, progress: Callable[[str, int, int], None]) -> Callable[[int], None]:
    """What to call after each layer."""
    return lambda layer: progress("looking at layers", layer + 1, subject.depth or 0)


def gather(
    session: Looking | LookingAtLM,
    subject: LMModel | TransformersModel,
    tokens: Tokens,
    prompt: int,
    rows: int | None,
    seed: int,
    command: str | None,
    name: str | None,
) -> Record:
    """The record of a finished session."""
    watched = [layer for layer in session.layers if session.choice.takes(layer.index)]
    sampled = rows is not None and rows < len(tokens)
    tensors = kept_tensors(session, watched)
    arrays: dict[str, Tensor] = {}
    results = {probe.name: probe.result() for probe in session.probes if not isinstance(probe, Edges)}
    for layer in watched:
        arrays |= {
            f"{layer.index}/{key}": value.cpu()
            for key, value in layer_arrays(session, results, layer.index, len(tokens), sampled).items()
        }
        if layer.index in session.value_norms:
            arrays[f"{layer.index}/value_norms"] = session.value_norms[layer.index].cpu()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": about_model(subject, name),
        "versions": versions(),
        "command": command,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tokens": len(tokens),
        "prompt_tokens": prompt,
        "rows": {"count": rows, "seed": seed} if sampled else None,
        "layers": [about_layer(layer) for layer in watched],
        "cells": min(CELLS, len(tokens)),
        "edge_threshold": EDGE_THRESHOLD,
        "kept": tensors is not None,
        "summary": summary(session),
    }
    return Record(header, tokens.document, arrays, tensors)


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


def about_model(subject: LMModel | TransformersModel, name: str | None) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    about = {"name": name or subject.name, "architecture": subject.architecture, "parameters": parameters}
    return {**about, "layers": subject.depth}


def versions() -> dict[str, str]:
    return {"regard": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def about_layer(layer: Layer) -> dict[str, Any]:
    return {name: value for name, value in asdict(layer).items() if name != "cross"}


def kept_tensors(session: Session, layers: Sequence[Layer]) -> dict[str, Tensor] | None:
    """What A follows from in every layer; None if it is not all kept, or does not say all of what A is."""
    if any(layer.index not in session.maps for layer in layers):
        return None
    found = {}
    for layer in layers:
        source = session.maps[layer.index]
        if isinstance(source, Caught):
            return None
        if isinstance(source, AttentionMap) and not describes(layer, source):
            return None
        if isinstance(source, ImplicitAttention) and not named(layer.mechanism):
            return None
        found |= {f"{layer.index}/{name}": tensor.float().cpu() for name, tensor in basis(source).items()}
    return found


def basis(source: AttentionMap | ImplicitAttention) -> dict[str, Tensor]:
    """What A follows from, of the one sequence: q, k and the log-sum-exp, or signals and the mechanism's parameters."""
    if isinstance(source, AttentionMap):
        return {"q": source.call.q[0], "k": source.call.k[0], "lse": source.lse[0]}
    found = {"q": source.q[0], "k": source.k[0]} | ({} if source.v is None else {"v": source.v[0]})
    found |= {f"signal.{name}": signal[0] for name, signal in source.signals.items()}
    return found | {f"mechanism.{name}": tensor for name, tensor in source.mechanism.state_dict().items()}


def named(mechanism: str) -> bool:
    """Whether a text names a mechanism of the atlas, and not one that was given as an object."""
    try:
        check_spec(parse(mechanism))
    except (LookupError, TypeError, ValueError):
        return False
    return True


def describes(layer: Layer, source: AttentionMap) -> bool:
    """Whether ``causal`` and ``window`` say what may be seen, nothing is added to the scores, and no mass was moved."""
    call = source.call
    if call.bias is not None or type(source) is not AttentionMap:
        return False
    said = SoftmaxCall(call.q, call.k, call.scaling, layer.causal, layer.window if layer.causal else None)
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
    found["sink_positions"] = ranked_tokens(mass)
    found["received"] = ranked_tokens(torch.cat([weighed(m) for m in moments]).mean(0))
    return found


def weighed(seen: Moments) -> Tensor:
    """``(heads, n)``: mean weight that a token receives, times ``5 s / (4 s + 1)`` if a share s of queries sees it.

    That is the mean as if a quarter of all queries had seen the token besides and given it nothing; where all see it,
    the mean. The mean alone favours the end of a text, whose tokens are seen by few queries, most of them neighbours.
    """
    share = seen.count[0] / seen.count[0].amax(-1, keepdim=True)
    return seen.estimate().value[0].nan_to_num(0) * 5 * share / (4 * share + 1)


def ranked_heads(scores: Mapping[int, Tensor]) -> list[list[float]]:
    """``[layer, head, score]``, best first; heads without a score are left out."""
    every = [[layer, head, float(score)] for layer, row in scores.items() for head, score in enumerate(row)]
    return sorted((entry for entry in every if not math.isnan(entry[2])), key=lambda entry: -entry[2])[:RANKED_HEADS]


def ranked_tokens(scores: Tensor) -> list[list[float]]:
    """``[token, score]``, best first."""
    best = scores.topk(min(RANKED_TOKENS, len(scores)))
    return [[int(i), float(score)] for score, i in zip(best.values, best.indices, strict=True)]
