"""Layers as the integration of a differential equation over depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.benchmark import Layer
from regard.networks.lm import Config
from regard.networks.neural_ode.solver import Solver
from regard.networks.vision.vit import ViT, image_sample


def change(layer: Layer, x: Tensor) -> Tensor:
    """``F(x) = attention(norm(x)) + network(norm(x))``: what a parallel layer adds to x."""
    normed = layer.norms[0](x)
    return layer.attention(normed, Layout()) + layer.network(normed)


@published(
    "neural_ode",
    family="scored",
    kind="network",
    row=320,
    title="A Neural ODE Interpretation of Transformer Layers",
    arxiv="2212.06011",
    year=2022,
    aliases=("ode_transformer", "parallel_block"),
    claim=Claim(
        text="a unit Euler step is the parallel block; RK4's global error falls as h⁴; adjoint and direct gradients "
        "agree; on digits parallel blocks do no worse than sequential ones and RK4 no worse than Euler",
        status="partly",
        figure="1e-12; slopes 0.96 to 0.99 (Euler) and 3.95 to 3.99 (RK4); adjoint within 3e-8 of direct gradients; "
        "digits, 3 seeds, 300 steps: parallel 92.0%, sequential 89.0%; RK4 83.0%, below Euler's 88.7%: not reproduced",
        command="pytest tests/claims/test_ode.py",
    ),
)
class ODEViT(ViT):
    """A vision transformer whose parallel layers are each integrated over time, instead of applied once.

        dx/dt = attention(norm(x)) + network(norm(x)),   x(0) = h_l,   h_{l+1} = x(T)

    T is ``time``. Euler in T unit steps is T parallel layers that share their weights; one unit step is the layer
    itself. One layer over a long time shares its weights over all of depth, several make F piecewise constant in it.

    Shapes: ``images (b, channels, height, width)`` -> ``(b, classes)``. Cost: that of a layer for each evaluation of
    F: one an Euler step, four of RK4, six of Dormand and Prince. Adaptive steps are chosen for a batch as a whole.

    Args:
        config, image, patch, channels, seed: see `ViT`. solver: how each layer is integrated. time: T, above 0.

    Paper: Zhong et al., arXiv 2212.06011.
    """

    def __init__(
        self,
        config: Config,
        image: tuple[int, int],
        patch: int,
        solver: Solver,
        time: float = 1.0,
        channels: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(config, image, patch, channels, "parallel", seed)
        self.solver, self.time = solver, time

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        config = Config(7, 24, "softmax*2", heads=2, inner=17)
        solvers = {"two Euler steps": Solver("euler", 2), "RK4": Solver("rk4", 1)}
        return [image_sample(label, cls(config, (6, 10), 2, solver, 2.0, 3)) for label, solver in solvers.items()]

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for layer in cast(list[Layer], self.layers):
            x = self.solver(partial(change, layer), x, self.time, list(layer.parameters()))
        return self.classes(self.norm(x.mean(1)))
