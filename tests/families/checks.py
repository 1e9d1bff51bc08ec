"""What is held against each model: the watch and the swap beside the model alone."""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from families.inputs import BATCH, LENGTH
from families.truth import Weights, truth
from regard.hosts.attention_interface import configurations
from regard.hosts.session import Session
from regard.hosts.softmax_call import AttentionMap
from regard.hosts.swap import swap
from regard.hosts.watch import watch
from regard.probes import Distance, Entropy

CLOSE = {torch.float64: 1e-8}
"""Absolute error of a weight, and relative error of an output, by dtype."""
ROUNDED = 2e-4
"""The same of others. What is further off is looked at once more in float64: large scores are rounded more."""
GROWN = 1e3
"""Numbers this large say that a model without trained norms has grown from layer to layer."""
NEAR = 2e-4
"""Error of a statistic, absolute below one and relative above."""
SPARE = 2
"""Columns beside the keys that are looked for, by the number of keys: sinks, and the empty slots of a cache."""
SHORT = 7
"""Tokens of the shorter text of a padded batch."""
LEFT_OUT = ("past_key", "cache", "attentions")
"""Parts of an output that are none of its numbers: eager attention gives its weights unasked."""
MORE = 4
"""Tokens generated."""
REFUSAL = re.compile(r"^['\"]?[^:]+: got .*, want ", re.DOTALL)


class Fault(Exception):  # noqa: N818
    """A check that did not hold: ``kind`` is wrong or partial."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


@dataclass
class Row:
    """The outcome of one family: each check is right, refused, wrong, partial, crash or, where it does not apply, –."""

    family: str
    model: str = ""
    watch: str = "–"
    padding: str = "–"
    generate: str = "–"
    swap: str = "–"
    state: str = "–"
    layers: int = 0
    reason: str = ""
    seconds: float = 0
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The worst of the watch's and the state's, and of a swap that is not refused."""
        outcomes = [self.watch, self.padding, self.generate, self.state, self.swap.replace("refused", "–")]
        for worst in ("cannot be built", "crash", "wrong", "partial", "refused"):
            if worst in outcomes:
                return worst
        return "right"


def examine(row: Row, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Row:
    """All checks of a model that runs on these inputs."""
    able = "input_ids" in inputs and generates(model, inputs)
    before = state(model)
    row.watch = attempt(row, "watch", partial(check_watch, row), model, inputs)
    if row.watch == "right" and "input_ids" in inputs and "attention_mask" in inputs:
        row.padding = attempt(row, "padding", check_padding, model, inputs)
    if row.watch == "right" and able:
        row.generate = attempt(row, "generate", check_generate, model, inputs)
    if row.layers:
        row.swap = attempt(row, "swap", check_swap, model, inputs)
    row.state = "right" if state(model) == before else "wrong"
    return row


def attempt(
    row: Row, name: str, check: Callable[[PreTrainedModel, dict[str, Tensor]], str], model: Any, inputs: dict[str, Any]
) -> str:
    """The outcome of one check, and why, in the row; of what is wrong in float32, the outcome in float64."""
    try:
        return check(model, inputs)
    except Fault as fault:
        if fault.kind == "wrong" and exact(check, model, inputs):
            row.notes.append(f"{name}: in float32 {fault}; in float64 right")
            return "right"
        row.reason = row.reason or f"{name}: {fault}"
        return fault.kind
    except Exception as error:
        text = str(error)
        if REFUSAL.match(text):
            row.reason = row.reason or (text if name == "watch" else f"{name}: {text}")
            return "refused"
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.split('site-packages/')[-1].split('/src/')[-1]}:{where.lineno}"
        row.reason = row.reason or f"{name}: {type(error).__name__}: {text[:300]} ({place})"
        return "crash"


def exact(check: Callable[[PreTrainedModel, dict[str, Tensor]], str], model: Any, inputs: dict[str, Any]) -> bool:
    """Whether the check holds of the same model in float64."""
    try:
        wide = {
            name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in inputs.items()
        }
        return check(copy.deepcopy(model).double(), wide) == "right"
    except Exception:  # what cannot run in float64 is judged in float32
        return False


def close(x: Tensor) -> float:
    """The error that numbers of this dtype may have."""
    return CLOSE.get(x.dtype, ROUNDED)


@torch.no_grad()
def run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Every tensor that a forward pass gives, caches left out."""
    torch.manual_seed(0)
    return flat(model(**inputs))


def flat(output: Any) -> list[Tensor]:
    """The floating tensors in a model's output, without caches and weights."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = [value for key, value in output.items() if not any(part in key for part in LEFT_OUT)]
    return [found for part in output for found in flat(part)] if isinstance(output, (list, tuple)) else []


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs agree."""
    return len(one) == len(other) and all(
        a.shape == b.shape and bool(torch.allclose(a, b, rtol=0, atol=close(a) * float(size(a)), equal_nan=True))
        for a, b in zip(one, other, strict=True)
    )


def size(x: Tensor) -> float:
    """The largest finite number, at least a little."""
    finite = x[x.isfinite()]
    return max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-3)


def watched(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Session]:
    """What a watched pass gives, and its session."""
    with watch(model, [Entropy(), Distance()], keep=1e9) as session:
        return run(model, inputs), session


def check_watch(row: Row, model: PreTrainedModel, inputs: dict[str, Tensor]) -> str:
    plain = run(model, inputs)
    out, session = watched(model, inputs)
    row.layers = len(session.layers)
    if not same(plain, out):
        raise Fault("wrong", f"the watched output is {apart(plain, out):.0e} off")
    compare(session, own(model, inputs, plain))
    return "right"


def own(model: PreTrainedModel, inputs: dict[str, Tensor], plain: list[Tensor]) -> list[Weights]:
    """The model's own weights: of its eager attention, unless that gives other outputs than it runs with."""
    try:
        out, weights = truth(model, inputs)
    except Exception:  # some models cannot run their eager attention
        return truth(model, inputs, eager=False)[1]
    return weights if same(plain, flat(out)) else truth(model, inputs, eager=False)[1]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest error of one output beside another, relative to its largest number."""
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a.shape == b.shape]
    return max((float((a - b).abs().nan_to_num().max()) / size(a) for a, b in pairs if a.numel()), default=float("inf"))


def whole(session: Session, layer: int) -> Tensor:
    """A of a layer's last call ``(batch, heads, n, m)``."""
    source, rows = session.maps[layer], None
    if isinstance(source, AttentionMap):
        rows = torch.arange(source.call.n)
        strip = source.strip(rows)
        weights = strip.weights.new_zeros(*strip.weights.shape[:3], source.call.m)
        weights[..., strip.start : strip.start + strip.weights.shape[3]] = strip.weights
        return weights
    return source.weights(torch.arange(source.n))


def compare(session: Session, wanted: list[Weights], queries: Tensor | None = None) -> None:
    """Raises what is wrong or left out beside the model's own weights, ``wanted``, on the real ``queries (b, n)``."""
    left = list(wanted)
    for layer in session.layers:
        if layer.mechanism != "softmax":
            continue
        found = whole(session, layer.index)
        share = found.sum(3, keepdim=True) if layer.sinks else None
        errors = [difference(found, other.weights, queries, share) for other in left]
        best = min(range(len(left)), key=lambda i: errors[i][0], default=None)
        if best is None or not errors[best][0] <= close(found):
            nearest = errors[best][0] if best is not None else float("inf")
            off = (
                "no softmax of its shape" if nearest == float("inf") else f"{nearest:.0e} off the nearest of its shape"
            )
            raise Fault("wrong", f"{layer.name}: A is {off}")
        left.pop(best)
        if queries is None:
            exact = errors[best][1].double()
            for name, value in (("entropy", entropy(exact)), ("distance", distance(exact))):
                off = float((session[name][layer.index].value - value).abs().max())
                if not off <= NEAR * (1 + float(value.abs().max())):
                    raise Fault("wrong", f"{layer.name}: {name} is {off:.0e} off its own weights'")
    left = [one for one in left if one.sure and one.weights.shape[3] > 1]  # over a single key, A is one
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise Fault("partial", f"{left[0].place}{more}: {tuple(left[0].weights.shape)} not seen")


def difference(found: Tensor, own: Tensor, queries: Tensor | None, share: Tensor | None = None) -> tuple[float, Tensor]:
    """The largest error on the real queries, infinite for other shapes, and ``own`` without columns of sinks.

    Where a model takes the sinks' mass from its outputs instead of its weights, ``share`` is what they leave a row.
    """
    width = found.shape[3]
    if found.shape[:3] != own.shape[:3] or not width <= own.shape[3] <= width + SPARE * width:
        return float("inf"), own
    offs = []
    parts = [own[..., :width], own[..., own.shape[3] - width :]]
    parts += [] if share is None or own.shape[3] > width else [own * share]
    for part in parts:
        off = (found - part).abs().amax(3)
        if queries is not None and queries.shape == (off.shape[0], off.shape[2]):
            off = off.masked_fill(~queries[:, None], 0)
        elif queries is not None and len(queries) == len(off) and off.shape[2] > queries.shape[1]:
            off = off.masked_fill(~queries.all(1)[:, None, None], 0)  # tokens of the model's own stand beside the given
        offs.append((float(off.max()), part))
    return min(offs, key=lambda one: one[0])


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy of a head's rows."""
    return torch.special.entr(weights).sum(3).mean((0, 2))


def distance(weights: Tensor) -> Tensor:
    """Mean of i − j under A of each head."""
    i, j = (torch.arange(count, dtype=weights.dtype) for count in weights.shape[2:])
    return (weights * (i[:, None] - j)).sum(3).mean((0, 2))


def check_padding(model: PreTrainedModel, inputs: dict[str, Tensor]) -> str:
    """Padded batches, by their own eager weights and, where the model itself keeps padding apart, by single texts."""
    pad = 0
    for side in ("right", "left"):
        keys = torch.ones(BATCH, LENGTH, dtype=torch.bool)
        gap = slice(SHORT, None) if side == "right" else slice(0, LENGTH - SHORT)
        keys[0, gap] = False
        padded = inputs | {"input_ids": inputs["input_ids"].masked_fill(~keys, pad), "attention_mask": keys.long()}
        try:
            plain = run(model, padded)
        except Exception:
            continue
        out, session = watched(model, padded)
        real = [cut(part, keys) for part in plain]
        if not same(real, [cut(part, keys) for part in out]):
            raise Fault("wrong", f"padded on the {side}: output {apart(real, [cut(p, keys) for p in out]):.0e} off")
        compare(session, own(model, padded, plain), keys)
        singles = [one(padded, row, keys) for row in range(BATCH)]
        if all(kept_apart(plain, run(model, single), row, keys) for row, single in enumerate(singles)):
            pooled = [Entropy(), Distance()]
            for single in singles:
                with watch(model, pooled):
                    run(model, single)
            agree(session, {probe.name: probe.result() for probe in pooled}, f"padded on the {side}", "single texts")
    return "right"


def cut(part: Tensor, keys: Tensor) -> Tensor:
    """The real tokens of a part of an output, all of it where tokens are no axis."""
    return part[keys] if part.dim() > 2 and part.shape[:2] == keys.shape else part.flatten()[:0]


def one(padded: dict[str, Tensor], row: int, keys: Tensor) -> dict[str, Tensor]:
    """A single text of the batch without its padding."""
    return {
        name: value[row : row + 1][:, keys[row]] if value.shape[:2] == keys.shape else value[row : row + 1]
        for name, value in padded.items()
    }


def kept_apart(batch: list[Tensor], single: list[Tensor], row: int, keys: Tensor) -> bool:
    """Whether the model's own output of a text is the same with and without padding."""
    for a, b in zip(batch, single, strict=False):
        if a.dim() > 2 and a.shape[:2] == keys.shape:
            return same([a[row][keys[row]]], [b[0]])
    return False


def agree(session: Session, other: dict[str, Any], what: str, than: str) -> None:
    """Raises unless both have the same statistics."""
    for name, results in other.items():
        found = session[name]
        if found.keys() != results.keys():
            raise Fault("partial", f"{what}: layers {sorted(found)}, {than}: {sorted(results)}")
        for layer, result in results.items():
            off = float((found[layer].value - result.value).abs().max())
            if not off <= NEAR * (1 + float(result.value.abs().max())):
                raise Fault("wrong", f"{what}: {name} of layer {layer} is {off:.0e} off that of {than}")


def prompt(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What `generate` is called with."""
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    return given | {"max_new_tokens": MORE, "min_new_tokens": MORE, "do_sample": False, "num_beams": 1}


def generates(model: PreTrainedModel, inputs: dict[str, Tensor]) -> bool:
    """Whether the model itself generates from these inputs."""
    try:
        torch.manual_seed(0)
        return isinstance(model.generate(**prompt(model, inputs)), Tensor) if model.can_generate() else False
    except Exception:
        return False


def as_one_pass(model: PreTrainedModel, inputs: dict[str, Tensor], again: dict[str, Tensor]) -> bool:
    """Whether the model itself generates a token at a time, and with the logits of one pass over all of them."""
    lengths: list[int] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        lengths.append(next(kwargs[key].shape[1] for key in ("decoder_input_ids", "input_ids") if key in kwargs))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        torch.manual_seed(0)
        steps = model.generate(**prompt(model, inputs), output_logits=True, return_dict_in_generate=True).logits
        logits = model(**again).logits[:, -len(steps) :]
    except Exception:  # some inputs have a length that does not grow with the text
        return False
    finally:
        handle.remove()
    return all(length == 1 for length in lengths[1:-1]) and same([torch.stack(steps, 1)], [logits])


@torch.no_grad()
def check_generate(model: PreTrainedModel, inputs: dict[str, Tensor]) -> str:
    """Generation under a watch beside the model's own, and its statistics beside those of one pass."""
    torch.manual_seed(0)
    plain = model.generate(**prompt(model, inputs))
    torch.manual_seed(0)
    with watch(model, [Entropy(), Distance()]) as session:
        out = model.generate(**prompt(model, inputs))
    if not torch.equal(plain, out):
        raise Fault("wrong", "other tokens are generated")
    key = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    if out.dim() != 2 or (key == "input_ids" and out.shape[1] != LENGTH + MORE):
        return "–"
    again = inputs | {key: out[:, :-1]}
    if key == "input_ids" and "attention_mask" in inputs:
        again["attention_mask"] = torch.ones_like(again["input_ids"])
    if not as_one_pass(model, inputs, again):
        return "–"
    agree(session, watched(model, again)[1].results(), "generated", "one pass")
    return "right"


def check_swap(model: PreTrainedModel, inputs: dict[str, Tensor]) -> str:
    """Softmax in place of the model's softmax."""
    plain = run(model, inputs)
    with swap(model, "softmax"):
        out = run(model, inputs)
    if not same(plain, out):
        raise Fault("wrong", f"with its own softmax swapped in, the output is {apart(plain, out):.0e} off")
    if "input_ids" in inputs and generates(model, inputs):
        torch.manual_seed(0)
        alone = model.generate(**prompt(model, inputs))
        torch.manual_seed(0)
        with swap(model, "softmax"):
            swapped = model.generate(**prompt(model, inputs))
        if not torch.equal(alone, swapped):
            raise Fault("wrong", "with its own softmax swapped in, other tokens are generated")
    return "right"


def state(model: PreTrainedModel) -> Any:
    """What must be the same afterwards: implementations, hooks and attributes."""
    hooks = [
        (len(module._forward_hooks), len(module._forward_pre_hooks), sorted(vars(module))) for module in model.modules()
    ]
    return [config._attn_implementation for config in configurations(model)], hooks


def spread(model: nn.Module) -> None:
    """Weights large enough that attention is far from even, and no two biases are the same."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.dim() > 1:
                wanted = 1.2 * (parameter[0].numel()) ** -0.5 if "embed" not in name else 0.7
                parameter.copy_(torch.randn_like(parameter) * max(wanted, float(parameter.std().nan_to_num())))
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


@torch.no_grad()
def calm(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    """Runs the model, with smaller weights where its numbers grow from layer to layer."""
    for _ in range(6):
        parts = run(model, inputs)
        if any(bool(part.isnan().any()) for part in parts):
            raise ValueError("the model gives numbers that are none")
        largest = max((size(part) for part in parts), default=0.0)
        if largest < GROWN:
            return
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dim() > 1:
                parameter.mul_(0.7)
