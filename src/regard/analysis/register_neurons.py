"""Registers without training: an extra token that takes over what few neurons write into patches of a ViT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by

Neuron = tuple[int, int]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a vision transformer, and the matrix of each that reads its neurons.

    Args:
        blocks: in order. down: of each the last matrix whose input is wider than its output.
    """

    blocks: tuple[nn.Module, ...]
    down: tuple[nn.Linear, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Blocks:
        """Those of the longest list of modules of one class that have such a matrix.

        Raises:
            ValueError: there is none.
        """
        best: tuple[nn.Module, ...] = ()
        for module in model.modules():
            if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > len(best):
                alike = len({type(each) for each in module}) == 1
                if alike and all(narrowing(each) for each in module):
                    best = tuple(module)
        if not best:
            raise wrong("model", f"a {type(model).__name__}", "one with a list of blocks, each with a perceptron")
        return cls(best, tuple(narrowing(block)[-1] for block in best))


def narrowing(block: nn.Module) -> list[nn.Linear]:
    """Its matrices whose input is wider than their output."""
    return [each for each in block.modules() if isinstance(each, nn.Linear) and each.in_features > each.out_features]


def largest(x: Tensor) -> Tensor:
    """The entry of the largest size over the tokens of ``(b, n, f)``, with its sign: ``(b, 1, f)``."""
    return x.gather(1, x.abs().argmax(1, keepdim=True))


def states_of(out: Any) -> Tensor:
    """The hidden states of what a block gives, which may be more than them."""
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def registers(
    model: nn.Module, neurons: Iterable[Neuron], count: int = 1, scale: float = 1, first: int = 1
) -> Iterator:
    """A context in which ``count`` more tokens hold what the ``neurons`` of a vision transformer do anywhere.

        a_register = scale · max_t a_t  (the largest in size, with its sign),   a_patch = 0,   a_first as it is

    The tokens come in as zeros before the first block and go after the last one, so that the model gives what it gives
    otherwise, of as many tokens. Every image of a batch has its own. Yields a list that has, after a pass, the tokens
    ``(b, count, width)`` as the last block left them.

    Args:
        model: of `Blocks`. neurons: ``(layer, neuron)`` each. count: of registers. scale: of what they hold. first: how
            many tokens before the patches are left alone, such as that of the class.

    Raises:
        ValueError: no register, or a neuron that there is not.

    Paper: Jiang et al., arXiv 2506.08010.
    """
    parts, seen = Blocks.of(model), []
    if count < 1:
        raise wrong("count", str(count), "at least 1")
    chosen: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        if not (0 <= layer < len(parts.blocks) and 0 <= neuron < parts.down[layer].in_features):
            raise wrong("neurons", str((layer, neuron)), f"layers below {len(parts.blocks)} and neurons that they have")
        chosen.setdefault(layer, []).append(neuron)

    def come(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x = given[0]
        return (torch.cat([x, x.new_zeros(x.shape[0], count, x.shape[2])], 1), *given[1:])

    def go(module: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        states = states_of(out)
        seen[:] = [states[:, -count:]]
        kept = states[:, :-count]
        return (kept, *out[1:]) if isinstance(out, tuple) else kept

    def moved(places: list[int]) -> Any:
        def move(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            x = given[0].clone()
            most = largest(x[:, :, places])
            x[:, first:, places] = 0
            x[:, -count:, places] = scale * most.to(x)
            return (x, *given[1:])

        return move

    with ExitStack() as stack:
        hooks = [parts.blocks[0].register_forward_pre_hook(come), parts.blocks[-1].register_forward_hook(go)]
        hooks += [parts.down[layer].register_forward_pre_hook(moved(places)) for layer, places in chosen.items()]
        for hook in hooks:
            stack.callback(hook.remove)
        yield seen


@torch.no_grad()
def seen_by(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the last block gives ``(b, n, width)``, and the neurons of each block ``(b, n, f)``."""
    parts, last, neurons = Blocks.of(model), [], []
    hooks = [parts.blocks[-1].register_forward_hook(lambda _module, _given, out: last.append(states_of(out)))]
    hooks += [down.register_forward_pre_hook(lambda _module, given: neurons.append(given[0])) for down in parts.down]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return last[0], neurons


@published(
    "register_neurons",
    family="vit",
    kind="analysis",
    row=76,
    title="Vision Transformers Don't Need Trained Registers",
    arxiv="2506.08010",
    year=2025,
    aliases=("test_time_registers",),
    fidelity="hand values",
    claim=(
        Claim(
            "of a vision transformer with planted outliers, it ranks the neurons first that write them",
            cells="vision_maps.outliers",
            holds="vision_maps.finds_the_planted",
        ),
        Claim(
            "with these in a register the largest norm of a patch falls at least five times and the register has it; "
            "as many random neurons change nothing",
            cells="vision_maps.outliers",
            holds="vision_maps.moves_the_outliers",
        ),
    ),
)
@shown_by(lambda: [Sample("by hand", scores, {"known": two_neurons})])
def scores(norms: Tensor, neurons: Sequence[Tensor], threshold: float = 30) -> Tensor:
    """How large each neuron is where tokens are outliers: ``(layers, f)``, the mean over images that have any.

        score = mean over images of  mean_{t: ‖x_t‖ > threshold} |a_t|

    Args:
        norms: ``(b, n)`` of the last block's states. neurons: of each layer ``(b, n, f)``.

    Raises:
        ValueError: no token is above the threshold.

    Paper: Jiang et al., arXiv 2506.08010. `register_neurons` does it for a model.
    """
    outliers = norms > threshold
    found = outliers.any(1)
    if not found.any():
        raise wrong("threshold", str(threshold), f"below the largest norm, {norms.max().item():.3g}")
    share = outliers[found].double()
    share = share / share.sum(1, keepdim=True)
    return torch.stack([torch.einsum("bn,bnf->f", share, each[found].double().abs()) for each in neurons]) / len(share)


def two_neurons() -> tuple[Tensor, Tensor]:
    """Two layers of three neurons, outliers at two of four tokens of one image of two: the means of their sizes."""
    norms = torch.tensor([[1.0, 50.0, 2.0, 40.0], [1.0, 2.0, 3.0, 4.0]])
    neurons = torch.zeros(2, 2, 4, 3)
    neurons[1, 0, 1, 2], neurons[1, 0, 3, 2], neurons[0, 0, 1, 0], neurons[0, 1, :, 1] = -8.0, 6.0, 3.0, 100.0
    want = torch.tensor([[1.5, 0.0, 0.0], [0.0, 0.0, 7.0]])
    return scores(norms, list(neurons), 30), want


def register_neurons(model: nn.Module, images: Tensor, most: int = 10, threshold: float = 30) -> list[Neuron]:
    """The neurons ``(layer, neuron)`` that are largest where tokens are outliers, the largest first: see `scores`.

    Args:
        model: of `Blocks`, in evaluation. images: a batch. most: how many. threshold: of the norms.
    """
    last, neurons = seen_by(model, images)
    found = scores(last.norm(dim=-1), neurons, threshold)
    width = found.shape[1]
    return [(place // width, place % width) for place in found.flatten().topk(most).indices.tolist()]
