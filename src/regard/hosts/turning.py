"""Keys that a model has turned by their rotary positions, turned further."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.hosts.attention_interface import label

RATES = "inv_freq"
"""What modules of rotary positions call their rates."""
WANTED = "one with plain rotary positions, alike in all layers and in all coordinates of a key"


class Turning:
    """How a model's rotary positions turn a key by so many positions more.

        k(p + s) = R(s) k(p)

    The model's own module and function are used, and tried out: some have rates that depend on the length.

    Args:
        model: the host.

    Raises:
        ValueError: it has no rotary positions, or others for some layers or coordinates, or turns do not add up.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        found = [module for module in model.modules() if hasattr(module, RATES)]
        made = [getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None) for module in found]
        if len(found) != 1 or made[0] is None:
            raise wrong("model", f"{label(model)}, with {len(found)} modules of rotary positions", WANTED)
        self.module: Any = found[0]
        self.apply: Any = made[0]
        d = self.angles(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))[0].shape[-1]
        config: Any = model.config.get_text_config(decoder=True)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if d != size:
            raise wrong("model", f"{label(model)}, which turns {d} of a key's {size} coordinates", WANTED)
        keys = torch.randn(3, d, generator=torch.Generator().manual_seed(0)).to(getattr(self.module, RATES).device)
        at = torch.tensor([2, 31, 5], device=keys.device)
        apart = self(self(keys, at), at.flip(0)) - self(keys, at + at.flip(0))
        if apart.abs().max() > 1e-3:
            raise wrong("model", f"{label(model)}, whose turns do not add up", WANTED)

    def __call__(self, keys: Tensor, steps: Tensor) -> Tensor:
        """``keys (t, d)`` turned by ``steps (t,)`` int64."""
        wide = keys.to(torch.promote_types(keys.dtype, torch.float32))[None, None]
        cos, sin = self.angles(wide[0], steps)
        return self.apply(wide, wide, cos, sin)[1][0, 0].to(keys.dtype)

    def angles(self, like: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, without what the model scales them by: that is in the keys already."""
        scale = getattr(self.module, "attention_scaling", 1.0)
        cos, sin = self.module(like, steps[None])
        return cos / scale, sin / scale
