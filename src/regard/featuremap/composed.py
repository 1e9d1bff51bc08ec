"""Gates put together from a pool, a mix and a squash over axes that one chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build_part
from regard.core.errors import did_you_mean, wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import AXES, Factors, Gate, GateTraits, MapShape, Rule
from regard.featuremap.parts.mixes import MIXES, Mix
from regard.featuremap.parts.pools import POOLS, Pool
from regard.featuremap.parts.squashes import SQUASHES


@published(
    "composed_gate",
    family="featuremap",
    kind="gate",
    title="Gates from parts: pools, mixes and squashes of many papers",
    year=2026,
    fidelity="third-party code",
    claim=Claim(
        "the gates of SE, eSE, ECA and GC and CBAM's gate of cells come out of its parts: each equals its "
        "paper's equation written out",
        cells="featuremap.parts",
        holds="common.within(most=1e-9)",
    ),
)
class Composed(Gate):
    """A gate whose pool, mix and squash are chosen by name, over the axes that are named.

        f = squash(mix(pool_over(x))),   y = x ⊙ f

    | part | name | of a map (b, c, y, x) |
    |---|---|---|
    | over | ``yx``, ``c``, ``y``, ``x``, ``""`` | the axes that are pooled; several branches, ``"y x"`` |
    | pool | ``mean``, ``max``, ``z``, ``deviation`` | maximum and mean (z), mean and standard deviation |
    | | ``query`` | mean of all cells under a learned attention |
    | | ``dct(frequencies, size)`` | a cosine of another frequency for each group of channels |
    | | ``none`` | each cell itself |
    | mix | ``mlp(ratio, divisor, bias, norm)``, ``dense(bias, norm)`` | matrices over the channels |
    | | ``conv1d(kernel)`` | a convolution along the channels |
    | | ``conv2d(kernel)`` | a convolution and a norm over the two axes that are left |
    | | ``strips(kernel, groups, norm_groups)``, ``joint(ratio)`` | rows and columns, by the same weights |
    | | ``power(order)`` | polynomials of each cell |
    | squash | ``sigmoid``, ``hard_sigmoid``, ``tanh``, ``softmax`` | the last over all positions |

    Shapes: ``x (b, c, y, x)`` -> the same. Parameters and FLOPs: those of the parts.

    Args:
        channels: c. over, pool, mix, squash: the parts. rule: how factors meet x, see `Gate`.

    Raises:
        ValueError: an unknown part, one that does not fit the axes, or a rule that there is not.
    """

    def __init__(
        self,
        channels: int,
        over: str = "yx",
        pool: str = "mean",
        mix: str = "mlp",
        squash: str = "sigmoid",
        rule: Rule = "product",
    ) -> None:
        super().__init__(channels)
        if rule not in get_args(Rule):
            raise wrong("rule", repr(rule), f"one of {', '.join(get_args(Rule))}")
        if squash not in SQUASHES:
            raise wrong("squash", repr(squash), f"one of {', '.join(SQUASHES)}{did_you_mean(squash, SQUASHES)}")
        self.over, self.rule, self.squash = branches(over), rule, SQUASHES[squash]
        sizes: dict[str, Any] = {"channels": channels}
        self.places = [placed(axes) for axes in self.over]
        pooled: list[dict[str, Any]] = [sizes | {"over": axes} for axes in self.over]
        self.pools = nn.ModuleList(build_part(each, "pool", pool, POOLS) for each in pooled)
        branched: dict[str, Any] = sizes | {"over": self.over, "statistics": self.members[0].statistics}
        self.mix: Mix = build_part(branched, "mix", mix, MIXES)

    @property
    def members(self) -> list[Pool]:
        """The pool of each branch."""
        return [pool for pool in self.pools if isinstance(pool, Pool)]

    @property
    def traits(self) -> GateTraits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What follows from the parts."""
        return GateTraits(
            low=self.squash.low,
            high=self.squash.high,
            sums=self.squash.sums,
            shifts=all(pool.everywhere for pool in self.members),
            permutes=self.mix.permutes and all(pool.permutes for pool in self.members),
            batch_norm=self.mix.batch_norm,
        )

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        mixed = self.mix([pool(x) for pool in self.pools])
        found: Factors = {}
        for (name, positions), numbers in zip(self.places, mixed, strict=True):
            factor = self.squash.function(numbers, positions)
            factor = factor if factor.shape[1] == 1 else factor.mean(1)
            shape = [size if axis in name else 1 for axis, size in zip(AXES, x.shape[1:], strict=True)]
            found[name] = factor.reshape(x.shape[0], *shape)
        return found

    @property
    def parameter_count(self) -> int:
        return sum(pool.parameter_count for pool in self.members) + self.mix.parameter_count

    def flops(self, shape: MapShape) -> int:
        return sum(pool.flops(shape) for pool in self.members) + self.mix.flops(shape)

    @classmethod
    def examples(cls) -> list[Sample]:
        texts: tuple[dict[str, Any], ...] = (
            {"over": "yx c", "mix": "none", "rule": "mean"},
            {"pool": "z", "mix": "mlp(ratio=3, norm=layer)", "rule": "residual"},
            {"pool": "deviation", "mix": "dense", "squash": "hard_sigmoid"},
            {"pool": "query", "mix": "dense(bias=False)", "squash": "tanh"},
            {"pool": "dct(frequencies=3)", "mix": "conv1d"},
            {"over": "c", "pool": "max", "mix": "conv2d(kernel=3)", "squash": "softmax"},
            {"over": "c y x", "pool": "z", "mix": "conv2d(kernel=3)", "rule": "mean"},
            {"over": "y x", "pool": "z", "mix": "strips(kernel=3, groups=2, norm_groups=3)"},
            {"over": "y x", "mix": "joint(ratio=2, divisor=1)"},
            {"over": "none", "pool": "none", "mix": "power(order=2)"},
        )
        return [Sample(", ".join(f"{k}={v}" for k, v in text.items()), cls(12, **text)) for text in texts]


def placed(over: str) -> tuple[str, tuple[int, ...]]:
    """Of what a branch gives ``(b, 1, …)``: the axes left, and which dimensions are positions."""
    left = [axis for axis in AXES if axis not in over]
    return "".join(left), tuple(2 + place for place, axis in enumerate(left) if axis != "c")


def branches(over: str) -> tuple[str, ...]:
    """The axes that each branch pools, of ``"y x"``; ``none`` for a branch that pools none.

    Raises:
        ValueError: an axis that there is not, twice the same, or all three.
    """
    found = tuple("" if part == "none" else part for part in over.split())
    sensible = all(set(part) < set(AXES) and len(set(part)) == len(part) for part in found)
    if not found or not sensible or len({frozenset(part) for part in found}) < len(found):
        raise wrong(
            "over", repr(over), "axes such as 'yx', 'c' or 'y x' of the channels c, rows y and columns x, or none"
        )
    return found
