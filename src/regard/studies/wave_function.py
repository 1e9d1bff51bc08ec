"""Wave functions of spins on a square lattice: a vision transformer's, the J1-J2 Hamiltonian, and how to train them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, log
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from regard.blocks.attention import Attention
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.values_only import ValuesOnly


@dataclass(frozen=True)
class Heisenberg:
    """The J1-J2 Heisenberg model of spins 1/2 on a periodic square lattice, where as many spins are up as down.

        H = J1 Σ_⟨rs⟩ S_r · S_s + J2 Σ_⟨⟨rs⟩⟩ S_r · S_s

    over neighbours and over diagonal neighbours. With ``marshall`` every second spin is turned by π about z, so that
    exchanges of neighbours count −J1 / 2: energies are the same, and amplitudes at J2 = 0 all positive.

    Args:
        side: of the lattice, even, 4 or less: all states are listed. j1, j2: the couplings.

    Raises:
        ValueError: another side.
    """

    side: int = 4
    j1: float = 1.0
    j2: float = 0.5
    marshall: bool = True

    def __post_init__(self) -> None:
        if self.side not in (2, 4):
            raise wrong("side", str(self.side), "2 or 4: all states are listed")

    @property
    def bonds(self) -> list[tuple[int, int, float, float]]:
        """Two sites, the coupling J and the sign of the exchange, for each pair that interacts."""
        found, flip = [], -1.0 if self.marshall else 1.0
        for y, x in product(range(self.side), repeat=2):
            for (dy, dx), coupling, sign in (
                ((0, 1), self.j1, flip), ((1, 0), self.j1, flip), ((1, 1), self.j2, 1.0), ((1, -1), self.j2, 1.0)
            ):  # fmt: skip
                other = (y + dy) % self.side * self.side + (x + dx) % self.side
                found.append((y * self.side + x, other, coupling, sign))
        return found

    def states(self) -> Tensor:
        """``(states, sites)`` of ±1: every state with as many spins up as down."""
        sites = self.side**2
        up = torch.tensor(list(combinations(range(sites), sites // 2)))
        return torch.full((comb(sites, sites // 2), sites), -1.0).scatter_(1, up, 1.0)

    def operator(self, states: Tensor) -> Callable[[Tensor], Tensor]:
        """``ψ -> H ψ`` for amplitudes ``(states,)`` of all states, real or complex."""
        digits = (states > 0).long()
        powers = 2 ** torch.arange(states.shape[1])
        place = torch.zeros(2 ** states.shape[1], dtype=torch.int64)
        codes = digits @ powers
        place[codes] = torch.arange(len(states))
        diagonal = torch.zeros(len(states), dtype=torch.float64)
        swaps = []
        for first, second, coupling, sign in self.bonds:
            differ = states[:, first] != states[:, second]
            diagonal += coupling / 4 * torch.where(differ, -1.0, 1.0)
            flipped = place[torch.where(differ, codes ^ int(powers[first] + powers[second]), codes)]
            swaps.append((flipped, sign * coupling / 2 * differ.double()))
        partners, factors = (torch.stack(part) for part in zip(*swaps, strict=True))
        return lambda psi: diagonal * psi + (factors * psi[partners]).sum(0)

    def ground_energy(self, steps: int = 120) -> float:
        """The lowest energy, by Lanczos iterations from a fixed random state, orthogonalised twice."""
        states = self.states()
        apply, vectors, steps = self.operator(states), [], min(steps, len(states))
        vector = torch.randn(len(states), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        diagonal, beside = [], []
        for _ in range(steps):
            size = vector.norm()
            if size < 1e-10:
                break
            beside.append(size)
            vectors.append(vector / size)
            vector = apply(vectors[-1])
            diagonal.append(vectors[-1] @ vector)
            basis = torch.stack(vectors)
            for _ in range(2):
                vector = vector - basis.mT @ (basis @ vector)
        off = torch.diag(torch.stack(beside)[1:], 1) if len(beside) > 1 else torch.zeros(1, 1, dtype=torch.float64)
        return torch.linalg.eigvalsh(torch.diag(torch.stack(diagonal)) + off + off.mT)[0].item()


@published(
    "factored_wave_function",
    family="scored",
    kind="study",
    row=112,
    title="Are queries and keys always relevant? A case study on Transformer wave functions",
    arxiv="2405.18874",
    year=2024,
    aliases=("transformer_wave_function", "vit_wave_function"),
    fidelity="hand values",
    claim=(
        Claim(
            "exact energies of the 4 × 4 lattice are the known ones",
            cells="theory.lattice",
            holds="common.within(most=1e-6)",
        ),
        Claim(
            (
                "wave functions with and without queries and keys come within 1e-3 of the exact energy, the "
                "latter with fewer parameters"
            ),
            cells="theory.two_by_two",
            holds="theory.finds_the_ground_state",
        ),
        Claim(
            "maps of trained queries and keys differ by at most 5% from state to state, less than before training",
            cells="theory.trained_maps",
            holds="theory.do_not_look_at_states",
        ),
    ),
)
class WaveFunction(nn.Module):
    """A vision transformer that gives the logarithm of the amplitude of a state of spins.

        h_0 = patches W,   h ← h + attention(norm(h)),   h ← h + MLP(norm(h)),
        z = norm(Σ_i h_i),   log ψ = Σ_c log cosh(norm(z U)_c + i norm(z V)_c)

    Shapes: ``spins (b, side²)`` of ±1 -> ``(b, 2)``, real and imaginary part.

    Args:
        side: of the lattice. patch: side of a patch. attention: "factored", one weight for each head and offset between
            patches, or "softmax", queries and keys and a learned vector for each place. width, heads, depth: sizes.
        inner: units of each MLP, None for twice the width.

    Raises:
        ValueError: patches that do not divide the lattice, heads that do not divide the width.

    Paper: Rende and Viteritti, arXiv 2405.18874. Their maps of trained queries and keys: `variation`.
    """

    def __init__(
        self,
        side: int = 4,
        patch: int = 2,
        attention: str = "factored",
        width: int = 24,
        heads: int = 4,
        depth: int = 2,
        inner: int | None = None,
    ) -> None:
        super().__init__()
        if side % patch or width % heads:
            raise wrong("patch, heads", f"{patch}, {heads}", f"divisors of the side {side} and of the width {width}")
        self.side, self.patch, grid, inner = side, patch, side // patch, inner or 2 * width
        self.embed = nn.Linear(patch * patch, width)
        factored = attention == "factored"
        self.places = None if factored else nn.Parameter(0.1 * torch.randn(grid * grid, width))
        self.attentions = nn.ModuleList(
            Attention(build("factored", heads=heads, grid=(grid, grid)), ValuesOnly(width, heads, width // heads))
            if factored
            else Attention(build(attention), Grouped(Sizes.even(width, heads)))
            for _ in range(depth)
        )
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 3))
        self.parts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, spins: Tensor) -> Tensor:
        z = self.norms[-1](self.encoded(spins)[0].sum(1))
        a, b = (norm(part(z)) for norm, part in zip(self.norms[-3:-1], self.parts, strict=True))
        return log_cosh(a, b)

    def tokens(self, spins: Tensor) -> Tensor:
        """Embedded patches ``(b, patches, width)``."""
        grid, p = self.side // self.patch, self.patch
        cut = spins.view(-1, grid, p, grid, p).transpose(2, 3).reshape(spins.shape[0], grid * grid, p * p)
        h = self.embed(cut)
        return h if self.places is None else h + self.places

    def encoded(self, spins: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states, and all attention weights ``(depth, b, heads, patches, patches)``, by the definition."""
        found, h = [], self.tokens(spins)
        for layer, (attention, network) in enumerate(zip(self.layers, self.networks, strict=True)):
            normed = self.norms[2 * layer](h)
            q, k, v, signals = attention.inputs(normed)
            found.append(attention.mechanism.weights(q, k, Layout(), **signals))
            h = h + attention.finish(found[-1] @ v, normed, None)
            h = h + network(self.norms[2 * layer + 1](h))
        return h, torch.stack(found)

    @property
    def layers(self) -> list[Attention]:
        """The attention of each layer."""
        return list(cast(Any, self.attentions))


def log_cosh(a: Tensor, b: Tensor) -> Tensor:
    """``(b, 2)``: real and imaginary part of Σ_c log cosh(a_c + i b_c)."""
    small = torch.exp(-2 * a.abs())
    sign = torch.where(a < 0, -1.0, 1.0).to(a.dtype)
    real = a.abs() - log(2) + 0.5 * torch.log1p(small * (2 * torch.cos(2 * b) + small))
    imaginary = sign * (b - torch.atan2(small * torch.sin(2 * b), 1 + small * torch.cos(2 * b)))
    return torch.stack([real.sum(-1), imaginary.sum(-1)], -1)


@torch.no_grad()
def variation(network: WaveFunction, states: Tensor, shares: Tensor) -> Tensor:
    """``(depth, heads)``: by how much of its attention a patch differs from state to state.

        Σ_s p_s mean_i ½ Σ_j |A_ij(s) − Ā_ij|,   Ā = Σ_s p_s A(s),   with the ``shares`` p of the states s

    The total variation distance of a row from the mean one: 0 where maps do not depend on what they are given.
    """
    maps = network.encoded(states)[1]  # (depth, states, heads, patches, patches)
    p = (shares / shares.sum()).to(maps.dtype)[:, None, None, None]
    apart = (maps - (p * maps).sum(1, keepdim=True)).abs().sum(-1, keepdim=True) / 2
    return (p * apart).sum(1).mean((-1, -2))


class Reconfiguration:
    """Stochastic reconfiguration: steps of imaginary time, as far as the parameters can follow.

        θ ← θ − rate Xᵀ (X Xᵀ + shift)⁻¹ f,   X = [Re O; Im O],   f = [Re ε; Im ε]

    O_sp = (∂_p log ψ(s) − mean) / √M and ε_s = (E_loc(s) − mean) / √M over M states drawn from |ψ|². All amplitudes are
    known, so the states are drawn independently and local energies are exact sums; no Markov chain is run.

    Args:
        network: `WaveFunction`, trained in place. model: of the spins. samples: M. shift: of the diagonal.

    Papers: Sorella, Phys. Rev. Lett. 80, 4558 (1998); the M × M form: Rende et al., arXiv 2310.05715.
    """

    def __init__(self, network: nn.Module, model: Heisenberg, samples: int = 512, shift: float = 1e-3, seed: int = 0):
        self.network, self.samples, self.shift = network, samples, shift
        self.states = model.states()
        self.apply = model.operator(self.states)
        self.generator = torch.Generator().manual_seed(seed)

    def amplitudes(self) -> Tensor:
        """ψ of all states, complex, of length one."""
        with torch.no_grad():
            real, imaginary = self.network(self.states).double().unbind(-1)
        psi = torch.polar((real - real.max()).exp(), imaginary)
        return psi / psi.norm()

    def energy(self) -> float:
        """⟨ψ|H|ψ⟩, exact."""
        psi = self.amplitudes()
        return torch.vdot(psi, self.apply(psi)).real.item()

    def step(self, rate: float) -> float:
        """Moves the parameters; the energy before, exact."""
        psi = self.amplitudes()
        moved = self.apply(psi)
        energy = torch.vdot(psi, moved).real
        drawn = torch.multinomial(psi.abs().square(), self.samples, True, generator=self.generator)
        local = moved[drawn] / psi[drawn]
        error = (local - local.mean()) / self.samples**0.5
        x = self.derivatives(self.states[drawn]).double()
        x = (x - x.mean(1, keepdim=True)) / self.samples**0.5
        x = x.flatten(0, 1)
        kernel = x @ x.mT
        kernel.diagonal().add_(self.shift)
        update = x.mT @ torch.linalg.solve(kernel, torch.cat([error.real, error.imag]))
        with torch.no_grad():
            start = 0
            for parameter in self.network.parameters():
                part = update[start : start + parameter.numel()].view_as(parameter)
                parameter.sub_(rate * part.to(parameter.dtype))
                start += parameter.numel()
        return energy.item()

    def derivatives(self, states: Tensor) -> Tensor:
        """``(2, M, parameters)``: of the real and imaginary parts of log ψ."""
        parameters = {name: value.detach() for name, value in self.network.named_parameters()}

        def one(values: dict[str, Tensor], spins: Tensor) -> Tensor:
            return functional_call(self.network, values, (spins[None],))[0]

        found = vmap(jacrev(one), (None, 0))(parameters, states)
        return torch.cat([part.flatten(2) for part in found.values()], 2).transpose(0, 1)
