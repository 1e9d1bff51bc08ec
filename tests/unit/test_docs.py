"""Every example of the README and of the documentation runs, every link leads somewhere, every page is on the site."""

import re
import shlex
from pathlib import Path

import pytest

from command_line import regard

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page):
    """Language and text of every block of code on a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    """The commands of a page, without what is said of them."""
    lines = [line for language, block in blocks(page) if not language for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("regard ")]


PYTHON = [block for language, block in blocks(ROOT / "README.md") if language == "python"]
COMMANDS = [
    *commands(ROOT / "README.md"),
    *(line for page in (DOCS / "guides").glob("*.md") for line in commands(page)),
]
EXAMPLES = [page for page in PAGES[3:] if any(language == "python" for language, _ in blocks(page))]
EXAMPLES = [page for page in EXAMPLES if page.parent.name != "notebooks"]  # run by test_notebooks
SHORTER = {
    "1k..16k": "64,128",
    "--lengths 512": "--lengths 128",
    "recall,needle": "recall",
    "--seeds 3": "--seeds 1 --preset smoke",
    "regard compare": "regard compare --no-memory",
}
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


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_examples_of_a_page_run_one_after_the_other(page, capsys):
    names = {}
    for example in [block for language, block in blocks(page) if language == "python"]:
        exec(compile(example, page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if "://" in target or path.startswith("reference/"):  # what the site writes itself
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", re.sub(r"`", "", head.lower())).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}"


def test_every_page_is_on_the_site():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {str(page.relative_to(DOCS)) for page in PAGES[3:]} <= listed


def test_commands_run(workplace):
    for command in [c for c in dict.fromkeys(COMMANDS) if c not in TRAINING]:
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        words = shlex.split(command.replace("…", "a sentence to look at"))
        done = regard(*words[1:])
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (workplace / "out" / "page.html").exists()
