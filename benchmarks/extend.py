"""The shipped model tuned for four times its length: full attention, LongLoRA's S² and SinkLoRA's SF groups.

    python benchmarks/extend.py FOLDER        # goes on where it was stopped; prints the table for docs/patterns.md

Every arm is tuned alike, on windows of 8,192 tokens of the training files, and measured with full attention on 65,536
tokens of the held-out files. The share is that of full attention's gain over the model as it ships. Positions are not
interpolated: this model reads on beyond what it was trained on (2,048) better than with its positions divided by four.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from regard.compare.swap_report import text_loss
from regard.hosts import small
from regard.train.extend import Extension, extend, interpolated
from regard.train.fit import Recipe
from regard.train.tiny.corpus import read_corpus
from regard.train.tiny.make import token_stream

LENGTH, TESTED = 8192, 65536
ARMS = {
    "full": None,
    "S² groups": f"sinklora(heads=8, size={LENGTH // 4}, shifted=0.5, sinks=0)",
    "SF groups": f"sinklora(heads=8, size={LENGTH // 4}, shifted=0.25, sinks=4)",
}


def main(folder: Path, steps: int = 60, seeds: int = 1, threads: Annotated[int, typer.Option(min=1)] = 1) -> None:
    """Tunes and measures each arm of each seed, once."""
    torch.set_num_threads(threads)
    model, tokenizer = small.load("tiny")
    corpus = read_corpus(0)
    stream, held = (token_stream(documents, tokenizer) for documents in (corpus.train, corpus.held_out))

    def measured(name: str, made) -> float:
        file = folder / f"{name}.json"
        if not file.exists():
            loss = text_loss(made(), held[:TESTED], LENGTH, None)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(loss))
        print(f"{name}: {json.loads(file.read_text()):.4f}", flush=True)
        return json.loads(file.read_text())

    shipped = measured("shipped", lambda: model)
    measured("with positions divided by 4", lambda: interpolated(model, 4))
    print("| tuned with | seed | nats a token at 8,192 | share of full attention's gain |\n| --- | --- | --- | --- |")
    for seed in range(seeds):
        losses = {}
        for name, mechanism in ARMS.items():

            def tuned(name=name, mechanism=mechanism, seed=seed):
                extension, recipe = Extension(1, LENGTH, mechanism), Recipe(steps, 1e-3, decay=0.0, seed=seed)
                work = folder / f"{name} {seed}"
                return extend(model, stream, extension, recipe, work, report=print)

            losses[name] = measured(f"{name} {seed}", tuned)
        for name, loss in losses.items():
            share = (shipped - loss) / (shipped - losses["full"])
            print(f"| {name} | {seed} | {loss:.4f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
