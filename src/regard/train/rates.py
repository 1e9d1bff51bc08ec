"""Learning rates of their own for parts of a model, in the one loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from regard.core.errors import wrong
from regard.train.fit import Loss, Recipe, fit


@dataclass(frozen=True)
class Rates:
    """A recipe, and other learning rates for some of the parameters.

    Args:
        recipe: its rate is that of all others. own: pieces of parameters' names, each with the rate of those that have
            it at its highest; the first piece that a name has counts. All rates rise and fall together.

    Raises:
        ValueError: no pieces, or a rate that is not positive.
    """

    recipe: Recipe
    own: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        if not self.own or any(not rate > 0 for _, rate in self.own):
            raise wrong("own", str(self.own), "(piece of a name, rate above 0), one or more")

    def factors(self, model: nn.Module) -> dict[int, float]:
        """By the id of each trained parameter of its own rate, that rate over the recipe's.

        Raises:
            ValueError: a piece that no trained parameter's name has.
        """
        found, met = {}, set()
        for name, parameter in model.named_parameters():
            piece = next(((piece, rate) for piece, rate in self.own if piece in name), None)
            if piece is not None and parameter.requires_grad:
                met.add(piece[0])
                found[id(parameter)] = piece[1] / self.recipe.rate
        for piece, _ in self.own:
            if piece not in met:
                raise wrong("own", repr(piece), "a piece of a trained parameter's name, not told before it")
        return found


@dataclass(frozen=True)
class Named(Recipe):
    """A recipe that says the rates of parts too, by which a checkpoint is known."""

    own: tuple[tuple[str, float], ...] = ()


def fit_parts(model: nn.Module, loss: Loss, recipe: Recipe | Rates, *rest: Any, **named: Any) -> nn.Module:
    """`train.fit.fit` with a recipe that may have rates of parts.

    Args:
        rest, named: see `train.fit.fit`.

    Raises:
        ValueError, RuntimeError: as there, and what `Rates.factors` refuses.
    """
    if isinstance(recipe, Recipe):
        return fit(model, loss, recipe, *rest, **named)
    with stepping(recipe.factors(model)):
        return fit(model, loss, Named(**asdict(recipe.recipe), own=recipe.own), *rest, **named)


@contextmanager
def stepping(factors: dict[int, float]) -> Iterator[None]:
    """While open, optimisers step the parameters of these ids at so many times the rate of their groups.

    An optimiser's groups are parted for the step alone, so that its state is written and read as ever.
    """
    whole: dict[int, list[dict[str, Any]]] = {}

    def before(optimiser: Optimizer, *_: Any) -> None:
        whole[id(optimiser)] = optimiser.param_groups
        optimiser.param_groups = [part for group in optimiser.param_groups for part in parted(group, factors)]

    def after(optimiser: Optimizer, *_: Any) -> None:
        optimiser.param_groups = whole.pop(id(optimiser))

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def parted(group: dict[str, Any], factors: dict[int, float]) -> list[dict[str, Any]]:
    """A group of an optimiser as groups of one factor each."""
    by_factor: dict[float, list[nn.Parameter]] = {}
    for parameter in group["params"]:
        by_factor.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    return [{**group, "params": own, "lr": group["lr"] * factor} for factor, own in by_factor.items()]
