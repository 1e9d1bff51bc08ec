"""What a tensor has of a softmax that was computed before: where the weights are in it, and where they meet values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

PRODUCTS = {"matmul", "bmm", "__matmul__", "__rmatmul__", "baddbmm", "einsum"}
ENTRYWISE = {
    "add", "__add__", "__radd__", "bfloat16", "clone", "contiguous", "conv2d", "copy_", "detach", "div", "double",
    "dropout", "dropout_", "__truediv__", "expand", "float", "half", "linear", "masked_fill", "masked_fill_", "mul",
    "__mul__", "__rmul__", "mul_", "__imul__", "multiply", "nan_to_num", "to", "type", "type_as", "where",
}  # fmt: skip
"""Functions that leave every weight in its place, or mix heads."""
WEIGHING = {"mul", "__mul__", "__rmul__", "mul_", "__imul__", "multiply"}
RESHAPING = {"flatten", "reshape", "unflatten", "view"}


@dataclass
class Source:
    """One softmax: the module that computed it, its scores, and whether it was read as A."""

    module: nn.Module
    scores: Tensor
    read: bool = False


@dataclass(frozen=True)
class Trace:
    """What a tensor has of a softmax.

    Args:
        source: the softmax. key: its axis, counted from the end; None where the weights are not whole in it any more.
        plain: whether the entries stand in the order of the scores. product: whether it is A v already.
        weighed: whether the weights were multiplied with another tensor entry by entry.
    """

    source: Source
    key: int | None
    plain: bool = True
    product: bool = False
    weighed: bool = False


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among values and lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


def moved(name: str, trace: Trace, given: Tensor, args: tuple[Any, ...], result: Tensor) -> Trace:
    """What the result of a function has of the softmax that ``given``, its operand, had."""
    key = trace.key
    if key is None:
        return replace(trace, weighed=trace.weighed or name in WEIGHING)
    weighed = trace.weighed or (name in WEIGHING and sum(1 for _ in tensors(args)) > 1)
    if name in ENTRYWISE:
        whole = result.shape == given.shape or name == "expand"
        return replace(trace, key=key if whole else None, weighed=weighed)
    if name in RESHAPING:
        whole = result.dim() >= -key and result.shape[key:] == given.shape[key:]
        return replace(trace, key=key if whole else None)
    axes = placed(name, given.dim(), args)
    if axes is None:
        sliced = name == "__getitem__" and result.dim() == given.dim()
        return replace(trace, key=key if sliced else None, plain=False)
    plain = trace.plain and [axis for axis in axes if axis is not None] == list(range(given.dim()))
    found = axes.index(given.dim() + key) if given.dim() + key in axes else None
    return replace(trace, key=None if found is None else found - len(axes), plain=plain)


def placed(name: str, dim: int, args: tuple[Any, ...]) -> list[int | None] | None:
    """The axes of the result of a function that only moves them, as those of its operand; None for another function."""
    given = args[1:]
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = tuple(given[0])
    if not all(isinstance(axis, int) for axis in given):
        return None
    axes: list[int | None] = list(range(dim))
    if name in ("transpose", "swapaxes") and len(given) == 2:
        one, other = given
        axes[one], axes[other] = axes[other], axes[one]
        return axes
    if name == "permute" and len(given) == dim:
        return [axis % dim for axis in given]
    if name == "unsqueeze" and len(given) == 1:
        axes.insert(given[0] % (dim + 1), None)
        return axes
    if name == "squeeze" and len(given) == 1:
        del axes[given[0]]
        return axes
    return None


def contracted(name: str, args: tuple[Any, ...], factors: list[Tensor], which: int, trace: Trace) -> Tensor | None:
    """A ``(…, n, m)`` of a product that sums its m keys, ``factors[which]`` being what was traced; None for another."""
    weights, other = factors[which], factors[1 - which]
    if trace.key is None:
        return None
    if name == "einsum":
        return contracted_letters(args[0], weights, other, which, trace.key) if isinstance(args[0], str) else None
    if other.dim() != weights.dim() or any(
        b not in (1, a) for a, b in zip(weights.shape, other.shape[:-2], strict=False)
    ):
        return None
    left = (which == 0) != (name == "__rmatmul__")
    if trace.key != (-1 if left else -2):
        return None
    return weights if left else weights.mT


def contracted_letters(equation: str, weights: Tensor, other: Tensor, which: int, key: int) -> Tensor | None:
    """The same of a sum in Einstein's notation: axes that both and the result have are batch and heads, in order."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    if not arrow or len(names) != 2:
        return None
    mine, others, out = (spelled(part, weights.dim(), names[which]) for part in (names[which], names[1 - which], out))
    shared = [letter for letter in mine if letter in others and letter in out]
    rows = [letter for letter in mine if letter not in others and letter in out]
    keys = [letter for letter in mine if letter in others and letter not in out]
    if len(rows) != 1 or keys != [mine[key]] or not shared or len(others) != other.dim():
        return None
    return weights.permute([mine.index(letter) for letter in [*shared, *rows, *keys]])


def spelled(letters: str, dim: int, of: str) -> str:
    """The axes of a factor with letters of their own for the dots, as many as the factor ``of`` has under its own."""
    return letters.replace("...", "".join(str(step) for step in range(dim - len(of.replace("...", "")))))
