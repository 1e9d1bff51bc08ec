"""The states around a model's attention: what comes into each block, and what its attention and its MLP add to that.

    resid_out = resid_in + attn + mlp

Which of a block's modules give ``attn`` and ``mlp`` is found by trying: the first block is run once more by itself, and
those two are taken whose outputs make the sum hold. So sequential and parallel blocks and norms after a part are
followed without a line for any architecture; a block of which no two modules do so is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regard.core.edit import Edit, Place, uses
from regard.core.errors import wrong
from regard.hosts import caches
from regard.hosts.forward_pass import recomputing
from regard.hosts.places import tokens_of

if TYPE_CHECKING:
    from regard.hosts.attachment import Attachment

CLOSE, CLOSE_HALF = 1e-4, 2e-2
"""How far the sum may be off, of the largest entry, in float32 and in half precision."""
TRIED_ROWS = 64
"""Tokens of the first sequence by which the parts of a block are found."""
DEPTH = 2
"""How deep inside a block its parts are looked for."""
PROJECTED = {"q_pre", "k_pre"}
"""Parts that modules of the attention give, which are called ``q_proj`` and ``k_proj`` where they are apart."""


@dataclass
class Block:
    """One block of a model.

    Args:
        name, module: of the block. attention: names of the modules in it that call the attention interface.
        last: whether no other block follows it in its stack. parts: its modules that give ``attn`` and ``mlp``.
        given: what came into it in the running call. added: what its parts gave. layer: its index there, or before.
        checked: whether the sum was found to hold.
    """

    name: str
    module: nn.Module
    attention: list[str]
    last: bool
    parts: dict[str, str] = field(default_factory=dict)
    given: Tensor | None = None
    added: dict[str, Tensor] = field(default_factory=dict)
    layer: int = 0
    checked: bool = False


def calls_interface(module: nn.Module) -> bool:
    """Whether a module's own code looks an attention function up."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def blocks_of(model: nn.Module) -> Iterator[Block]:
    """The blocks that hold attention modules: the nearest ancestors of these that are one of a list."""
    modules, found = dict(model.named_modules()), {}
    for name, module in modules.items():
        if not calls_interface(module):
            continue
        steps = name.split(".")
        paths = [".".join(steps[:length]) for length in range(len(steps), 0, -1)]
        block = next((path for path in paths if isinstance(modules[parent(path)], nn.ModuleList)), None)
        if block is not None:
            found.setdefault(block, []).append(name)
    for name, attention in found.items():
        stack, _, index = name.rpartition(".")
        yield Block(
            name,
            modules[name],
            attention,
            not any(
                other.rpartition(".")[0] == stack and int(other.rpartition(".")[2]) > int(index) for other in found
            ),
        )


def projection(block: Block, part: str) -> nn.Module:
    """The module of a block's attention that gives queries or keys before positions.

    Raises:
        ValueError: it has none of that name.
    """
    name = part[0] + "_proj"
    found = getattr(block.module.get_submodule(block.attention[0].removeprefix(f"{block.name}.")), name, None)
    if len(block.attention) > 1 or not isinstance(found, nn.Module):
        what = f"{block.name}, whose one attention has no module {name!r} of its own"
        raise wrong("edits", what, "edits of 'resid', or of queries, values or heads there")
    return found


def parent(path: str) -> str:
    """The path of the module that holds another."""
    return path.rpartition(".")[0]


class Sites:
    """Hooks in the blocks of a model by which edits of hidden states act, until `remove`.

    Args:
        attachment: that the edits are of. edits: those with `hidden`.
    """

    def __init__(self, attachment: Attachment, edits: Sequence[Edit]) -> None:
        self.attachment, self.edits = attachment, [edit for edit in edits if uses(edit, "hidden") and edit.parts]
        self.handles: list[Any] = []
        self.wanted = {part for edit in self.edits for part in edit.parts}
        if not self.edits:
            return
        self.blocks = list(blocks_of(attachment.model))
        if not self.blocks:
            what = f"{type(attachment.model).__name__}, which has no list of blocks with attention in them"
            raise wrong("edits", f"an edit of hidden states, {what}", "edits of queries, values or heads")
        projected = [
            (block, part, projection(block, part)) for block in self.blocks for part in sorted(PROJECTED & self.wanted)
        ]
        for block in self.blocks:
            self.handles.append(block.module.register_forward_pre_hook(self.enter(block), with_kwargs=True))
            self.handles.append(block.module.register_forward_hook(self.leave(block)))
        for block, part, module in projected:
            self.handles.append(module.register_forward_hook(self.listen(block, part)))

    def remove(self) -> None:
        """Takes the hooks out."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def enter(self, block: Block) -> Callable[..., Any]:
        """The hook before a block."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.attachment.silent:
                return None
            x = args[0] if args else kwargs["hidden_states"]
            if not isinstance(x, Tensor) or x.dim() != 3:
                what = f"{block.name}, whose states are no (batch, tokens, channels)"
                raise wrong("edits", what, "edits of queries, values or heads there", RuntimeError)
            if {"attn", "mlp"} & self.wanted and not block.parts:
                self.find_parts(block, x, args, kwargs)
            block.layer = self.layer_of(block)
            block.given, block.added = self.edited("resid", x, block, block.layer), {}
            if block.given is x:
                return None
            if args:
                return (block.given, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": block.given}

        return hook

    def leave(self, block: Block) -> Callable[..., Any]:
        """The hook after a block."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.attachment.silent:
                return None
            out = first(output)
            if not recomputing():
                self.check_layer(block)
                self.check_sum(block, out)
            block.given, block.added = None, {}
            if not block.last or "resid" not in self.wanted:
                return None
            fresh = self.edited("resid", out, block, block.layer + 1)
            return None if fresh is out else instead(output, fresh)

        return hook

    def listen(self, block: Block, part: str) -> Callable[..., Any]:
        """The hook after a part of a block."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.attachment.silent:
                return None
            x = first(output)
            fresh = self.edited(part, x, block, block.layer)
            if not recomputing():
                block.added[part] = fresh
            return None if fresh is x else instead(output, fresh)

        return hook

    def edited(self, part: str, x: Tensor, block: Block, layer: int) -> Tensor:
        """States of one part after the edits of them."""
        edits = [edit for edit in self.edits if part in edit.parts and edit.where.takes(layer)]
        if edits:
            place = self.place(part, x, block.name, layer, layer - block.layer)
            for edit in edits:
                if (fresh := edit.hidden(x, place)) is not None:
                    x = torch.where(edit.where.chosen_rows(place)[..., None], fresh.to(x.dtype), x)
        return x

    def place(self, part: str, x: Tensor, name: str, layer: int, beyond: int = 0) -> Place:
        """What edits are told of a part's states in the module of this name, or so many layers ``beyond`` it."""
        attachment, key = self.attachment, f"{name} {part} {beyond}"
        batch, n = x.shape[:2]
        if recomputing():
            return attachment.places.recall(key, lambda known: (known.n, len(known.keys)) == (n, batch))
        inside = attachment.passes.stack[-1]
        past, stop = inside.past, inside.past + n
        real = torch.ones(batch, stop, dtype=torch.bool, device=x.device)
        if inside.keys is not None and len(inside.keys) == batch and inside.keys.shape[1] >= stop:
            real = inside.keys[:, :stop].to(x.device)
        rows, tokens = torch.arange(past, stop, device=x.device), tokens_of(inside, real)
        sequence = attachment.passes.sequence
        notes = attachment.passes.notes
        place = Place(layer, 0, 0, rows, 0, real[:, past:], real, tokens, False, sequence, part, notes=notes)
        attachment.remember(key, place)
        return place

    def layer_of(self, block: Block) -> int:
        """The index that the attention of a block has, or will have when it is called for the first time."""
        return self.attachment.layer_of(block.attention[0])

    def check_layer(self, block: Block) -> None:
        """Refuses a block that ran without the attention by which its layer is counted."""
        called = [
            index for name, index in self.attachment.order.items() if name.partition("#")[0] == block.attention[0]
        ]
        if block.layer not in called:
            what = f"{block.name}, which ran without calling its attention"
            raise wrong("edits", what, "edits of queries, values or heads in this model", RuntimeError)

    def check_sum(self, block: Block, out: Tensor) -> None:
        """Refuses a block whose parts do not add up to what it gives."""
        if block.checked or not {"attn", "mlp"} & self.wanted or block.given is None:
            return
        parts = [block.added.get(part) for part in ("attn", "mlp")]
        attn, mlp = parts
        if attn is None or mlp is None or not sums(block.given.detach(), attn.detach(), mlp.detach(), out.detach()):
            raise no_sum(block)
        block.checked = True

    def find_parts(self, block: Block, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finds which modules give a block's parts, and listens to them in all blocks that have the same."""
        found = parts_of(self.attachment, block, x, args, kwargs)
        for other in self.blocks:
            inside = dict(other.module.named_modules())
            if type(other.module) is type(block.module) and not other.parts and set(found.values()) <= set(inside):
                other.parts = found
                for part, name in found.items():
                    self.handles.append(inside[name].register_forward_hook(self.listen(other, part)))


@torch.no_grad()
def parts_of(
    attachment: Attachment, block: Block, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, str]:
    """The modules of a block whose outputs are ``attn`` and ``mlp``, found by running it once more without its past."""
    order: dict[str, Tensor] = {}

    def hear(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            value = first(output)
            if isinstance(value, Tensor) and value.shape == x.shape:
                order.pop(name, None)
                order[name] = value[:1, -TRIED_ROWS:]

        return hook

    near = [(name, inner) for name, inner in block.module.named_modules() if name and name.count(".") < DEPTH]
    handles = [inner.register_forward_hook(hear(name)) for name, inner in near]
    attachment.silent, training = True, block.module.training
    try:
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            block.module.eval()
            plain = [None if caches.is_cache(value) else value for value in args]
            named = {name: None if caches.is_cache(value) else value for name, value in kwargs.items()}
            out = first(block.module.forward(*plain, **named))[:1, -TRIED_ROWS:]
    finally:
        block.module.train(training)
        attachment.silent = False
        for handle in handles:
            handle.remove()
    given = x[:1, -TRIED_ROWS:]
    names = sorted(order, key=lambda name: (name.count("."), list(order).index(name)))
    attention = block.attention[0].removeprefix(f"{block.name}.")
    for attn, mlp in permutations(names, 2):
        if belongs(attn, mlp, attention, list(order)) and sums(given, order[attn], order[mlp], out):
            return {"attn": attn, "mlp": mlp}
    raise no_sum(block)


def belongs(attn: str, mlp: str, attention: str, order: list[str]) -> bool:
    """Whether of two modules the first may give what attention adds: it is part of that, or follows it sooner."""

    def own(name: str) -> bool:
        return f"{name}.".startswith(f"{attention}.") or f"{attention}.".startswith(f"{name}.")

    if own(attn) or own(mlp):
        return own(attn) and not own(mlp)
    return order.index(attn) < order.index(mlp)


def sums(given: Tensor, attn: Tensor, mlp: Tensor, out: Tensor) -> bool:
    """Whether two parts and what came in add up to what came out."""
    most = CLOSE_HALF if torch.finfo(out.dtype).bits < 32 else CLOSE
    return bool((given + attn + mlp - out).abs().max() <= most * out.abs().max().clamp(min=1e-30))


def no_sum(block: Block) -> Exception:
    """What to raise where no two modules of a block add up."""
    what = (
        f"{block.name}, a {type(block.module).__name__}, which is no sum of its input and of what two parts of it give"
    )
    return wrong("edits", what, "edits of 'resid', or of queries, values or heads there", RuntimeError)


def first(output: Any) -> Any:
    """The states in what a module gives."""
    return output[0] if isinstance(output, tuple | list) else output


def instead(output: Any, fresh: Tensor) -> Any:
    """What a module gives, with other states in it."""
    return type(output)([fresh, *output[1:]]) if isinstance(output, tuple | list) else fresh
