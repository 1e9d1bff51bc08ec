"""Scored attention side by side: trained alike at equal parameters, and timed beside PyTorch's fused attention.

    python benchmarks/scored.py train FOLDER     # goes on where it was stopped, then writes the table of docs/scored.md
    python benchmarks/scored.py speed            # writes the other table

Models: two layers of width 64 and two heads, 1,000 steps of 32 sequences (`regard compare`, preset small), the inner
width such that all have the parameters of the model with softmax. Times: 8 heads of 64, causal, in the same rounds.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from regard.blocks.signals import Signals
from regard.compare.quality import scores
from regard.core.build import build_for, parse
from regard.core.layout import Layout
from regard.experiments.store import Store
from regard.experiments.timing import interleaved

PAGE = Path(__file__).parents[1] / "docs" / "scored.md"
TASKS = ("recall", "listops", "lm")
MECHANISMS = (
    *("softmax", "sigmoid", "alibi", "tapa", "neural(hidden=16)", "cog", "gated", "affine_scaled"),
    *("multi_token(query_taps=2, key_taps=5, group=2)", "positional", "softmax with head_embeddings"),
    *("softmax with knocking_heads", "softmax with super_attention(form=optimised)", "softmax with merged_query_key"),
    *("softmax with latent(rank=16, plain=16, rotary=16, value=32)", "softmax with moh(shared=1, routed=1)"),
    *("softmax with nexus(order=2)", "softmax with dual(relational=1)", "softmax with gates(at=heads)"),
    "composed(bias=t5)",
)
TIMED = (
    "softmax",
    "softmax(sink_heads=8)",
    "alibi",
    "gated",
    "affine_scaled",
    "sigmoid",
    "cog",
    "tapa",
    "multi_token",
    "neural(hidden=16)",
)

app = typer.Typer(add_completion=False, help=__doc__)


def write(mark: str, lines: list[list[str]]) -> None:
    """Replaces one table of the page."""
    first, last = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    block = "\n".join([first, *("| " + " | ".join(line) + " |" for line in lines), last])
    PAGE.write_text(re.sub(f"{first}.*{last}", lambda _: block, PAGE.read_text(), flags=re.DOTALL))


@app.command()
def train(folder: Path, seeds: int = 1) -> None:
    """Trains what is missing by `regard compare`, then writes the table."""
    command = [sys.executable, "-m", "regard.cli", "compare", *MECHANISMS, "--task", ",".join(TASKS)]
    subprocess.run([*command, "--seeds", str(seeds), "-o", str(folder)], check=True)
    table(folder)


@app.command()
def table(folder: Path) -> None:
    """Writes the table from what is there."""
    rows = Store(folder).rows()
    found, losses = scores(rows), {(row["task"], row["mechanism"]): row["loss"] for row in rows}
    lines = [["mechanism", *(f"{task}, right" for task in TASKS), "lm, nats a byte"], ["---"] * (len(TASKS) + 2)]
    for name in MECHANISMS:
        cells = []
        for task in TASKS:
            score = next((s for (t, _, _, m), s in found.items() if (t, m) == (task, name)), None)
            cells.append("–" if score is None else f"{score.mean:.1%} ({score.low:.1%}–{score.high:.1%})")
        nats = losses.get(("lm", name))
        lines.append([f"`{name}`", *cells, "–" if nats is None else f"{nats:.3f}"])
    write("trained", lines)


@app.command()
def speed(n: int = 4096, threads: Annotated[int, typer.Option(min=1)] = 1) -> None:
    """Forward and training step over those of fused attention."""
    torch.set_num_threads(threads)
    lines = [["mechanism", "forward", "training step"], ["---"] * 3]
    for text in TIMED:
        name, arguments = parse(text)
        mechanism = build_for({"heads": 8, "head_dim": 64}, name, **arguments)
        tensors = [torch.randn(1, 8, n, 64) for _ in range(3)]
        x = torch.randn(1, n, 512)
        signals = {k: s.detach() for k, s in Signals(mechanism.signals, 512, 8, 8, 64, 64)(x, x).items()}
        cells = []
        for training in (False, True):

            def timed(call, training=training, tensors=tensors):
                def step():
                    if not training:
                        with torch.no_grad():
                            return call(*tensors)
                    leaves = [t.detach().requires_grad_() for t in tensors]
                    return torch.autograd.grad(call(*leaves).sum(), leaves)

                return step

            mine = timed(lambda q, k, v, m=mechanism, s=signals: m(q, k, v, Layout(causal=True), **s))
            fused = timed(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
            cells.append(f"{interleaved(mine, fused, torch.device('cpu'), seconds=4).median:.2f}")
        lines.append([f"`{text}`", *cells])
        print(lines[-1], flush=True)
    write("speed", lines)


if __name__ == "__main__":
    app()
