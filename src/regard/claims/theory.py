"""Theorems and experiments of single papers: dynamics, memories, planted keys, norms, wave functions, copying."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.claims.cells import Cells, measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.core.atlas import entries
from regard.core.layout import Layout
from regard.networks import LM, Config
from regard.studies.layer_norm_expressivity import LayerNormParts, unselectable
from regard.studies.linear_dynamics import as_system, recall_errors
from regard.studies.mimetic_init import mimetic
from regard.studies.softmax_interpretations import (
    betas,
    fit_beta,
    free_energy,
    read_memory,
    responsibilities,
    retrieve,
)
from regard.studies.softmax_vs_linear import PlantedClassifier, linear_limit, planted_keys
from regard.studies.wave_function import Heisenberg, Reconfiguration, WaveFunction, variation
from regard.train.fit import Recipe, fit

CAUSAL = Layout(causal=True)
Weighting = Literal["softmax", "linear"]
SYSTEMS = ("gla", "retnet", "lightning", "mamba", "mamba2", "deltanet", "gated_deltanet", "kimi_delta", "rwkv7")


def signals_of(mechanism: Any, heads: int, n: int, d: int) -> dict[str, Tensor]:
    """Numbers in the ranges of the signals."""
    found = {}
    for name, spec in mechanism.signals.items():
        noise = torch.randn(1, heads, n, *spec.size(d, d), dtype=torch.float64)
        least = -1.0 if spec.low is None else max(spec.low, -1.0)
        found[name] = least + (min(1.0 if spec.high is None else spec.high, 1.0) - least) * noise.sigmoid()
    return found


@measured(name=SYSTEMS)
def system(name: str) -> dict[str, float]:
    """How far the dynamical system of a mechanism, and its matrix, are from the mechanism."""
    (entry,) = entries(name)
    example = entry.thing.examples()[0]
    mechanism, n, d = example.mechanism.double(), 23, 5
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, example.heads, n, d, dtype=torch.float64) for _ in range(3))
    k, given = F.normalize(k, dim=-1), signals_of(mechanism, example.heads, n, d)
    made, want = as_system(mechanism, q, k, v, **given), mechanism(q, k, v, CAUSAL, **given)
    outs = (made.run(), made.matrix @ made.inputs)
    return {"apart": max(((out - want).abs() / (1 + want.abs())).max().item() for out in outs)}


@measured()
def identity_transition() -> dict[str, float]:
    """How far Mamba-2 is from gated linear attention of equal decays, and without decay from linear attention."""
    torch.manual_seed(0)
    mamba, gated = regard.build("mamba2", heads=2).double(), regard.build("gla").double()
    rates = mamba.get_parameter("log_rate")
    q, k, v = (torch.randn(1, 2, 23, 5, dtype=torch.float64) for _ in range(3))
    step = signals_of(mamba, 2, 23, 5)["step"]
    decay = (-rates.exp()[None, :, None] * step)[..., None].expand_as(k).contiguous()
    first = mamba(q, k, v, CAUSAL, step=step) - gated(q * 5**0.5, k, v * step[..., None], CAUSAL, log_decay=decay)
    with torch.no_grad():
        rates.fill_(-torch.inf)
    second = mamba(q, k, v, CAUSAL, step=step) - torch.tril(q @ k.mT) @ (v * step[..., None])
    return {"apart": max(first.abs().max().item(), second.abs().max().item())}


@measured(dim=(32, 64, 128, 256))
def capacity(dim: int) -> dict[str, float]:
    """The least and largest error over (M − 1) / d of a memory of M pairs, for M of d / 8 to 2 d."""
    counts = (dim // 8, dim // 2, dim, 2 * dim)
    ratios = [recall_errors(pairs, dim)["hebbian"] / ((pairs - 1) / dim) for pairs in counts]
    return {"least": min(ratios), "most": max(ratios)}


def is_linear_in_the_dimension(found: Figures) -> Finding:
    """Between 0.9 and 1.1."""
    low, high = min(found("least")), max(found("most"))
    return Finding.of(
        f"error over (M − 1) / d between {low:.2f} and {high:.2f} for d = 32 … 256", low > 0.9, high < 1.1
    )


@measured()
def swept() -> dict[str, float]:
    """Squared errors of d / 2 pairs in 64 dimensions, added up and by ten sweeps of the delta rule."""
    found = recall_errors(32, 64, sweeps=10)
    return {"corrected": found["corrected"], "hebbian": found["hebbian"]}


def correction_is_exact(found: Figures) -> Finding:
    """Below 1%, added up above 40%."""
    corrected, added = found.one("corrected"), found.one("hebbian")
    figure = f"10 sweeps of the delta rule at M = d / 2: {corrected:.3f}, added up {added:.2f}"
    return Finding.of(figure, corrected < 0.01, added > 0.4)


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, size, 6, dtype=torch.float64) for size in (9, 13, 13))
    return q, k, v


@measured()
def posterior() -> dict[str, float]:
    """How far responsibilities are from attention, with a log prior from a bias, and with competition from slots."""
    q, k, v = tokens()
    prior = torch.randn(2, 9, 13, dtype=torch.float64).log_softmax(-1)
    prior[..., :3] = -torch.inf
    dots = torch.einsum("bid,bjd->bij", q, k) * 6**-0.5
    shares = dots.softmax(dim=1)
    pairs = (
        (responsibilities(q, k) @ v, F.scaled_dot_product_attention(q, k, v)),
        (responsibilities(q, k, prior) @ v, F.scaled_dot_product_attention(q, k, v, attn_mask=prior)),
        (responsibilities(q, k, slots=True) @ v, (shares / shares.sum(-1, keepdim=True)) @ v),
    )
    return {"apart": max((a - b).abs().max().item() for a, b in pairs)}


@measured(beta=(0.3, 1.0, 4.0, 30.0))
def energy(beta: float) -> dict[str, float]:
    """The largest rise of the free energy by reading again, over 20 steps in 64 draws."""
    torch.manual_seed(0)
    k = torch.randn(16, 20, 8, dtype=torch.float64)
    q = k[:, :4] + 0.3 * torch.randn(16, 4, 8, dtype=torch.float64)
    energies = torch.stack([free_energy(x, k, beta) for x in retrieve(q, k, beta, 20)])
    return {"rise": energies.diff(dim=0).max().item()}


@measured()
def distributed_memory() -> dict[str, float]:
    """64 bits, radii 5 … 22: least correlations of log overlap with distance and of the fit, and cosine of readings."""
    fits, cosines = betas(64, range(5, 23)), []
    torch.manual_seed(0)
    for radius in (5, 11, 16, 22):
        addresses = torch.randint(2, (256, 64)) * 2 - 1
        values, flips = torch.randn(256, 32, dtype=torch.float64), torch.rand(64, 64) < 0.06
        queries = torch.where(flips, -addresses[:64], addresses[:64])
        memory = read_memory(queries, addresses, values, radius)
        cosine = queries.double() @ addresses.double().mT / 64
        attention = torch.softmax(fit_beta(64, radius).beta * cosine, -1) @ values
        cosines.append(F.cosine_similarity(memory, attention, dim=-1)[memory.isfinite().all(-1)].mean().item())
    return {
        "log": min(abs(fit.log_correlation) for fit in fits.values()),
        "fit": min(fit.correlation for fit in fits.values()),
        "cosine": min(cosines),
    }


def is_attention(found: Figures) -> Finding:
    """Correlations of at least 0.96 and 0.95, cosines of at least 0.95."""
    log, fit, cosine = (found.one(name) for name in ("log", "fit", "cosine"))
    figure = f"least correlation of the logarithm {log:.3f}, of the fit {fit:.3f}, cosine of both readings {cosine:.3f}"
    return Finding.of(figure, log >= 0.96, fit >= 0.95, cosine >= 0.95)


SETTINGS, STRENGTH = {160: 8, 176: 6, 192: 5}, 1.25


def turned(dim: int, seed: int) -> tuple[Tensor, Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0], generator


def right(model: nn.Module, x: Tensor, label: Tensor) -> float:
    with torch.no_grad():
        return ((model(x) > 0) == (label > 0)).double().mean().item()


@quick(seed=[0])
@measured(n=tuple(SETTINGS), weighting=("softmax", "linear"), seed=range(5))
def constructed(n: int, weighting: Weighting, seed: int) -> dict[str, float]:
    """Accuracy of the exact construction on 2,000 examples of one planted key in n."""
    dim = SETTINGS[n]
    turn, generator = turned(dim, seed)
    x, label = planted_keys(2000, n, dim, STRENGTH, turn, generator)
    return {"right": right(PlantedClassifier(dim, weighting).construct(turn, STRENGTH), x, label)}


def finds_by_construction(found: Figures) -> Finding:
    """Softmax at least 95%; the best linear scores at most 60% on average, and as predicted to 2 points."""
    softmax, conditions, means = min(found("right", weighting="softmax")), [], []
    for n in SETTINGS:
        linear = found.mean("right", n=n, weighting="linear")
        means.append(linear)
        conditions += [linear <= 0.6, abs(linear - linear_limit(n, STRENGTH)) < 0.02]
    figure = f"constructed softmax at least {softmax:.1%}, linear {listed(means, '.1%')} on average"
    return Finding.of(figure, softmax >= 0.95, *conditions)


@quick(n=[160], seed=[0])
@measured(n=tuple(SETTINGS), weighting=("softmax", "linear"), seed=range(5), steps=[250])
def planted(n: int, weighting: Weighting, seed: int, steps: int) -> dict[str, float]:
    """Accuracy on unseen examples after training on 4,096, all of them in each step."""
    dim = SETTINGS[n]
    turn, generator = turned(dim, seed)
    x, label = planted_keys(4096, n, dim, STRENGTH, turn, generator)
    held_out = planted_keys(4096, n, dim, STRENGTH, turn, generator)

    def loss(model: nn.Module, drawn: Generator) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), label)

    torch.manual_seed(seed)
    model = fit(PlantedClassifier(dim, weighting), loss, Recipe(steps, 0.03, decay=0.0))
    return {"right": right(model, *held_out)}


def finds_by_training(found: Figures) -> Finding:
    """Softmax at least 95%, linear at most 60%, in all seeds."""
    softmax, linear = (found("right", weighting=name) for name in ("softmax", "linear"))
    figure = f"trained softmax at least {min(softmax):.1%}, linear at most {max(linear):.1%}"
    return Finding.of(figure, min(softmax) >= 0.95, max(linear) <= 0.6)


@measured(strength=(1.25, 2.0, 4.0, 8.0, 16.0))
def gap(strength: float) -> dict[str, float]:
    """Softmax's accuracy above linear's, by construction, with a mark of this strength."""
    turn = turned(5, 0)[0]
    x, label = planted_keys(4000, 192, 5, strength, turn, torch.Generator().manual_seed(1))
    softmax, linear = (
        right(PlantedClassifier(5, name).construct(turn, strength), x, label) for name in ("softmax", "linear")
    )
    return {"gap": softmax - linear}


def closes(found: Figures) -> Finding:
    """Falls at every step, to under 1%."""
    gaps = found("gap")
    falls = all(later < earlier for earlier, later in itertools.pairwise(gaps))
    return Finding.of(f"gap at marks from 1.25 to 16: {listed(gaps, '.1%')}", falls, gaps[-1] < 0.01)


@measured()
def two_parts() -> dict[str, float]:
    """How far projection and scaling together are from LayerNorm."""
    x = 3 * torch.randn(7, 11, 13) + 2
    return {"apart": (LayerNormParts()(x) - F.layer_norm(x, (13,))).abs().max().item()}


@measured()
def selectable() -> dict[str, float]:
    """The share of 200 random keys in 8 dimensions that no query selects: plain, projected, and scaled."""
    keys = torch.randn(200, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = [unselectable(LayerNormParts(projection, eps=0)(keys)).double().mean() for projection in (False, True)]
    flat = unselectable(LayerNormParts(scaling=False)(keys)).double().mean().item()
    return {"plain": unselectable(keys).double().mean().item(), "projected": flat, "scaled": max(scaled).item()}


def none_once_scaled(found: Figures) -> Finding:
    """Some before, none after scaling."""
    plain, flat, scaled = (found.one(name) for name in ("plain", "projected", "scaled"))
    figure = f"200 keys in 8 dimensions: {plain:.0%} unselectable, projected {flat:.0%}, scaled {scaled:.0%}"
    return Finding.of(figure, plain > 0, flat > 0, scaled == 0)


EXACT = {0.0: -0.701780, 0.5: -0.528620}
"""Known energies of a site, 4 × 4."""


@measured(j2=tuple(EXACT))
def lattice(j2: float) -> dict[str, float]:
    """How far the lowest energy a site of the 4 × 4 lattice is from the known one."""
    return {"apart": abs(Heisenberg(4, j2=j2).ground_energy() / 16 - EXACT[j2])}


@measured(attention=("factored", "softmax"))
def two_by_two(attention: str) -> dict[str, float | int]:
    """The relative error of the energy on the 2 × 2 lattice after 40 steps, and the parameters of a 4 × 4 network."""
    torch.manual_seed(0)
    model = Heisenberg(2)
    trainer = Reconfiguration(WaveFunction(2, 1, attention, width=8, heads=2, depth=1), model, samples=64)
    for _ in range(40):
        trainer.step(0.2)
    exact = model.ground_energy()
    count = sum(parameter.numel() for parameter in WaveFunction(attention=attention).parameters())
    return {"error": (trainer.energy() - exact) / abs(exact), "parameters": count}


def finds_the_ground_state(found: Figures) -> Finding:
    """Both within 1e-3, the factored network with fewer parameters."""
    errors, counts = found("error"), found("parameters")
    figure = f"2 × 2: relative errors {listed(errors, '.0e')}; {counts[0]:,} and {counts[1]:,} parameters"
    return Finding.of(figure, min(errors) > -1e-9, max(errors) < 1e-3, counts[0] < counts[1])


@quick(seed=[0], steps=[20])
@measured(seed=range(2), steps=[400])
def trained_maps(seed: int, steps: int) -> dict[str, float]:
    """How much maps of queries and keys differ between states of the 4 × 4 lattice, before training and after."""
    torch.manual_seed(seed)
    model = Heisenberg(4)
    network = WaveFunction(4, 2, "softmax", width=16, heads=4, depth=1)
    trainer = Reconfiguration(network, model, samples=256, seed=seed)

    def differ() -> float:
        return variation(network, trainer.states, trainer.amplitudes().abs().square()).mean().item()

    before = differ()
    for _ in range(steps):
        trainer.step(0.1)
    exact = model.ground_energy()
    return {"before": before, "after": differ(), "error": (trainer.energy() - exact) / abs(exact)}


def do_not_look_at_states(found: Figures) -> Finding:
    """At most 5% of the attention, less than before, in states whose energy is within 1% of the least."""
    before, after, errors = (found(name) for name in ("before", "after", "error"))
    figure = (
        f"attention moved from state to state {listed(after, '.1%')}, before training {listed(before, '.1%')}; "
        f"relative errors {listed(errors, '.0e')}"
    )
    fell = all(a < b for a, b in zip(after, before, strict=True))
    return Finding.of(figure, max(after) <= 0.05, fell, max(errors) < 1e-2)


SYMBOLS, LENGTH, FIRST = 32, 64, 3


def mamba(ingredients: tuple[str, ...], seed: int) -> LM:
    """Two layers of Mamba-2 with the uniform convolutions of the authors' code, and the ingredients given."""
    model = LM(Config(SYMBOLS + 1, width=64, layers="mamba2*2", heads=2, head_dim=64, rotary_base=None), seed=seed)
    torch.manual_seed(seed)
    for block in model.layers:
        attention: Any = block.attention
        with torch.no_grad():
            attention.convolution.weight.uniform_(-0.5, 0.5)
        mimetic(attention, ingredients)
    return model


def copies(generator: Generator, size: int = 16) -> Tensor:
    """Three marks and random symbols, then all of it once more: ``(size, 64)``."""
    half = torch.randint(SYMBOLS, (size, LENGTH // 2), generator=generator)
    half[:, :FIRST] = SYMBOLS
    return torch.cat([half, half], 1)


@quick(seed=[0], steps=[20])
@measured(start=("mimetic", "own", "decay", "step", "products"), seed=range(3), steps=[800])
def copying(start: str, seed: int, steps: int) -> dict[str, float]:
    """The share of symbols of 256 unseen copies that are right, and of queries of the best head that look at theirs."""
    first = LENGTH // 2 + FIRST

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        ids = copies(generator)
        return F.cross_entropy(model(ids)[:, first - 1 : -1].flatten(0, 1), ids[:, first:].flatten())

    ingredients = {"mimetic": ("decay", "step", "products"), "own": ()}.get(start, (start,))
    model = fit(mamba(ingredients, seed), loss, Recipe(steps, rate=5e-3, seed=seed))
    ids = copies(torch.Generator().manual_seed(100 + seed), 256)
    with torch.no_grad():
        told = (model(ids)[:, first - 1 : -1].argmax(-1) == ids[:, first:]).double().mean().item()
        return {"right": told, "diagonal": diagonal(model, copies(torch.Generator().manual_seed(200 + seed), 32))}


def diagonal(model: Any, ids: Tensor) -> float:
    """In the best head: how many queries of the second half look most at their copy or up to two tokens on."""
    x, tops = model.embed(ids), []
    for block in model.layers:
        q, k, _, signals = block.attention.inputs(block.norms[0](x), CAUSAL)
        weights = block.attention.mechanism.weights(q, k, CAUSAL, **signals)
        half = weights[:, :, LENGTH // 2 + FIRST :, : LENGTH // 2]
        nearest = half.argmax(-1) - torch.arange(FIRST, LENGTH // 2)
        tops.append(((nearest >= 0) & (nearest <= 2)).double().mean((0, 2)).max().item())
        x = block(x, CAUSAL)
    return max(tops)


def copied_to_the_end() -> Cells:
    """Those that are compared, until little is learned any more: after 800 steps one of three seeds was at 91%."""
    return copying.where(start=("mimetic", "own"), steps=[2000])


def copies_to_95(found: Figures) -> Finding:
    """95% where its own values stay below 50%, in every seed."""
    own, usual = (found("right", start=start) for start in ("mimetic", "own"))
    steps = int(found("steps")[0])
    told = f"{listed(own, '.1%')}, with Mamba's own values {listed(usual, '.1%')}"
    figure = f"64 tokens, {steps:,} steps: {told}; wanted 95%"
    return Finding.of(figure, min(own) >= 0.95, max(usual) < 0.5)


def copies_sooner(found: Figures) -> Finding:
    """More is right than with its own values, in every seed, and a diagonal is there."""
    own, usual = (found("right", start=start) for start in ("mimetic", "own"))
    seen = found("diagonal", start="mimetic")
    figure = (
        f"{listed(own, '.1%')} right against {listed(usual, '.1%')}; in the best head {listed(seen, '.0%')} of queries "
        f"look most at their copy"
    )
    return Finding.of(figure, min(a - b for a, b in zip(own, usual, strict=True)) > 0, min(own) > 0.5, min(seen) > 0.5)


def no_ingredient_does_it_alone(found: Figures) -> Finding:
    """Every ingredient alone leaves more wrong, on average, than all of them."""
    means = {s: found.mean("right", start=s) for s in ("mimetic", "decay", "step", "products")}
    figure = f"all {means.pop('mimetic'):.1%}, " + ", ".join(f"{s} alone {mean:.1%}" for s, mean in means.items())
    return Finding.of(figure, max(means.values()) < found.mean("right", start="mimetic"))
