"""`regard plan`: what the command prints is what the plan says."""

import json

import pytest
from typer.testing import CliRunner

from regard.cli import app
from regard.plan.device import DEVICES
from regard.plan.kinetics import kinetics
from regard.plan.published import MODELS


def run(*words):
    result = CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output


def test_rows_of_a_model_with_windows():
    """Gemma 3 27B: 80 KiB a token in full layers, 416 MiB in windows; a step is the mean of the answer's steps."""
    out = json.loads(run("gemma3-27b", "--context", "1k,128k", "--answer", "7", "--samples", "3", "--json"))
    shape = MODELS["gemma3-27b"]
    assert (out["parameters"], out["cache_bytes_per_token"], out["cache_bytes_bounded"]) == (
        *(shape.parameters, 10 * 8192, 52 * 8192 * 1024),
    )
    for row, prompt in zip(out["rows"], (1024, 131_072), strict=True):
        assert row["cache_bytes"] == 8192 * (10 * (prompt + 7) + 52 * min(prompt + 7, 1024))
        steps = [shape.step(3, prompt + t) for t in range(1, 8)]
        moved = sum(step.bytes for step in steps) / 7
        assert row["step_seconds"] == pytest.approx(moved / DEVICES["h100"].bandwidth)
        assert row["eflops"] == pytest.approx(kinetics(shape, DEVICES["h100"], prompt, 7, 3).total)


@pytest.mark.parametrize(("name", "words"), [
    ("gemma3-27b", "27.01 B parameters; 80.0 KiB of cache a token and 416 MiB in windows and states"),
    ("gpt-oss-120b", "116.79 B parameters, 5.13 B of them active; 36.0 KiB of cache a token and 4.5 MiB"),
    ("llama3-8b", "8.03 B parameters; 128.0 KiB of cache a token; 1 × h100"),
    ("mamba2-2.7b", "2.70 B parameters; 0.0 KiB of cache a token and 82.6 MiB in windows and states"),
])  # fmt: skip
def test_the_heading(name, words):
    assert words in " ".join(run(name, "--context", "1k").split())


def test_the_table_fits_eighty_columns():
    assert "…" not in run("qwen3-235b-a22b", "--context", "128k", "--samples", "16")
