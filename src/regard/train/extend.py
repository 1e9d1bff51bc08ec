"""A pretrained model tuned for texts several times as long as it was trained on: LongLoRA's recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.hosts.swap import swap
from regard.train.fit import Recipe, fit

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Extension:
    """How a model is tuned.

    Args:
        factor: times the length that the model was trained on; its rotary positions are divided by it. length: tokens
            of a training sequence. mechanism: in the place of full attention while training, as `regard.swap` takes it;
            None for full attention. rank, alpha: of the low-rank matrices beside those of queries, keys, values and
            outputs; embeddings and norms are trained whole.

    Raises:
        ValueError: a factor below one, or a length or rank that is not positive.
    """

    factor: float = 4.0
    length: int = 8192
    mechanism: str | None = None
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise wrong("factor", str(self.factor), "at least 1")
        for name in ("length", "rank"):
            if getattr(self, name) < 1:
                raise wrong(name, str(getattr(self, name)), "at least 1")


def interpolated(model: Any, factor: float) -> Any:
    """A copy whose rotary positions are divided by ``factor``, so that longer texts turn no further than it has seen.

    Raises:
        ValueError: a model without rotary positions, or with scaled ones.

    Paper: Chen et al., arXiv 2306.15595.
    """
    config = copy.deepcopy(model.config)
    rotary = getattr(config, "rope_parameters", None)
    if not isinstance(rotary, dict) or rotary.get("rope_type") != "default":
        raise wrong("model", f"positions {rotary!r}", "a model with plain rotary positions")
    config.rope_parameters = rotary | {"rope_type": "linear", "factor": factor}
    found = type(model)(config)
    found.load_state_dict(model.state_dict())
    return found.to(model.device, model.dtype).eval()


def extend(
    model: Any,
    stream: Tensor,
    extension: Extension,
    recipe: Recipe,
    folder: Path | None = None,
    device: str = "cpu",
    report: Callable[[int, float], None] = lambda step, value: None,
) -> Any:
    """A copy of the model tuned on windows of ``stream (tokens,)`` by low-rank matrices, which are merged in the end.

    What is tuned with a sparse mechanism is used with full attention afterwards. A folder keeps checkpoints, from
    which a run that was killed goes on.

    Raises:
        ImportError: without PEFT. ValueError: a stream shorter than a sequence, and what `interpolated` and
            `regard.swap` refuse.

    Papers: Chen et al. (LongLoRA), arXiv 2309.12307; the low-rank matrices: Hu et al., 2106.09685.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("tuning needs PEFT: pip install 'regard[tune]'") from error
    if len(stream) <= extension.length:
        raise wrong("stream", f"{len(stream)} tokens", f"more than the {extension.length} of a sequence")
    longer = interpolated(model, extension.factor).to(device)
    low = LoraConfig(
        r=extension.rank, lora_alpha=cast(int, extension.alpha), target_modules=list(PROJECTIONS), bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tuned = cast(Any, get_peft_model(longer, low))
    for name, parameter in tuned.named_parameters():
        if "norm" in name or "embed" in name:
            parameter.requires_grad_()

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        start = int(torch.randint(len(stream) - extension.length, (), generator=generator))
        ids = stream[None, start : start + extension.length].to(device)
        logits = ready(input_ids=ids, use_cache=False).logits[0, :-1]
        return F.cross_entropy(logits.float(), ids[0, 1:])

    with nullcontext() if extension.mechanism is None else swap(longer, extension.mechanism):
        fit(tuned, loss, recipe, folder, device, report=report)
    return tuned.merge_and_unload().eval()
