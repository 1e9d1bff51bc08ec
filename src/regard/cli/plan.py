"""`regard plan`: what will decoding cost?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def plan(
    model: Annotated[str, typer.Argument(help="such as qwen3-8b or deepseek-v3, or a folder with a config.json")],
    context: Annotated[str, typer.Option(help="tokens of the prompt, such as 1k..128k")] = "1k..128k",
    answer: Annotated[int, typer.Option(min=1, help="tokens of one answer")] = 1024,
    samples: Annotated[int, typer.Option(min=1, help="answers to each prompt, decoded together")] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="sequences that share one reading of the weights")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="most tokens of the cache that a step reads")] = None,
    bits: Annotated[int, typer.Option(help="of a number: 16, 8 or 4")] = 16,
    device: Annotated[str, typer.Option(help="a100, h100, h200, b200, or here: this machine's processor")] = "h100",
    devices: Annotated[int, typer.Option(min=1, help="of which there are so many")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Say what decoding will cost: where FLOPs and bytes go, how long a step takes at least, how many fit."""
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from regard.compare.parsing import parse_lengths
    from regard.compare.tables import size
    from regard.core.errors import did_you_mean, wrong
    from regard.plan.config import model_shape
    from regard.plan.device import DEVICES, here
    from regard.plan.kinetics import kinetics

    if device not in (*DEVICES, "here"):
        raise wrong("--device", repr(device), f"one of {', '.join(DEVICES)} or here{did_you_mean(device, DEVICES)}")
    shape, contexts = model_shape(model), parse_lengths(context, "--context")
    if bits not in (16, 8, 4):
        raise wrong("--bits", str(bits), "16, 8 or 4")
    shape = replace(shape, itemsize=bits / 8)
    shape = shape if budget is None else shape.sparse(budget)
    where = replace(here(1) if device == "here" else DEVICES[device], count=devices)
    together, rows = max(batch or samples, samples), []
    for prompt in contexts:
        split = kinetics(shape, where, prompt, answer, samples, together)
        attended = shape.answered(together, prompt, answer) * (1 / answer)
        step = shape.fixed(together) + attended
        rows.append(
            {
                "context": prompt,
                "eflops": split.total,
                **{name: value / split.total for name, value in asdict(split).items()},
                "step_seconds": step.seconds(where),
                "intensity": attended.intensity,
                "cache_bytes": shape.cache_bytes(prompt + answer),
                "largest_batch": shape.largest_batch(where, prompt + answer),
            }
        )
    about = {
        "model": model,
        "parameters": shape.parameters,
        "active_parameters": shape.active,
        "cache_bytes_per_token": shape.token_bytes,
        "cache_bytes_bounded": shape.bounded_bytes,
        "ridge": where.ridge,
        "balanced_batch": shape.balanced_batch(where),
    }
    if as_json:
        typer.echo(json.dumps(about | {"rows": rows}, indent=2))
        return
    console = Console(highlight=False)
    balanced = "from no number of" if about["balanced_batch"] is None else f"from {about['balanced_batch']:,}"
    active = (
        f", {shape.active / 1e9:.2f} B of them active" if any(part.experts > 1 for _, part in shape.networks) else ""
    )
    bounded = f" and {size(round(shape.bounded_bytes))} in windows and states" if shape.bounded_bytes else ""
    console.print(
        f"{model}: {shape.parameters / 1e9:.2f} B parameters{active}; "
        f"{shape.token_bytes / 1024:.1f} KiB of cache a token{bounded}; "
        f"{devices} × {device}: {where.ridge:.0f} FLOPs a byte at the ridge; "
        f"networks are bound by compute {balanced} tokens a step"
    )
    heads = ("context", "eFLOPs", "weights", "attn", "w read", "kv read", "ms ≥", "FLOP/B", "cache")
    title = (
        f"{samples} × {answer} tokens, {together} sequences a step; shares of eFLOPs; "
        "FLOP/B of attention; cache of one sequence"
    )
    table = Table(*heads, "batch ≤", title=title, box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        shares = (f"{row[name]:.1%}" for name in ("weights", "attention", "weights_read", "cache_read"))
        table.add_row(
            *(f"{row['context']:,}", f"{row['eflops']:.2e}", *shares, f"{row['step_seconds'] * 1e3:.3g}"),
            *(f"{row['intensity']:.0f}", size(round(row["cache_bytes"]))),
            f"{row['largest_batch']:,}" if row["largest_batch"] else "none",
        )
    console.print(table)
