"""`regard train tiny`: the small model that ships, from nothing to a folder in Hugging Face format.

Llama architecture, 3.7 M parameters: 4 layers, width 256, 8 heads, RoPE, tied embeddings, positions up to 8,192.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from regard.core.files import write_whole
from regard.tasks import (
    ColouredObjects,
    Copy,
    DocumentQuestion,
    Encode,
    Example,
    FewShot,
    IndirectObject,
    Induction,
    Passkey,
    Recall,
    Task,
    plain_encoder,
    word_ids,
)
from regard.train.tiny.corpus import Corpus, read_corpus
from regard.train.tiny.loop import Budget, Progress, Trainer
from regard.train.tiny.stages import TINY, Stage
from regard.train.tiny.tokenizer import train_tokenizer

VOCABULARY = 2048


@dataclass(frozen=True)
class Text:
    """A window of the corpus, anywhere; every token but the first is an answer.

    stream: the tokens of all documents, each behind a `bos`.
    """

    stream: Tensor
    bos: int

    def sample(self, generator: Generator, length: int) -> Example:
        """`length` tokens, the first of them `bos`."""
        start = int(torch.randint(len(self.stream) - length, (), generator=generator))
        ids = self.stream[start : start + length].clone()
        ids[0] = self.bos
        return Example(ids, torch.arange(length) > 0)


def config(vocabulary: int = VOCABULARY, layers: int = 4, width: int = 256, heads: int = 8) -> LlamaConfig:
    """The architecture; smaller ones for tests."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )


def token_stream(documents: tuple[str, ...], tokenizer: Any) -> Tensor:
    """All documents as one row of ids, each behind the beginning token."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(documents), add_special_tokens=False)
    return torch.tensor([i for document in encoded for i in (tokenizer.bos_token_id, *document.ids)])


def sources(tokenizer: Any, stream: Tensor) -> Callable[[Stage], Mapping[str, Task]]:
    """The tasks that a stage's mixture can name. Recall asks for many keys a sequence: more to learn from a token."""
    encode, bos, size = plain_encoder(tokenizer), tokenizer.bos_token_id, len(tokenizer)
    fixed = {"text": Text(stream, bos), **text_tasks(encode, bos)}
    words, joint, end = word_ids(tokenizer), tuple(encode(" =")), tuple(encode("\n"))

    def of(stage: Stage) -> dict[str, Task]:
        ids = range(1, min(1 + stage.symbols, size))
        return fixed | {
            "copy": Copy(ids, (6, 24), bos),
            "long copy": Copy(ids, None, bos),
            "induction": Induction(ids, bos),
            "recall": Dense(Recall(ids, bos=bos), 2),
            "text recall": Dense(Recall(words, joint=joint, end=end, bos=bos), 4),
        }

    return of


def text_tasks(encode: Encode, bos: int) -> dict[str, Task]:
    """The tasks that are written in English."""
    return {
        "passkey": Passkey(encode, bos),
        "indirect object": IndirectObject(encode, bos),
        "coloured objects": ColouredObjects(encode, bos),
        "few-shot": FewShot(encode, bos),
        "document question": DocumentQuestion(encode, bos),
    }


@dataclass(frozen=True)
class Dense:
    """Recall with as many questions as fill about a third of the sequence, and any share of filler up to 0.8.

    line: tokens of a pair.
    """

    task: Recall
    line: int

    def sample(self, generator: Generator, length: int) -> Example:
        """One example of recall."""
        filler = 0.8 * float(torch.rand((), generator=generator))
        pairs = int(length * 2 / 3 * (1 - filler)) // self.line
        queries = max(1, min(pairs, length // 3 // self.line))
        recall = Recall(self.task.symbols, queries, filler, self.task.joint, self.task.end, self.task.bos)
        return recall.sample(generator, length)


def build(corpus: Corpus, seed: int, device: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An untrained model and its tokenizer."""
    tokenizer = train_tokenizer(corpus.train, VOCABULARY)
    torch.manual_seed(seed)
    return LlamaForCausalLM(config()).to(device), tokenizer  # type: ignore[arg-type]


def train_tiny(
    folder: Path,
    budget: Budget,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[Progress, dict[str, Any]], None] = lambda progress, figures: None,
) -> Progress:
    """Trains in `folder/run`, going on where an earlier call was stopped, and writes the model to `folder`."""
    corpus = read_corpus(seed)
    model, tokenizer = build(corpus, seed, device)
    tasks = sources(tokenizer, token_stream(corpus.train, tokenizer))
    trainer = Trainer(model, TINY, tasks, budget, folder / "run", seed, report=report)
    progress = trainer.run()
    export(model, tokenizer, folder, training_record(folder / "run" / "log.jsonl", corpus, seed, device))
    return progress


def training_record(log: Path, corpus: Corpus, seed: int, device: str) -> dict[str, Any]:
    """What the model card tells about a run, read from its log: totals, and per stage its own part of them."""
    stages: dict[str, dict[str, Any]] = {}
    before = last = {"step": 0, "tokens": 0, "seconds": 0.0}
    for line in map(json.loads, log.read_text().splitlines()):
        if line["stage"] not in stages:
            before = last
        spent = {"steps": line["step"] - before["step"]} | {k: line[k] - before[k] for k in ("tokens", "seconds")}
        stages[line["stage"]] = spent | {"accuracy": line["running accuracy"]}
        last = line
    threads = torch.get_num_threads()
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{threads} CPU thread{'s' * (threads > 1)}"
    totals = {key: last[key] for key in before}
    return {"corpus": corpus.fingerprint, "seed": seed, "machine": machine, **totals, "stages": stages}


def export(model: Any, tokenizer: Any, folder: Path, record: Mapping[str, Any]) -> None:
    """Writes weights in bfloat16, config, tokenizer and the training record; each file whole or not at all.

    Files are written to a draft folder and moved one by one, so readers of `folder` never see half a file.
    """
    draft = folder / ".draft"
    draft.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.bfloat16().save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    (draft / "training.json").write_text(json.dumps(dict(record), indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "training.json", "model.safetensors"):
        (draft / name).chmod(0o644)  # safetensors writes for the owner alone
        write_whole(folder / name, lambda to, name=name: (draft / name).replace(to))
    for left in draft.iterdir():
        left.unlink()
    draft.rmdir()
