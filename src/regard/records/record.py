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
from regard.records.two_texts import EncoderDecoder, WithinText
from regard.records.watching import Looking, LookingAtLM, looking

__all__ = ["Record", "check_folder", "record"]

Subject = LMModel | TransformersModel | EncoderDecoder
KEPT_BYTES = 256 << 20
"""What ``keep=None`` keeps at most."""
CELLS, EDGE_THRESHOLD = 128, 0.01
RANKED_HEADS, RANKED_TOKENS = 32, 16
SCORES = ("induction", "previous_token", "duplicate_token", "retrieval")


def record(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[int] | Tensor | Messages,
    target: str | Sequence[int] | None = None,
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
        model: any Transformers model of text that `hosts.watch.watch` can watch; or a model of ours, whose layers may
            be of any mechanism. tokenizer: its tokenizer; None where ``text`` is token ids.
        text: the document, its token ids, or messages ``{"role": …, "content": …}``, which the tokenizer's chat
            template puts together. target: of an encoder-decoder, whose encoder reads ``text``, what its decoder wrote;
            what it generates is added. layers, rows, seed: as for `hosts.watch.watch`.
        keep: keep what A follows from, so that every region can be recomputed; None: up to `KEPT_BYTES`.
        predict: how many of the likeliest next tokens to keep after each token, where the model is a causal language
            model whose logits are known; 0 for none.
        progress: called with what is being done, how many layers are, and of how many (0: not known).
        command, name: noted in the record.

    Raises:
        ValueError: no tokens, or more than the model has positions for; a ``target`` of a model that is no
            encoder-decoder, or one with neither ``target`` nor ``generate``, or with sampled ``rows``.
    """
    tokens = read(tokenizer, text)
    subject = subject_of(model, tokens)
    if isinstance(subject, EncoderDecoder):
        check_two_texts(target, generate, rows)
        tokens = subject.begun(tokenizer, target)
    elif target is not None:
        raise wrong("target", repr(target), f"None: {subject.architecture} is no encoder-decoder")
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
    n = side(subject, ids)
    compared = [Distance(), Induction(), PreviousToken(), DuplicateToken(), Retrieval()]
    probes = [Received(), Entropy(), EntropyRows(), Sink(), *map(WithinText, compared)]
    probes += [Pooled(n, min(CELLS, n)), Edges(EDGE_THRESHOLD)]
    budget = {True: math.inf, False: 0, None: KEPT_BYTES}[keep]
    about = (probes, Choice(layers, rows, seed), budget, reporter(subject, progress), True)
    with looking(model, *about) as session:
        logits = subject.run(ids, predict > 0)
    made = gather(session, subject, tokens, prompt, rows, seed, command, name)
    return (
        made
        if logits is None or not causal(session, subject)
        else predicting(made, logits, tokenizer, predict, subject)
    )


def subject_of(model: Any, tokens: Tokens) -> Subject:
    """The model as a record is made of it; ``tokens`` are what an encoder-decoder reads."""
    if isinstance(model, LM):
        return LMModel(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return EncoderDecoder(model, tokens)
    return TransformersModel(model)


def check_two_texts(target: Any, generate: int, rows: int | None) -> None:
    """Raises a ValueError unless an encoder-decoder has something to write, and all rows are wanted."""
    if target is None and not generate:
        raise wrong("target", "nothing", "what the decoder wrote, or generate=… tokens")
    if rows is not None:
        raise wrong("rows", str(rows), "None: all rows of an encoder-decoder")


def side(subject: Subject, ids: Sequence[int]) -> int:
    """The side of all maps: the number of tokens of the longest text."""
    return max(len(ids), len(subject.source)) if isinstance(subject, EncoderDecoder) else len(ids)


def causal(session: Session, subject: Subject) -> bool:
    """Whether no token of the text sees one after it, so that what is said of the next is a prediction."""
    if isinstance(subject, EncoderDecoder):
        return all(layer.causal for layer in session.layers if subject.reads(layer) == ["target", "target"])
    return all(layer.causal for layer in session.layers)


def predicting(made: Record, logits: Logits, tokenizer: Any, count: int, subject: Subject) -> Record:
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


def reporter(subject: Subject, progress: Callable[[str, int, int], None]) -> Callable[[int], None]:
    """What to call after each layer."""
    return lambda layer: progress("looking at layers", layer + 1, subject.depth or 0)


def gather(
    session: Looking | LookingAtLM,
    subject: Subject,
    tokens: Tokens,
    prompt: int,
    rows: int | None,
    seed: int,
    command: str | None,
    name: str | None,
) -> Record:
    """The record of a finished session."""
    watched = [layer for layer in session.layers if session.choice.takes(layer.index)]
    sampled, n = rows is not None and rows < len(tokens), side(subject, tokens.ids)
    tensors = kept_tensors(session, watched)
    arrays: dict[str, Tensor] = {}
    results = {probe.name: probe.result() for probe in session.probes if not isinstance(probe, Edges)}
    for layer in watched:
        arrays |= {
            f"{layer.index}/{key}": value.cpu()
            for key, value in layer_arrays(session, results, layer.index, n, sampled).items()
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
        "layers": [about_layer(layer, subject) for layer in watched],
        "cells": min(CELLS, n),
        "edge_threshold": EDGE_THRESHOLD,
        "kept": tensors is not None,
        "summary": summary(session, subject),
    }
    document = tokens.document
    if isinstance(subject, EncoderDecoder):
        header["source_tokens"], document["source"] = len(subject.source), subject.source.document
    return Record(header, document, arrays, tensors)


def layer_arrays(session: Session, results: Mapping[str, Any], layer: int, n: int, sampled: bool) -> dict[str, Tensor]:
    """The arrays of one layer by their names."""
    found: dict[str, Tensor] = {}
    for probe in session.probes:
        if isinstance(probe, Edges):
            links = probe.links(layer, n)
            found |= {"edge_rows": links.rows, "edge_starts": links.starts}
            found |= {"edge_keys": links.keys, "edge_weights": links.weights.half()}
            continue
        if layer not in results[probe.name]:
            continue
        value = results[probe.name][layer]
        if isinstance(value, Estimate):
            one = isinstance(probe, Received)
            found[probe.name] = (value.value[0] if one else value.value).float()
            if sampled:
                found[f"{probe.name}_error"] = (value.error[0] if one else value.error).float()
        elif isinstance(probe, EntropyRows):
            rows = n if sampled else value.shape[2]
            found[probe.name] = nn.functional.pad(value[0], (0, rows - value.shape[2]), value=math.nan)
        else:
            found[probe.name] = value[0].half()
    return found


def about_model(subject: Subject, name: str | None) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    about = {"name": name or subject.name, "architecture": subject.architecture, "parameters": parameters}
    return {**about, "layers": subject.depth}


def versions() -> dict[str, str]:
    return {"regard": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def about_layer(layer: Layer, subject: Subject) -> dict[str, Any]:
    about = {name: value for name, value in asdict(layer).items() if name != "cross"}
    return about | {"reads": subject.reads(layer)} if isinstance(subject, EncoderDecoder) else about


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


def summary(session: Session, subject: Subject) -> dict[str, Any]:
    """The ranked heads and tokens of record.json; of two texts, tokens of the decoder's by what its own layers give."""
    scores: dict[str, Mapping[int, Estimate]] = {name: session[name] for name in SCORES}
    found: dict[str, Any] = {name: ranked_heads({i: e.value for i, e in scores[name].items()}) for name in SCORES}
    found["sink"] = ranked_heads({i: e.value.sum(1) for i, e in session["sink"].items()})
    received = next(probe for probe in session.probes if isinstance(probe, Received))
    moments = [received.moments(layer) for layer in sorted(own_layers(session, received.layers, subject))]
    if not moments:
        return found | {"sink_positions": [], "received": []}
    mass = torch.cat([m.total[0] / m.total[0].sum(1, keepdim=True) for m in moments]).mean(0)
    found["sink_positions"] = ranked_tokens(mass)
    found["received"] = ranked_tokens(torch.cat([weighed(m) for m in moments]).mean(0))
    return found


def own_layers(session: Session, known: Iterable[int], subject: Subject) -> list[int]:
    """Those whose keys are the text that the record is of."""
    if not isinstance(subject, EncoderDecoder):
        return list(known)
    return [layer for layer in known if subject.reads(session.layers[layer])[1] == "target"]


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
