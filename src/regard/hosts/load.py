"""A model and its tokenizer from a name: one that ships, a folder, or an id of a model hub."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from regard.core.errors import did_you_mean, wrong
from regard.hosts import small
from regard.networks import LM


def load(name: str, tokenizer: str | None = None) -> tuple[Any, Any]:
    """``(model, tokenizer)``, the model in evaluation mode.

    Causal language models come with their head, all others as the bare encoder. A folder that `LM.save_pretrained`
    wrote gives that model, which has no tokenizer: None. ``tokenizer`` names another one to use.

    Raises:
        ValueError, FileNotFoundError: no model or tokenizer of that name can be loaded; the message says what can.
    """
    if is_own(Path(name)):
        model, words = LM.from_pretrained(name), None
    elif name in small.NAMES:
        model, words = small.load(name)
    else:
        model, words = load_host(name, tokenizer is None)
    return model, words if tokenizer is None else load_tokenizer(tokenizer)


def is_own(folder: Path) -> bool:
    """Whether a configuration of ours lies in the folder."""
    try:
        given = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(given, dict) and "model_type" not in given and {"vocabulary", "layers"} <= set(given)


def load_host(name: str, speaks: bool) -> tuple[Any, Any]:
    """A Transformers model with its tokenizer, which is left out unless it ``speaks``."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    local = Path(name).is_dir() or not hub_answers()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder(config)
        model = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(name, local_files_only=local)
        words = AutoTokenizer.from_pretrained(name, local_files_only=local) if speaks else None
    except (OSError, ValueError, KeyError) as error:
        raise absent(name, str(error).splitlines()[0]) from error
    return model.eval(), words


def check_name(name: str) -> None:
    """Refuses a name that nothing here has while the hub cannot be reached; Transformers is not imported for it.

    Raises:
        ValueError: neither a model that ships, nor a file or folder, nor in the hub's cache.
    """
    if name in small.NAMES or Path(name).exists():
        return
    from huggingface_hub import try_to_load_from_cache

    try:
        kept = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no id of a hub
        kept = None
    if not isinstance(kept, str) and not hub_answers():
        raise absent(name, "there is no such folder, and the hub cannot be reached")


def absent(name: str, why: str) -> Exception:
    """The error for a name of no model."""
    wanted = f"{', '.join(small.NAMES)}, a folder with a Transformers model or an LM, or a hub id that can be reached"
    return wrong("--model", repr(name), f"{wanted} ({why}){did_you_mean(name, small.NAMES)}")


def load_tokenizer(name: str) -> Any:
    """A Transformers tokenizer by the name of its folder, or of a model's, or by its id."""
    from transformers import AutoTokenizer

    if name in small.NAMES:
        name = str(small.path(name))
    local = Path(name).is_dir() or not hub_answers()
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # the parsers of tokenizer.json raise bare Exceptions
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise wrong("--tokenizer", repr(name), f"a folder with a Transformers tokenizer ({why})") from error


def hub_answers() -> bool:
    """Whether the model hub's name can be resolved: without a network only what is in the local cache is tried."""
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def is_encoder(config: Any) -> bool:
    """Whether the configuration asks for the masked form of an architecture that has both, as BERT's does."""
    names = config.architectures or []
    return bool(names) and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
