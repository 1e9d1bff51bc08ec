"""Networks of timm as ours: the design read from the module, the weights under our names, the same logits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regard.core.errors import wrong
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.vision import davit, mambaout, maxvit, shvit, swin, twins

PLACE = re.compile(r"stages\.(\d+)\.(down|blocks\.(\d+)\.(\d+))\.(.*)")
"""A parameter's name here: stage, step down or block and step, and the rest."""
Renamed = str | tuple[str, int, int] | tuple[str, str]
"""A name there; with the number of a part and of all parts of its rows; or what is done to it."""


@dataclass(frozen=True)
class Family:
    """How networks of one class of timm are read.

    Args:
        design: of the module. ends: names here and there of what is outside of stages. inside: a name in a stage, of
            its stage, block (None for the step down), step and rest.
    """

    design: Callable[[Any], Design]
    ends: dict[str, str]
    inside: Callable[[int, int | None, int, str], Renamed]


def from_timm(model: nn.Module) -> Stages:
    """The hierarchical network of timm as a `Stages` with the same weights and the same logits.

    ``DaVit``, ``FocalNet``, ``SHViT``, ``MambaOut``, ``MaxxVit`` (MaxViT of TensorFlow's weights), ``Twins`` and
    ``SwinTransformer``, of any sizes. timm itself is not imported. At sides that windows do not divide ours hides
    padding, theirs are zeros.

    Raises:
        TypeError: another class. ValueError: a variant of one that is built otherwise; the message says how.
    """
    name = type(model).__name__
    if name not in FAMILIES:
        raise wrong("model", f"a {name}", f"one of timm's {', '.join(FAMILIES)}", TypeError)
    family, theirs = FAMILIES[name], dict(model.state_dict())
    try:
        design = family.design(model)
    except AttributeError as error:
        raise wrong("model", f"a variant of {name} ({error})", "the one of the paper") from error
    made = Stages(design, classes=last(model).out_features, channels=first(model).in_channels)
    made.load_state_dict(renamed(made.state_dict(), theirs, family))
    return made.train(model.training).to(first(model).weight)


def renamed(ours: dict[str, Tensor], theirs: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Their weights by our names, each used once.

    Raises:
        ValueError: a weight that is missing there, of another shape, or left over.
    """
    found, used = {}, set()
    for name, tensor in ours.items():
        place = PLACE.match(name)
        if place is None:
            prefix = next(prefix for prefix in family.ends if name.startswith(f"{prefix}."))
            there: Renamed = family.ends[prefix] + name.removeprefix(prefix)
        else:
            stage, _, block, step, rest = place.groups()
            own = rest if block is not None else name.split(".", 3)[3]
            there = family.inside(int(stage), None if block is None else int(block), int(step or 0), own)
        value = picked(theirs, resolved(there, theirs))
        if value.numel() != tensor.numel():
            raise wrong("model", f"{there} of shape {tuple(value.shape)}", f"{tuple(tensor.shape)}, as {name} has")
        found[name] = value.reshape(tensor.shape)
        used.add(there if isinstance(there, str) else resolved(there, theirs)[0])
    if left := set(theirs) - used:
        raise wrong("model", f"weights that stand nowhere here: {sorted(left)[:3]}", "those of the paper's network")
    return found


def resolved(there: Renamed, theirs: dict[str, Tensor]) -> Renamed:
    """The name under which queries, keys and values stand there: in one matrix, or queries apart."""
    if isinstance(there, tuple) and there[1] in range(3) and there[0] not in theirs and ".qkv." in there[0]:
        before, after = there[0].split(".qkv.")
        return (f"{before}.q.{after}", 0, 1) if there[1] == 0 else (f"{before}.kv.{after}", int(there[1]) - 1, 2)
    return there


def picked(theirs: dict[str, Tensor], there: Renamed) -> Tensor:
    """The tensor, or the part of it."""
    name = there if isinstance(there, str) else there[0]
    if name not in theirs:
        raise wrong("model", f"no weight {name}", "the network of the paper")
    if isinstance(there, str):
        return theirs[name]
    if there[1] == "flipped":
        return theirs[name].flip(1, 2)
    if there[1] == "turned":
        return theirs[name].mT
    return theirs[name].chunk(int(there[2]), 0)[int(there[1])]  # pyright: ignore[reportGeneralTypeIssues]


def translated(prefix: str, norm: str, body: str, rest: str, table: dict[str, str]) -> Renamed:
    """The name of a normed step's weight: its norm, γ, projections, and what the table has."""
    if rest.startswith("norm."):
        return f"{prefix}.{norm}.{rest.removeprefix('norm.')}"
    if rest == "scale":
        return f"{prefix}.{norm.replace('norm', 'ls')}.gamma"
    own = rest.removeprefix("step.")
    if projection := re.match(r"(?:attention\.)?projection\.([qkv])\.(.*)", own):
        return f"{prefix}.{body}.qkv.{projection[2]}", "qkv".index(projection[1]), 3
    for ours, there in {"attention.projection.out": "proj", "projection.out": "proj", **table}.items():
        if own.startswith(f"{ours}."):
            return f"{prefix}.{body}.{there}{own.removeprefix(ours)}"
    return f"{prefix}.{body}.{own}"


MLP = {"first": "fc1", "second": "fc2"}
NORMED = {"convolution": "c", "norm": "bn"}


def first(model: nn.Module) -> Any:
    """Its first convolution."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def last(model: nn.Module) -> Any:
    """Its last matrix."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def davit_inside(stage: int, block: int | None, step: int, rest: str) -> Renamed:
    if block is None:
        return f"stages.{stage}.downsample.{rest.replace('convolution', 'conv')}"
    prefix, place = f"stages.{stage}.blocks.{block}.{step // 4}", step % 4
    if place % 2 == 0:
        return f"{prefix}.cpe{1 + place // 2}.{rest.replace('step.convolution', 'proj')}"
    return translated(prefix, f"norm{1 + place // 2}", ("attn", "mlp")[place // 2], rest, MLP)


def davit_design(model: Any) -> Design:
    blocks = [stage.blocks[0] for stage in model.stages]
    plain = all(type(each[1].attn).__name__ == "ChannelAttention" for each in blocks)
    even = all(getattr(stage.downsample, "even_k", True) for stage in model.stages)
    if not (plain and even and isinstance(blocks[0][0].cpe1.act, nn.Identity) and blocks[0][0].mlp is not None):
        raise wrong("model", "a DaViT of another kind", "the paper's: channel attention by channels, kernels of 2")
    widths, heads = ([getattr(each[0].attn, what) for each in blocks] for what in ("dim", "num_heads"))
    return davit.design([len(stage.blocks) for stage in model.stages], widths, heads, blocks[0][0].window_size[0])


def focalnet_inside(stage: int, block: int | None, step: int, rest: str) -> Renamed:
    if block is None:
        return f"layers.{stage}.downsample.{rest.replace('convolution', 'proj')}"
    prefix, number = f"layers.{stage}.blocks.{block}", 1 + step
    if step:
        return translated(prefix, f"norm{number}", "mlp", rest, MLP)
    own = re.sub(r"convolutions\.(\d+)", r"focal_layers.\1.0", rest)
    table = {"first": "f", "modulator": "h", "last": "proj"}
    return translated(prefix, f"norm{number}", "modulation", own, table)


def focalnet_design(model: Any) -> Design:
    blocks = [stage.blocks[0] for stage in model.layers]
    parts = [each.modulation for each in blocks]
    if blocks[0].use_post_norm or parts[0].normalize_modulator or first(model).kernel_size != (4, 4):
        raise wrong("model", "a FocalNet with norms behind or patches that overlap", "tiny, small or base")
    layers = tuple(
        f"(focal(levels={part.focal_level}, window={part.focal_window}) + mlp)*{len(stage.blocks)}"
        for part, stage in zip(parts, model.layers, strict=True)
    )
    scale = None if isinstance(blocks[0].ls1, nn.Identity) else 1.0
    return Design(tuple(part.dim for part in parts), layers, scale=scale)


def normed(name: str) -> str:
    """A convolution with its batch norm, as SHViT calls them."""
    return re.sub(r"\bnorm\.(?=[^.]*$)", "bn.", name.replace("convolution.", "c."))


def shvit_inside(stage: int, block: int | None, step: int, rest: str) -> Renamed:
    perceptron = {"first": "pw1", "second": "pw2"}
    if block is None:
        prefix, (part, _, own) = f"stages.{stage}.downsample", rest.partition(".")
        if part in ("before", "after"):
            place, _, own = own.partition(".step.")
            number = int(place) + (3 if part == "after" else 0)
            for ours, there in perceptron.items():
                own = re.sub(f"^{ours}\\.", f"{there}.", own)
            return f"{prefix}.{number}.m.{normed(own)}"
        if part == "gate":
            return f"{prefix}.2.se.{own.removeprefix('mix.').replace('first', 'fc1').replace('second', 'fc2')}"
        return f"{prefix}.2.{ {'first': 'conv1', 'second': 'conv2', 'third': 'conv3'}[part] }.{normed(own)}"
    prefix, own = f"stages.{stage}.blocks.{block}", rest.removeprefix("step.")
    if step == 0:
        return f"{prefix}.conv.m.{normed(own)}"
    part, _, tail = own.partition(".")
    if part in perceptron:
        return f"{prefix}.ffn.m.{perceptron[part]}.{normed(tail)}"
    if part == "first_norm":
        return f"{prefix}.mixer.m.pre_norm.{tail}"
    return f"{prefix}.mixer.m.{ {'qkv': 'qkv', 'out': 'proj.1'}[part] }.{normed(tail)}"


def shvit_design(model: Any) -> Design:
    blocks = [stage.blocks[0] for stage in model.stages]
    parts = [getattr(getattr(each.mixer, "m", None), "pdim", None) for each in blocks]
    widths = [each.conv.m.c.in_channels for each in blocks]
    return shvit.design([len(stage.blocks) for stage in model.stages], widths, parts)


def mambaout_inside(stage: int, block: int | None, step: int, rest: str) -> Renamed:
    if block is None:
        return f"stages.{stage}.downsample.{rest.replace('convolution', 'conv')}"
    own = rest.removeprefix("step.").replace("convolution", "conv").replace("first", "fc1").replace("second", "fc2")
    return f"stages.{stage}.blocks.{block}.{own}"


def mambaout_design(model: Any) -> Design:
    if type(model.head).__name__ != "MlpHead" or not isinstance(model.stages[0].blocks[0].ls, nn.Identity):
        raise wrong("model", "a MambaOut with another head or scales", "femto, kobe, tiny, small or base")
    widths = [stage.blocks[0].conv.in_channels for stage in model.stages]
    return mambaout.design([len(stage.blocks) for stage in model.stages], widths)


BOTTLENECK = {
    "norms.0": "pre_norm",
    "norms.1": "norm1",
    "norms.2": "norm2",
    "first": "conv1_1x1",
    "second": "conv2_kxk",
    "third": "conv3_1x1",
    "skip": "shortcut.expand",
    "gate.mix.first": "se.fc1",
    "gate.mix.second": "se.fc2",
}


def maxvit_inside(stage: int, block: int | None, step: int, rest: str) -> Renamed:
    prefix = f"stages.{stage}.blocks.{block or 0}"
    if block is None or (block and step == 0):
        own = rest.removeprefix("block.")
        ours = max((name for name in BOTTLENECK if own.startswith(f"{name}.")), key=len)
        return f"{prefix}.conv.{BOTTLENECK[ours]}{own.removeprefix(ours)}"
    place = step - (1 if block else 0)
    part = f"{prefix}.{('attn_block', 'attn_grid')[place // 2]}"
    if rest.endswith("mechanism.table"):
        return f"{part}.attn.rel_pos.relative_position_bias_table", "flipped"
    return translated(part, f"norm{1 + place % 2}", ("attn", "mlp")[place % 2], rest, MLP)


def maxvit_design(model: Any) -> Design:
    blocks = [stage.blocks[0] for stage in model.stages]
    if any(type(each.attn_block.attn.rel_pos).__name__ != "RelPosBiasTf" for each in blocks):
        raise wrong("model", "a MaxViT of another kind", "one of TensorFlow's: maxvit_tiny_tf_224 and its like")
    widths = [each.attn_block.norm1.weight.shape[0] for each in blocks]
    attention = blocks[0].attn_block.attn
    window = blocks[0].attn_block.partition_size[0]
    depths = [len(stage.blocks) for stage in model.stages]
    return maxvit.design(depths, widths, attention.dim_head, window, model.stem.out_chs)


def twins_inside(stage: int, block: int | None, step: int, rest: str) -> Renamed:
    if block is None:
        return f"patch_embeds.{stage}.{rest.replace('convolution', 'proj')}"
    if step == 2:
        return f"pos_block.{stage}.{rest.replace('step.convolution', 'proj.0')}"
    table = {**MLP, "summary": "sr", "norm": "norm"}
    return translated(f"blocks.{stage}.{block}", f"norm{1 + step}", ("attn", "mlp")[step], rest, table)


def twins_design(model: Any) -> Design:
    blocks = [stage[0] for stage in model.blocks]
    windows = [getattr(each.attn, "ws", None) for each in blocks]
    ratios = [getattr(stage[-1].attn, "sr_ratio", 1) for stage in model.blocks]
    widths, heads = list(model.embed_dims), [each.attn.num_heads for each in blocks]
    inner = [each.mlp.fc1.out_features // width for each, width in zip(blocks, widths, strict=True)]
    return twins.design(model.depths, widths, heads, windows[0], ratios, inner, first(model).kernel_size[0])


def swin_inside(stage: int, block: int | None, step: int, rest: str) -> Renamed:
    if block is None:
        return f"layers.{stage}.downsample.{rest.replace('matrix', 'reduction')}"
    prefix = f"layers.{stage}.blocks.{block}"
    if rest.endswith("mechanism.table"):
        return f"{prefix}.attn.relative_position_bias_table", "turned"
    return translated(prefix, f"norm{1 + step}", ("attn", "mlp")[step], rest, MLP)


def swin_design(model: Any) -> Design:
    blocks = [stage.blocks for stage in model.layers]
    sides = {each[0].window_size for each in blocks}
    moved = [each[-1].shift_size != (0, 0) for each in blocks if len(each) > 1]
    depths, side = [len(each) for each in blocks], blocks[0][0].window_size[0]
    if sides != {(side, side)} or not all(moved[:-1]) or first(model).kernel_size != (4, 4):
        raise wrong("model", f"a Swin of windows {sorted(sides)}", "square ones, the same in all stages, that move")
    last = bool(moved[-1]) if len(blocks[-1]) > 1 else False
    return swin.design(depths, blocks[0][0].norm1.weight.shape[0], blocks[0][0].attn.num_heads, side, last)


FAMILIES = {
    "DaVit": Family(
        davit_design,
        {
            "stem.convolution": "stem.conv",
            "stem.norm": "stem.norm",
            "head.norm": "head.norm",
            "head.classes": "head.fc",
        },
        davit_inside,
    ),
    "FocalNet": Family(
        focalnet_design,
        {"stem.convolution": "stem.proj", "stem.norm": "stem.norm", "head.norm": "norm", "head.classes": "head.fc"},
        focalnet_inside,
    ),
    "SHViT": Family(
        shvit_design,
        {f"stem.convolutions.{n}": f"patch_embed.{2 * n}.c" for n in range(4)}
        | {f"stem.norms.{n}": f"patch_embed.{2 * n}.bn" for n in range(4)}
        | {"head.norm": "head.bn", "head.classes": "head.l"},
        shvit_inside,
    ),
    "MambaOut": Family(
        mambaout_design,
        {f"stem.convolutions.{n}": f"stem.conv{n + 1}" for n in range(2)}
        | {f"stem.norms.{n}": f"stem.norm{n + 1}" for n in range(2)}
        | {
            "head.norm": "head.norm",
            "head.first": "head.pre_logits.fc",
            "head.again": "head.pre_logits.norm",
            "head.classes": "head.fc",
        },
        mambaout_inside,
    ),
    "MaxxVit": Family(
        maxvit_design,
        {
            "stem.first": "stem.conv1",
            "stem.norm": "stem.norm1",
            "stem.second": "stem.conv2",
            "head.norm": "head.norm",
            "head.first": "head.pre_logits.fc",
            "head.classes": "head.fc",
        },
        maxvit_inside,
    ),
    "Twins": Family(
        twins_design,
        {
            "stem.convolution": "patch_embeds.0.proj",
            "stem.norm": "patch_embeds.0.norm",
            "head.norm": "norm",
            "head.classes": "head",
        },
        twins_inside,
    ),
    "SwinTransformer": Family(
        swin_design,
        {
            "stem.convolution": "patch_embed.proj",
            "stem.norm": "patch_embed.norm",
            "head.norm": "norm",
            "head.classes": "head.fc",
        },
        swin_inside,
    ),
}
"""The classes of timm that are read, by their names."""
