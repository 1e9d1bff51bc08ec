"""What `regard-tiny` can do, measured on the weights as they are shipped.

Everything is seeded; the same folder gives the same figures on the same Python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from regard.core.errors import wrong
from regard.tasks import Copy, Induction, Recall, Task, accuracy, plain_encoder, word_ids
from regard.train.tiny import ngram
from regard.train.tiny.corpus import Corpus, read_corpus
from regard.train.tiny.heads import induction_scores, sink_mass
from regard.train.tiny.make import text_tasks, token_stream

LENGTHS = (256, 512, 1024, 2048)
WINDOW = 1024


@dataclass(frozen=True)
class TextFigures:
    """Bits per byte of some held-out text, the model's and the 5-gram's, and how many bytes there are."""

    model: float
    baseline: float
    size: int


@dataclass(frozen=True)
class Figures:
    """The measured figures.

    text: which held-out files → their figures, all of them first.
    accuracies: task → length → share of right answers. induction, sinks: (layers, heads). corpus: what was read here.
    samples: examples per task and length.
    """

    text: Mapping[str, TextFigures]
    accuracies: Mapping[str, Mapping[int, float]]
    induction: Tensor
    sinks: Tensor
    corpus: str
    samples: int


def load_folder(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Model (float32, evaluation mode), tokenizer and training record of a folder that `export` wrote."""
    record = folder / "training.json"
    if not record.exists() or not (folder / "model.safetensors").exists():
        raise wrong(
            "folder", f"{folder}, with no trained model", "a folder written by `regard train tiny`", FileNotFoundError
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer, json.loads(record.read_text())


def evaluate(
    folder: Path, *, device: str = "cpu", samples: int = 32, report: Callable[[str], None] = lambda what: None
) -> Figures:
    """Measures the model in `folder`; `report` is told what is measured next."""
    model, tokenizer, record = load_folder(folder)
    model.to(device)
    report("reading the standard library")
    corpus = read_corpus(record["seed"])
    report("the 5-gram baseline")
    baseline = ngram.fit(token_stream(corpus.train, tokenizer).numpy(), len(tokenizer))
    text = {}
    for name, documents in held_out_parts(corpus).items():
        report(f"held-out text, {name}")
        text[name] = text_figures(model, baseline, documents, tokenizer)
    accuracies = {}
    for name, (task, lengths) in tested_tasks(tokenizer).items():
        report(name)
        accuracies[name] = accuracy(model, task, lengths, samples=samples, batch_size=4)
    report("heads")
    windows = sample_windows(token_stream(corpus.held_out, tokenizer), tokenizer.bos_token_id, 8, 256)
    heads = induction_scores(model).cpu(), sink_mass(model, windows.to(device)).cpu()
    return Figures(text, accuracies, *heads, corpus.fingerprint, samples)


def held_out_parts(corpus: Corpus) -> dict[str, tuple[str, ...]]:
    """All held-out documents, and those that are no character tables: the tables are many, alike, and easy."""
    pairs = zip(corpus.held_out, corpus.held_out_files, strict=True)
    others = tuple(document for document, file in pairs if not file.startswith("encodings/"))
    return {"all held-out files": corpus.held_out, "without the tables in `encodings/`": others}


def text_figures(model: Any, baseline: ngram.NGram, documents: tuple[str, ...], tokenizer: Any) -> TextFigures:
    """Bits per byte of the documents, by the model and by the 5-gram."""
    stream = token_stream(documents, tokenizer)
    size = sum(len(document.encode()) for document in documents)
    bits = model_bits(model, stream, tokenizer.bos_token_id)
    return TextFigures(bits / size, ngram_bits(baseline, stream) / size, size)


def tested_tasks(tokenizer: Any) -> dict[str, tuple[Task, tuple[int, ...]]]:
    """The tasks on which the model is measured, and at which lengths."""
    encode, bos = plain_encoder(tokenizer), tokenizer.bos_token_id
    ids = range(1, len(tokenizer))
    words = Recall(word_ids(tokenizer), 8, 0.5, tuple(encode(" =")), tuple(encode("\n")), bos)
    short = (256,)
    return {
        "copy (one repeat of random ids)": (Copy(ids, None, bos), LENGTHS),
        "induction (one answer)": (Induction(ids, bos), LENGTHS),
        "recall (random ids, 8 questions, half filler)": (Recall(ids, 8, 0.5, bos=bos), LENGTHS),
        "recall in text (` key = value`, 8 questions, half filler)": (words, LENGTHS),
        "passkey (5 digits, anywhere)": (text_tasks(encode, bos)["passkey"], LENGTHS),
        "document question": (text_tasks(encode, bos)["document question"], (256, 512)),
        "indirect object": (text_tasks(encode, bos)["indirect object"], short),
        "coloured objects": (text_tasks(encode, bos)["coloured objects"], short),
        "few-shot": (text_tasks(encode, bos)["few-shot"], short),
    }


@torch.no_grad()
def model_bits(model: Any, stream: Tensor, bos: int) -> float:
    """Bits that the model needs for all tokens of the stream, in windows that each begin with `bos`."""
    device = next(model.parameters()).device
    nats = 0.0
    for window in _windows(stream, bos):
        logits = model(input_ids=window.to(device), use_cache=False).logits[:, :-1]
        nats += F.cross_entropy(
            logits.flatten(0, 1).float(), window[:, 1:].flatten().to(device), reduction="sum"
        ).item()
    return nats / math.log(2)


def ngram_bits(baseline: ngram.NGram, stream: Tensor) -> float:
    """Bits that the n-gram needs for the same tokens; it reads on over the ends of windows and documents."""
    return -float(np.log2(baseline.probabilities(stream.numpy())).sum())


def sample_windows(stream: Tensor, bos: int, count: int, length: int) -> Tensor:
    """`count` evenly spaced windows of `length` tokens, the first of each replaced by `bos`."""
    starts = torch.linspace(0, len(stream) - length, count).long()
    windows = torch.stack([stream[s : s + length] for s in starts.tolist()])
    windows[:, 0] = bos
    return windows


def _windows(stream: Tensor, bos: int) -> Iterable[Tensor]:
    """All of the stream, in order, as (1, ≤ WINDOW) pieces behind a `bos`."""
    for piece in stream.split(WINDOW - 1):
        yield torch.cat([torch.tensor([bos]), piece])[None]
