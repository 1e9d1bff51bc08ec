"""The laws of networks: one sequence or image is what it is in a batch, and what attention shows is what it did.

What their examples are ``given``:

- ``inputs(batch, seed)``: random inputs of ``forward``, a tuple of tensors whose first axis is the batch;
- ``output``: the shape of what comes out, without the batch; a list of them where several maps do;
- ``again()``: another instance of the same sizes; None where the constructor's arguments with another seed make one;
- ``published``: ``(make, count)``, a model of the paper and how many parameters it has in millions, as printed there;
- ``inert``: names of parameters that the published network has and that nothing which comes out depends on;
- ``presets``: `Preset` of hierarchical networks by their names, each with the parameters and multiply-adds printed;
- ``counted``: False if ``flops`` has operations that PyTorch's counter does not know, such as Fourier transforms.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.core.kinds import Sample
from regard.core.mechanism import Mechanism, repeat_heads
from regard.laws.finding import Broken, Unclaimed, same
from regard.networks.base import Network, numbered
from regard.networks.lm import LM
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, is_printed
from regard.networks.stages.sizes import sizes, total

BATCH = 3
CLOSE = 1e-9
WIDE = torch.float64


class Fed:
    """A network under examination in float64, in evaluation mode, and inputs for it.

    Args:
        sample: the network. device: where to examine it.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.device, self.given = device, sample.given
        self.network: Network = copy.deepcopy(sample.thing).to(device, WIDE).eval()

    def run(self, *inputs: Tensor, **named: Any) -> Tensor:
        """What comes out; several maps as one row for each of the batch."""
        return joined(self.network(*inputs, **named))

    def inputs(self, batch: int = BATCH, seed: int = 0) -> list[Tensor]:
        """Inputs of the given kind, floating ones in float64."""
        found = self.given["inputs"](batch, seed)
        return [x.to(self.device, WIDE if x.is_floating_point() else None) for x in found]

    def takes(self, name: str) -> bool:
        """Whether ``forward`` has an argument of this name."""
        return name in inspect.signature(self.network.forward).parameters

    def another(self) -> Network:
        """One of the same sizes with other weights."""
        if "again" in self.given:
            return self.given["again"]().to(self.device, WIDE).eval()
        arguments = self.network.arguments
        return type(self.network)(**{**arguments, "seed": 7}).to(self.device, WIDE).eval()


def joined(out: Tensor | Sequence[Tensor]) -> Tensor:
    """One tensor of what comes out, a row for each of the batch where there are several."""
    return out if isinstance(out, Tensor) else torch.cat([each.flatten(1) for each in out], 1)


def shapes(subject: Fed) -> str:
    """The output has the shape that is told, is finite, and depends on what goes in."""
    found, told = subject.network(*subject.inputs()), subject.given["output"]
    came = tuple(found.shape) if isinstance(found, Tensor) else [tuple(each.shape) for each in found]
    wanted = [(BATCH, *each) for each in told] if isinstance(told, list) else (BATCH, *told)
    out = joined(found)
    if came != wanted or not out.isfinite().all():
        raise Broken(f"{came}, finite: {bool(out.isfinite().all())}, want finite {wanted}")
    if torch.equal(out, subject.run(*subject.inputs(seed=1))):
        raise Broken("other inputs give the same output")
    single = copy.deepcopy(subject.network).float()
    narrow = joined(single(*(x.float() if x.is_floating_point() else x for x in subject.inputs())))
    return f"{wanted}, {same(narrow, out, 1e-3, 'float32'):.0e} in float32"


def batch(subject: Fed) -> str:
    """Each row of a batch is what it is alone, wherever it stands in it."""
    inputs, worst = subject.inputs(), 0.0
    out = subject.run(*inputs)
    for row in range(BATCH):
        alone = subject.run(*(x[row : row + 1] for x in inputs))
        worst = max(worst, same(alone[0], out[row], CLOSE, f"row {row} alone"))
    turned = subject.run(*(x.flip(0) for x in inputs))
    return f"{max(worst, same(turned.flip(0), out, CLOSE, 'turned around')):.0e}"


def maps(subject: Fed) -> str:
    """A of each attention is shown, and is what was used: with A v for every mechanism, or what it is defined as
    where it is not linear in v, the output is the same."""
    network, inputs = subject.network, subject.inputs()
    before = subject.run(*inputs)
    shown = network.intermediates(*inputs)
    if not shown:
        raise Broken("no attention is shown")
    for name, weights in shown.items():
        if weights.dim() != 4 or not weights.isfinite().all() or not weights.any():
            raise Broken(f"{name}: {tuple(weights.shape)}, want finite (b, h, n, m) that is not all zeros")
    called: dict[str, None] = {}

    def by_definition(
        module: Mechanism, name: str, given: tuple[Any, ...], named: dict[str, Any], out: Tensor
    ) -> Tensor:
        called[call := numbered(called, name)] = None
        if call not in shown:
            raise Broken(f"{call}: not shown")
        if not module.traits.linear:
            return module.define(*given, **named)
        v = named["v"] if "v" in named else given[2]
        return shown[call].to(out) @ repeat_heads(v, out.shape[1])

    hooks = [
        module.register_forward_hook(
            lambda _, given, named, out, module=module, name=name: by_definition(module, name, given, named, out),
            with_kwargs=True,
        )
        for name, module in network.named_modules()
        if isinstance(module, Mechanism)
    ]
    try:
        error = same(subject.run(*inputs), before, CLOSE, "with A v from the maps")
    finally:
        for hook in hooks:
            hook.remove()
    same(subject.run(*inputs), before, 0.0 if before.device.type == "cpu" else CLOSE, "after a look")
    return f"{len(shown)} maps, {error:.0e}"


def gradients(subject: Fed) -> str:
    """The gradient reaches every parameter."""
    network = subject.network
    with torch.backends.cudnn.flags(enabled=False):  # whose recurrent layers have no gradients in evaluation
        out = subject.run(*subject.inputs())
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=WIDE).to(out))
    inert = set(subject.given.get("inert", ()))
    for name, weight in network.named_parameters():
        if name in inert:
            if weight.grad is not None and weight.grad.any():
                raise Broken(f"{name}: a gradient, want none of what is said to be inert")
        elif weight.grad is None or not weight.grad.isfinite().all() or not weight.grad.any():
            raise Broken(f"{name}: no gradient, or none that is finite and not zero")
    return f"of {sum(1 for _ in network.parameters()) - len(inert)} tensors"


def size(subject: Fed) -> str:
    """Parameters and multiply-adds are as many as the paper prints, and FLOPs by formula as many as PyTorch counts."""
    told = [misprinted(name, each) for name, each in subject.given.get("presets", {}).items()]
    if "published" in subject.given:
        make, millions = subject.given["published"]
        count = make().parameter_count / 1e6
        digits = len(str(millions).partition(".")[2])
        if round(count, digits) != millions:
            raise Broken(f"{count:.3f} million parameters, the paper prints {millions}")
        told.append(f"{count:.2f} million parameters")
    flops = getattr(subject.network, "flops", None)
    if flops is not None and subject.given.get("counted", True) and subject.device == "cpu":
        inputs = subject.inputs()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            subject.network(*inputs)
        formula = flops(inputs[0].shape[1], BATCH)
        if formula != counter.get_total_flops():
            raise Broken(f"{formula} FLOPs by formula, PyTorch counts {counter.get_total_flops()}")
        told.append(f"{formula} FLOPs")
    if not told:
        raise Unclaimed("no printed count, no formula")
    return ", ".join(told)


def misprinted(name: str, preset: Preset) -> str:
    """Broken where a network of this preset has other sizes than are printed, or than its public weights have."""
    with torch.device("meta"):
        made = Stages(preset.design)
    count, work = total(sizes(made, preset.side))
    printed = preset.parameters is None or is_printed(count, preset.parameters, 1e6)
    if preset.exact not in (None, count) or not printed:
        raise Broken(f"{name}: {count:,} parameters, want {preset.exact or ''} {preset.parameters or '–'} million")
    if preset.multiply_adds is not None and not is_printed(work, preset.multiply_adds, 1e9):
        raise Broken(f"{name}: {work / 1e9:.3f} G multiply-adds, printed {preset.multiply_adds}")
    return f"{name} {count / 1e6:.2f} M, {work / 1e9:.2f} G"


def saved(subject: Fed) -> str:
    """Weights written and read into another instance give the same output."""
    network, inputs = subject.network, subject.inputs()
    want = subject.run(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(network, LM):
            network.save_pretrained(folder)
            read = type(network).from_pretrained(folder).to(subject.device, WIDE)
        else:
            read = subject.another()
            if torch.equal(joined(read(*inputs)), want):
                raise Broken("another instance has the same output before the weights are read")
            file = Path(folder) / "model.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
            read.load_state_dict(load_file(file, device=subject.device))
    return f"{same(joined(read(*inputs)), want, 1e-12, 'read again'):.0e}"


def seeded(subject: Fed) -> str:
    """Of one seed the initial weights are the same whatever was drawn before, of another seed others."""
    kind, arguments = type(subject.network), subject.network.arguments
    if "seed" not in inspect.signature(kind).parameters:
        raise Unclaimed("no seed")

    def drawn(seed: int, before: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(before)
            made = kind(**{**arguments, "seed": seed})
        return torch.cat([each.detach().flatten() for each in made.parameters()])

    first = drawn(7, 0)
    if not torch.equal(first, drawn(7, 1)):
        raise Broken("initial weights of one seed differ")
    if torch.equal(first, drawn(8, 0)):
        raise Broken("initial weights of two seeds are the same")
    return f"{len(first):,} parameters"


def padding(subject: Fed) -> str:
    """What padding holds changes nothing, and a padded sequence is what it is alone."""
    if not subject.takes("key_mask"):
        raise Unclaimed("no padding")
    inputs, others, worst = subject.inputs(), subject.inputs(seed=1), 0.0
    n = inputs[0].shape[1]
    lengths = torch.tensor([n - 4, n, n - 7], device=subject.device)
    for side in ("right", "left"):
        steps = torch.arange(n, device=subject.device)
        keys = steps < lengths[:, None] if side == "right" else steps >= n - lengths[:, None]
        got = subject.network(*inputs, key_mask=keys)
        mixed = [
            torch.where(keys.view(BATCH, n, *[1] * (x.dim() - 2)), x, y) for x, y in zip(inputs, others, strict=True)
        ]
        changed = subject.network(*mixed, key_mask=keys)
        worst = max(worst, same(changed[keys], got[keys], 1e-12, f"other padding, {side}"))
        for row in range(BATCH):
            alone = subject.network(*(x[row, keys[row]][None] for x in inputs))[0]
            worst = max(worst, same(got[row, keys[row]], alone, CLOSE, f"row {row} alone, {side} padding"))
    return f"{worst:.0e}"


def decoding(subject: Fed) -> str:
    """Any split into chunks gives what one call does, and later tokens leave earlier rows as they are."""
    network: Any = subject.network
    if not hasattr(network, "extend"):
        raise Unclaimed("whole inputs")
    (ids,), worst = subject.inputs(), 0.0
    n, want = ids.shape[1], network(ids)
    for chunks in ([1] * n, [n - 6, 1, 5]):
        state, parts = network.start(BATCH), []
        for part in ids.split(chunks, 1):
            out, state = network.extend(part, state)
            parts.append(out)
        worst = max(worst, same(torch.cat(parts, 1), want, CLOSE, f"chunks {chunks[:3]}"))
    other = torch.cat([ids[:, :5], subject.inputs(seed=1)[0][:, 5:]], 1)
    worst = max(worst, same(network(other)[:, :5], want[:, :5], 1e-12, "other tokens from 5 on"))
    return f"{worst:.0e}"


LAWS: dict[str, Callable[[Fed], str]] = {
    law.__name__: law for law in (shapes, batch, maps, gradients, size, saved, seeded, padding, decoding)
}
subject = Fed


def example(thing: Network, inputs: Any, output: tuple[int, ...], **given: Any) -> Sample:
    """A network as it is, and what goes in and comes out, as in the head of this module."""
    return Sample(type(thing).__name__, thing, {"inputs": inputs, "output": output, **given})
