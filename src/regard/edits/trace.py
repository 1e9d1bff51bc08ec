"""Reading what a model computes at its sites, with gradients, and after the edits that stand before it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from regard.core.edit import Edit, Part, Place, Where
from regard.core.errors import wrong

Site = Literal["q", "k", "v", "z", "resid", "attn", "mlp", "q_pre", "k_pre"]
SITES: tuple[Site, ...] = ("q", "k", "v", "z", "resid", "attn", "mlp", "q_pre", "k_pre")
STATES: tuple[Part, ...] = ("resid", "attn", "mlp", "q_pre", "k_pre")


class Trace(Edit):
    """Keeps activations at sites of a model and changes nothing; what it keeps has gradients where the model has.

    Of several edits each acts on what those before it left, so a trace that comes first reads the model's own states,
    and one that comes last the edited ones.

    Args:
        sites: ``q`` ``(b, heads, n, d)``; ``k``, ``v`` ``(b, kv_heads, m, ·)``, all that the call is given; ``z``
            ``(b, heads, n, e)``, the heads' outputs before the output projection; ``resid``, ``attn``, ``mlp``
            ``(b, n, channels)``, what comes into the block and what its parts add: ``resid`` of the next layer is
            their sum; ``q_pre``, ``k_pre`` ``(b, n, heads · d)``, of the new tokens before positions.
        layers: indices, None for all.

    Raises:
        ValueError: an unknown site; in a call of `get`, one that was not kept.
    """

    def __init__(self, *sites: Site, layers: Iterable[int] | None = None) -> None:
        super().__init__(Where(layers))
        for site in sites or ("",):
            if site not in SITES:
                raise wrong("sites", repr(site), f"some of {', '.join(SITES)}")
        self.sites = frozenset(sites)
        self.parts = tuple(part for part in STATES if part in self.sites)
        self.kept: dict[tuple[str, int], list[Tensor]] = {}

    def get(self, site: Site, layer: int, call: int = -1) -> Tensor:
        """What a site of a layer was in one of the passes, by default the latest."""
        if (site, layer) not in self.kept:
            known = ", ".join(f"{site} {layer}" for site, layer in sorted(self.kept)) or "nothing: no pass was seen"
            raise wrong("site", f"{site!r} of layer {layer}", f"one that was kept: {known}")
        return self.kept[site, layer][call]

    def clear(self) -> None:
        """Lets go of all that was kept."""
        self.kept.clear()

    def keep(self, site: str, value: Tensor, place: Place) -> None:
        """Notes an activation, unless it is computed once more for gradients."""
        if site in self.sites and not place.again:
            self.kept.setdefault((site, place.layer), []).append(value)

    def queries(self, q: Tensor, k: Tensor, place: Place) -> None:
        self.keep("q", q, place)
        self.keep("k", k, place)

    def values(self, v: Tensor, place: Place) -> None:
        self.keep("v", v, place)

    def heads(self, z: Tensor, place: Place) -> None:
        self.keep("z", z, place)

    def hidden(self, x: Tensor, place: Place) -> None:
        self.keep(place.part, x, place)
