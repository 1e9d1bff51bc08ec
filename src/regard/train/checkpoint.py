"""Checkpoints that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regard.core.errors import wrong
from regard.core.files import write_whole


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes the state; a process killed at any moment leaves the old file or the new one."""
    write_whole(path, lambda draft: torch.save(state, draft))


def load_checkpoint(path: Path, recipe: str) -> dict[str, Any] | None:
    """The state at `path`, None if there is none; refused if it was written by another recipe.

    recipe: a fingerprint of everything that must be the same for going on to make sense.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe:
        raise wrong(
            "folder",
            f"{path.parent}, whose checkpoint follows another recipe or seed",
            "the same one, or an empty folder",
        )
    return state
