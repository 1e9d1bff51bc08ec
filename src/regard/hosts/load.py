"""A model and its tokenizer from a name: one that ships, a folder, or an id of a model hub."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from regard.core.errors import wrong
from regard.hosts import small


def load(name: str) -> tuple[Any, Any]:
    """``(model, tokenizer)``, the model in evaluation mode.

    Causal language models come with their head, all others as the bare encoder.

    Raises:
        ValueError: no model of that name can be loaded; the message says which names there are.
    """
    if name in small.NAMES:
        return small.load(name)
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    local = Path(name).is_dir() or not hub_answers()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder(config)
        model = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(name, local_files_only=local)
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        wanted = f"{', '.join(small.NAMES)}, a folder with a Transformers model, or a hub id that can be reached"
        raise wrong("--model", repr(name), f"{wanted} ({str(error).splitlines()[0]})") from error
    return model.eval(), tokenizer


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
