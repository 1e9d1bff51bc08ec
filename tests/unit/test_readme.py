"""Every example of the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [block for language, block in BLOCKS if language == "python"]
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    for line in block.splitlines()
    if not language and line.startswith("regard ")
]
SHORTER = {"1k..16k": "64,128", "--seeds 3": "--seeds 1 --preset smoke", "regard compare": "regard compare --no-memory"}
"""What a test need not do at full length."""
TRAINING = [command for command in COMMANDS if command.startswith("regard train")]  # hours; its own tests run it small


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the README's commands name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from regard.hosts import small
    from regard.networks import LM, Config

    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text("def add(first, second):\n    return first + second\n" * 7)
    (tmp_path / "report.txt").write_text("The river runs to the sea. " * 31)
    torch.manual_seed(0)
    _, tokenizer = small.load("tiny")
    sizes = {"hidden_size": 22, "intermediate_size": 29, "num_hidden_layers": 2, "num_attention_heads": 11}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=11, max_position_embeddings=1024, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "path/to/llama")
    tokenizer.save_pretrained(tmp_path / "path/to/llama")
    LM(Config(vocabulary=23, width=16, heads=2, layers="mamba2, softmax")).save_pretrained(tmp_path / "path/to/lm")
    return tmp_path


def test_the_readme_has_examples():
    assert len(PYTHON) >= 2
    assert {command.split()[1] for command in COMMANDS} >= {"look", "atlas", "laws", "train"}


@pytest.mark.parametrize("example", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run(example, capsys):
    exec(compile(example, "README.md", "exec"), {})


def test_commands_run(workplace):
    for command in [c for c in COMMANDS if c not in TRAINING]:
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        words = shlex.split(command.replace("…", "a sentence to look at"))
        done = subprocess.run(
            [sys.executable, "-m", "regard.cli", *words[1:]], capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (workplace / "out" / "page.html").exists()
