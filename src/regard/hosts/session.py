"""What a watch has seen: which layers there are, what the probes are shown of them, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.tile import Probe, Tokens
from regard.hosts import session_table as table
from regard.hosts.mechanism_call import ImplicitAttention, normalised_magnitude
from regard.hosts.softmax_call import AttentionMap, SoftmaxCall

if TYPE_CHECKING:
    from regard.hosts.caught_weights import Caught


@dataclass(frozen=True)
class Layer:
    """One attention call of the watched model, told apart from the others by its module and its turn.

    Args:
        index: in order of execution. name: of the module, with ``#turn`` if it is called again in one pass.
        heads, kv_heads, head_dim: sizes. causal: row i sees no later keys. cross: the keys are another sequence.
        window: how many keys back a row sees, where the model says so. softcap, scaling: of the scores.
        sinks: whether sink logits take mass.
        mechanism: what computes A, as text. shares: whether the probes are shown each weight's share of its row,
            `mechanism_call.shares`, and not A itself.
    """

    index: int
    name: str
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    cross: bool
    window: int | None
    softcap: float | None
    scaling: float | None
    sinks: bool
    mechanism: str = "softmax"
    shares: bool = False


@dataclass(frozen=True)
class Choice:
    """Which heads and rows the probes are shown.

    Args:
        layers: indices of the layers; a mapping names the heads of each; None for all.
        rows: how many query rows to sample from each call, None for all. seed: of the sample.
    """

    layers: Iterable[int] | Mapping[int, Sequence[int]] | None = None
    rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise wrong("rows", str(self.rows), "at least one row, or None for all")
        if self.layers is not None and not isinstance(self.layers, Mapping):
            object.__setattr__(self, "layers", frozenset(self.layers))

    def takes(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def heads(self, layer: int, of: int) -> list[int] | None:
        """The chosen ones of a layer's heads, None for all."""
        if not isinstance(self.layers, Mapping):
            return None
        heads = list(self.layers[layer])
        if not heads or not 0 <= min(heads) <= max(heads) < of:
            raise wrong(f"layers[{layer}]", f"heads {self.layers[layer]}", f"some of 0 to {of - 1}")
        return heads

    def blocks(
        self, call: SoftmaxCall | ImplicitAttention | Caught, layer: int, past: int
    ) -> tuple[list[Tensor], float]:
        """``(blocks of rows, the share of all rows that they are)``."""
        if self.rows is None or self.rows >= call.n:
            return call.blocks(), 1.0
        generator = torch.Generator().manual_seed(hash((self.seed, layer, past)) % (1 << 63))
        rows = torch.randperm(call.n, generator=generator)[: self.rows].sort().values.to(call.device)
        return call.blocks(rows), self.rows / call.n


class Session:
    """What a watch has seen so far.

    Args:
        probes: what is fed. choice: which heads and rows they are shown.
        keep: bytes of what A follows from (q, k and log-sum-exp or signals) that may be kept of the layers' last calls,
            so that `maps` gives any rows of A afterwards; where they need more, none are kept.
        seen: called with the layer's index after each watched call.
        shares: show the probes shares, `mechanism_call.shares`, of the layers whose rows are none by themselves.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        choice: Choice,
        keep: float = 0,
        seen: Callable[[int], None] | None = None,
        shares: bool = False,
    ) -> None:
        for probe in probes:
            if isinstance(probe, type) or not isinstance(probe, Probe):
                wanted = "probes as objects, such as regard.probes.Entropy()"
                raise wrong("probes", f"{probe!r}, a {type(probe).__name__}", wanted, TypeError)
        self.probes, self.choice, self.keep, self.seen, self.shares = list(probes), choice, keep, seen, shares
        self.layers: list[Layer] = []
        self.gates: dict[str, Any] = {}  # `GateRecord` of each gate, where a network of ours has some
        self.maps: dict[int, AttentionMap | ImplicitAttention | Caught] = {}

    def install(self) -> Any:
        """Begins to watch, until `remove`."""
        raise NotImplementedError

    def remove(self) -> None:
        """Ends it; the model is what it was."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> Any:
        """The result of the probe of this name."""
        for probe in self.probes:
            if probe.name == name:
                return probe.result()
        raise wrong("name", repr(name), f"one of {[probe.name for probe in self.probes]}", KeyError)

    def __repr__(self) -> str:
        return table.as_text(self)

    def _repr_html_(self) -> str:
        return table.as_html(self)

    def results(self) -> dict[str, Any]:
        """The results of all probes by their names."""
        return {probe.name: probe.result() for probe in self.probes}

    def refuse_absent(self, model: str) -> None:
        """Raises a ValueError if layers were chosen that a whole pass has not shown."""
        absent = sorted(set(self.choice.layers or ()) - set(range(len(self.layers))))
        if absent:
            there = f"some of 0 to {len(self.layers) - 1}, the attention layers of {model}"
            raise wrong("layers", f"{absent}", there)

    def noted(self, name: str, describe: Callable[[int], Layer]) -> Layer:
        """The layer of this name, described with its index at its first call."""
        for known in self.layers:
            if known.name == name:
                return known
        self.layers.append(describe(len(self.layers)))
        return self.layers[-1]

    def retain(self, layer: int, source: AttentionMap | ImplicitAttention | Caught) -> None:
        """Keeps the call if all that are kept stay within the budget, and gives up otherwise."""
        self.maps[layer] = source
        if sum(kept.bytes for kept in self.maps.values()) > self.keep:
            self.maps, self.keep = {}, 0

    def implied(
        self,
        name: str,
        mechanism: str,
        source: ImplicitAttention,
        tokens: Tokens | None = None,
        sequence: int = 0,
        check: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        """Shows the probes a mechanism's call, which ``mechanism`` names.

        ``check`` is given each block of rows with its weights, before the probes get these in float32.
        """

        def describe(index: int) -> Layer:
            sizes = (source.q.shape[1], source.k.shape[1], source.q.shape[3])
            causal, divided = source.layout.causal, self.shares and not source.sums_to_one
            return Layer(index, name, *sizes, causal, False, source.window, None, None, False, mechanism, divided)

        layer = self.noted(name, describe)
        if self.choice.takes(layer.index):
            heads = self.choice.heads(layer.index, layer.heads)
            blocks, share = self.choice.blocks(source, layer.index, source.shift)
            for rows in blocks:
                weights = source.weights(rows)
                if check is not None:
                    check(rows, weights)
                    weights = weights.float()
                weights = weights if heads is None else weights[:, heads]
                weights = normalised_magnitude(weights) if layer.shares else weights
                tile = source.tile(layer.index, rows, weights, tokens, sequence, share)
                for probe in self.probes:
                    probe.update(tile)
            self.retain(layer.index, source)
        if self.seen is not None:
            self.seen(layer.index)
