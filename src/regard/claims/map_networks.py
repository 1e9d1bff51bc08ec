"""Networks of feature maps: their sizes beside those printed, and what they are where an attention is off."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.digits import digits
from regard.claims.testbeds.maps import apart, count, drawn
from regard.networks.vision.a2n import A2N
from regard.networks.vision.bevanet import BEVANet, BEVANetClasses
from regard.networks.vision.deeplab import Xception
from regard.networks.vision.fpenet import FPENet
from regard.networks.vision.han import HAN, LayerAttention
from regard.networks.vision.high_order import Adversary, MixedHighOrder
from regard.networks.vision.overlock import OverLoCK
from regard.networks.vision.patchconvnet import AttentionPool, PatchConvNet
from regard.networks.vision.psmnet import PSMNet, expected
from regard.networks.vision.residual_attention import AttentionModule, ResidualAttentionNetwork
from regard.networks.vision.resnest import ResNeSt
from regard.networks.vision.vit import settled


def size_of(make: Callable[[], nn.Module]) -> dict[str, int]:
    """Parameters, and multiply-adds of an image of 224 × 224."""
    with torch.device("meta"):
        net = make().eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    return {"parameters": count(net), "multiply_adds": counter.get_total_flops() // 2}


def is_printed(found: Figures, parameters: float, multiply_adds: float, within: float) -> Finding:
    """Both are what the paper prints, to a share of it."""
    own, work = found.one("parameters"), found.one("multiply_adds")
    figure = f"{own:,} parameters, printed {parameters:g} M; {work / 1e9:.2f} G multiply-adds, printed {multiply_adds}"
    off = max(abs(own / 1e6 / parameters - 1), abs(work / 1e9 / multiply_adds - 1))
    return Finding.of(figure, off <= within)


def has(found: Figures, parameters: int) -> Finding:
    """As many parameters as the authors' network, exactly."""
    own = found.one("parameters")
    return Finding.of(f"{own:,} parameters, the authors' network {parameters:,}", own == parameters)


@measured(scale=(2, 3, 4))
def a2n(scale: int) -> dict[str, int]:
    """Parameters of A2N."""
    with torch.device("meta"):
        return {"parameters": count(A2N(scale))}


def is_a2n(found: Figures) -> Finding:
    """1,036 thousand for ×2 and ×3, 1,047 thousand for ×4."""
    own = found("parameters")
    figure = f"{listed(own, ',')} for ×2, ×3, ×4, printed 1,036 K, 1,036 K, 1,047 K"
    return Finding.of(figure, [each // 1000 for each in own] == [1036, 1036, 1047])


@measured(scale=(2, 4))
def a2n_shares(scale: int) -> dict[str, float]:
    """The two shares of every block: their sums less one, and the smallest difference between two images."""
    torch.manual_seed(0)
    net, images = A2N(scale, blocks=2).double(), drawn(2, 3, 7, 5)
    with torch.no_grad():
        shares = net.shares(images)
    sums = shares.sum(2)
    return {"sum": apart(sums, torch.ones_like(sums)), "gap": (shares[0] - shares[1]).abs().min().item()}


@measured()
def han() -> dict[str, int]:
    """Parameters of HAN for ×2, with the 24 fixed numbers of two colour shifts, which are no weights here."""
    with torch.device("meta"):
        return {"parameters": count(HAN()) + 24}


@measured()
def han_start() -> dict[str, float]:
    """HAN untrained against its trunk without attention, and against RCAN's, which joins no groups."""
    torch.manual_seed(0)
    net, images = HAN(2, channels=16, groups=3, blocks=1, peak=1).double(), drawn(1, 3, 5, 7)
    with torch.no_grad():
        start = net.first(images - net.mean)
        maps = net.maps(start)
        plain = start + net.both(torch.cat((maps[0], net.joined(torch.cat(maps, 1))), 1))
        out, rcan = net(images), net.upsample(start + maps[0]) + net.mean
        return {"plain": apart(out, net.upsample(plain) + net.mean), "rcan": apart(out, rcan)}


def begins_plain(found: Figures) -> Finding:
    """Equal to 1e-9; the convolutions that join the groups remain."""
    plain, rcan = found.one("plain"), found.one("rcan")
    return Finding.of(f"equal to {plain:.0e}; {rcan:.2g} from RCAN", plain < 1e-9, rcan > 1e-3)


@measured()
def layers_apart() -> dict[str, float | bool]:
    """Attention between four layers against softmax of negated products; whether each weighs itself least."""
    attention, maps = LayerAttention().double(), drawn(2, 4, 3, 2, 5)
    with torch.no_grad():
        attention.gamma.fill_(1.0)
        tokens = maps.flatten(2)
        products = tokens @ tokens.mT
        weights = torch.softmax(products.amax(-1, keepdim=True) - products, -1)
        off = apart(attention(maps), maps + (weights @ tokens).view_as(maps))
    return {"apart": off, "least": bool((weights.argmin(-1) == torch.arange(4)).all())}


def is_of_the_unlike(found: Figures) -> Finding:
    """Equal to 1e-9, each layer's own weight the least."""
    off, least = found.one("apart"), found.one("least")
    return Finding.of(
        f"equal to {off:.0e}; a layer's own weight is {'' if least else 'not '}its least", off < 1e-9, least
    )


@measured(size=["S60"])
def patchconvnet(size: str) -> dict[str, int]:
    """Parameters and multiply-adds of PatchConvNet."""
    return size_of(lambda: PatchConvNet(size))


def patchconvnet_of(size: str) -> Any:
    """Those of one size."""
    return patchconvnet.cell(size=size)


@measured(y=(1, 5), x=(1, 3))
def zero_query(y: int, x: int) -> dict[str, float]:
    """The pooling with queries of zero: its map against 1 / (n + 1), and what it gives against the mean of values."""
    torch.manual_seed(0)
    pool: Any = AttentionPool(8, 1, 2, 1e-4).double()
    projection, maps = pool.attention.projection, drawn(2, 8, y, x)
    with torch.no_grad():
        for parameter in projection.q.parameters():
            parameter.zero_()
        weights = pool.map(maps)
        query, keys = pool.keys(maps)
        mean = projection.out(projection.v(keys).mean(1, keepdim=True))
        off = apart(pool.attention(query, context=keys), mean)
    return {"map": apart(weights, torch.full_like(weights, 1 / (y * x + 1))), "mean": off}


def is_a_mean(found: Figures) -> Finding:
    """Both to 1e-9."""
    flat, mean = max(found("map")), max(found("mean"))
    figure = f"equal weights to {flat:.0e}, the mean of values to {mean:.0e}"
    return Finding.of(figure, flat < 1e-9, mean < 1e-9)


@measured()
def psmnet() -> dict[str, int]:
    """Parameters of PSMNet."""
    with torch.device("meta"):
        return {"parameters": count(PSMNet())}


@measured()
def disparity() -> dict[str, float]:
    """The largest error of the expected disparity of sure costs, and what it is of two that are alike, 1 and 4."""
    truth = torch.randint(13, (2, 1, 5, 7), generator=torch.Generator().manual_seed(0))
    costs = torch.full((2, 13, 5, 7), -1e4, dtype=torch.float64).scatter_(1, truth, 0.0)
    two = torch.full((1, 6, 1, 1), -1e4, dtype=torch.float64)
    two[:, [1, 4]] = 0.0
    return {"error": apart(expected(costs), truth.double()), "between": expected(two).item()}


def is_exact(found: Figures) -> Finding:
    """No error, and the mean of the two."""
    error, between = found.one("error"), found.one("between")
    return Finding.of(f"off by {error:g}; between 1 and 4 it is {between:g}", error == 0, between == 2.5)


@measured(layers=[56])
def residual_attention(layers: int) -> dict[str, int]:
    """Parameters and multiply-adds of a residual attention network."""
    return size_of(lambda: ResidualAttentionNetwork(layers))


def residual_attention_of(layers: int) -> Any:
    """Those of so many layers."""
    return residual_attention.cell(layers=layers)


def masked(module: Any, x: Tensor, mask: Tensor) -> Tensor:
    """What an attention module gives with this mask in place of its own."""
    hook = module.mask.register_forward_hook(lambda *_: mask)
    try:
        return module(x)
    finally:
        hook.remove()


@measured(depth=(1, 2, 3))
def zero_mask(depth: int) -> dict[str, float | bool]:
    """An attention module with a mask of zero against its units one after the other; with its own; the mask's range."""
    torch.manual_seed(0)
    module, x = AttentionModule(8, depth).eval(), torch.randn(2, 8, 13, 9)
    with torch.no_grad():
        mask, plain = module.map(x), module.after(module.trunk(module.before(x)))
        same, own = torch.equal(masked(module, x, torch.zeros_like(x)), plain), apart(module(x), plain)
    return {"same": same, "own": own, "least": mask.min().item(), "most": mask.max().item()}


def is_the_trunk(found: Figures) -> Finding:
    """Bit by bit; the module's own mask lies between zero and one and changes something."""
    same, own, least, most = (found(name) for name in ("same", "own", "least", "most"))
    figure = f"bit by bit in {sum(same)} of {len(same)} depths; masks from {min(least):.2f} to {max(most):.2f}"
    return Finding.of(figure, all(same), min(own) > 0, min(least) > 0, max(most) < 1)


@measured()
def resnest() -> dict[str, int]:
    """Parameters and multiply-adds of ResNeSt-50."""
    return size_of(lambda: ResNeSt(50))


@measured()
def fpenet() -> dict[str, int]:
    """Parameters of FPENet."""
    with torch.device("meta"):
        return {"parameters": count(FPENet())}


def is_fpenet(found: Figures) -> Finding:
    """At most 0.4 million, and 115,125 as public code of it has."""
    own = found.one("parameters")
    return Finding.of(f"{own:,} parameters, public code 115,125, printed 0.4 M", own <= 400_000, own == 115_125)


BEVANETS = {
    "BEVANet-S": (19, (2, 2, 3), 32, 96, 128, True),
    "BEVANet": (19, (2, 2, 4), 64, 96, 128, False),
    "BEVANet, ADE20k": (150, (2, 2, 4), 64, 96, 128, True),
}
"""The sizes of each network whose parameters are printed, two with the heads that only training reads."""


@measured()
def bevanet() -> dict[str, int]:
    """Parameters of BEVANet."""
    with torch.device("meta"):
        return {name: count(BEVANet(*sizes)) for name, sizes in BEVANETS.items()}


def is_bevanet(found: Figures) -> Finding:
    """15.2, 58.6 and 58.9 million, and exactly those of the authors' networks."""
    own = [found.one(name) for name in BEVANETS]
    figure = f"{listed(own, ',')} parameters, printed 15.2 M, 58.6 M, 58.9 M (the first and last with training's heads)"
    return Finding.of(
        figure,
        [f"{each / 1e6:.1f}" for each in own] == ["15.2", "58.6", "58.9"],
        own == [15_186_004, 58_599_296, 58_857_690],
    )


OVERLOCKS = {
    "xt": (16, 2.6, 17_307_272),
    "t": (33, 5.5, 34_990_472),
    "s": (56, 9.7, 58_309_772),
    "b": (95, 16.7, 98_012_968),
}
"""Of each network the millions of parameters and the G multiply-adds printed, and the parameters of the authors'."""


@measured(size=("xt", "t", "s", "b"))
def overlock(size: str) -> dict[str, int]:
    """Parameters of OverLoCK as it is trained and as it is deployed, and the multiply-adds of the latter."""
    with torch.device("meta"):
        trained = count(OverLoCK(size, supervised=True))
    return size_of(lambda: OverLoCK(size).folded()) | {"trained": trained}


def is_overlock(found: Figures) -> Finding:
    """Parameters to the last digit printed, and exactly those of the authors' in training; multiply-adds to 5%."""
    told, holds = [], []
    for size, (millions, giga, exact) in OVERLOCKS.items():
        own, trained, work = (found(name, size=size)[0] for name in ("parameters", "trained", "multiply_adds"))
        told.append(
            f"{size} {own:,} ({millions} M printed), {trained:,} in training, {work / 1e9:.2f} G ({giga} G printed)"
        )
        holds += [round(own / 1e6) == millions, trained == exact, abs(work / 1e9 / giga - 1) <= 0.05]
    return Finding.of("; ".join(told), *holds)


@measured(adversary=(True, False), seed=(0, 1, 2), rounds=[120])
def branches(adversary: bool, seed: int, rounds: int) -> dict[str, float]:
    """How far apart unit descriptors of four orders are on unseen digits after training, and the share told apart."""
    images, labels, unseen, answers = digits(seed)
    torch.manual_seed(seed)
    net, against = MixedHighOrder(10, 4, 1, (1, 1, 1, 1), 8, 32, seed), Adversary(32)
    learned = torch.optim.Adam([*net.parameters(), *against.parameters()], 3e-3)
    grown = functools.partial(F.interpolate, scale_factor=4.0)
    for _ in range(rounds):
        rows = torch.randint(len(labels), (32,))
        found = net.descriptors(grown(images[rows].expand(-1, 3, -1, -1)))
        loss = F.cross_entropy(net.told(found).flatten(0, 1), labels[rows].repeat_interleave(4))
        loss = loss + against(found[0]) if adversary else loss
        learned.zero_grad()
        loss.backward()
        learned.step()
    with torch.no_grad():
        found = net.eval().descriptors(grown(unseen.expand(-1, 3, -1, -1)))
        right = (net.told(found).sum(1).argmax(1) == answers).float().mean().item()
        unit = F.normalize(found[0], dim=-1)
        gaps = [(unit[r] - unit[s]).norm(dim=1).mean().item() for r, s in itertools.combinations(range(4), 2)]
    return {"apart": sum(gaps) / len(gaps), "right": right}


def are_further_apart(found: Figures) -> Finding:
    """With the adversary than without, seed by seed."""
    on, off = (found("apart", adversary=each) for each in (True, False))
    right, plain = (found("right", adversary=each) for each in (True, False))
    figure = f"apart by {listed(on, '.2f')}, without the adversary {listed(off, '.2f')}; "
    figure += f"{listed(right, '.1%')} told apart, {listed(plain, '.1%')}"
    return Finding.of(figure, all(a > b for a, b in zip(on, off, strict=True)))


PRETRAINED = {"BEVANet-S": (1000, (2, 2, 3), 32), "BEVANet": (1000, (2, 2, 4), 64)}
"""Sizes of the networks of classes of images whose parameters are printed."""


@measured()
def bevanet_classes() -> dict[str, int]:
    """Parameters of BEVANet for classes of images."""
    with torch.device("meta"):
        return {name: count(BEVANetClasses(*sizes)) for name, sizes in PRETRAINED.items()}


def is_bevanet_classes(found: Figures) -> Finding:
    """16.3 and 57.4 million."""
    own = [found.one(name) for name in PRETRAINED]
    figure = f"{listed(own, ',')} parameters, printed 16.3 M, 57.4 M"
    return Finding.of(figure, [f"{each / 1e6:.1f}" for each in own] == ["16.3", "57.4"])


@measured()
def atrous() -> dict[str, float]:
    """The last map of a small Xception of stride 16, at every other cell, against that of stride 32."""
    torch.manual_seed(0)
    coarse, fine = (Xception(8, 12, 2, (10, 14), stride).double() for stride in (32, 16))
    images = torch.randn(2, 3, 149, 211, dtype=torch.float64)
    fine.load_state_dict(settled(coarse, images).state_dict())
    fine.eval()
    with torch.no_grad():
        return {"apart": apart(fine(images)[1][:, :, ::2, ::2], coarse(images)[1])}
