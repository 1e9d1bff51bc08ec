"""The recursive pyramid: where it begins, and which stages its feedback reaches."""

from __future__ import annotations

from typing import Any

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import apart, drawn
from regard.networks.vision.detectors import DetectoRS


@measured(steps=(2, 3), deformable=(True, False))
def start(steps: int, deformable: bool) -> dict[str, float]:
    """An untrained network whose backbones are copies of the first against the pyramid of one pass."""
    net = DetectoRS((1, 1, 1, 1), 8, 16, steps, deformable=deformable).double().eval()
    first, *later = net.backbones
    for each in later:
        each.load_state_dict(first.state_dict(), strict=False)
    images = drawn(2, 3, 75, 70)
    with torch.no_grad():
        pairs = zip(net(images), net.neck(first(images)), strict=True)
        return {"apart": max(apart(one, other) for one, other in pairs)}


@measured()
def feedback() -> dict[str, str]:
    """The stages of a later backbone that change where the pyramid of the pass before does."""
    torch.manual_seed(0)
    net: Any = DetectoRS((1, 1, 1, 1), 8, 16).double().eval()
    for stage in net.backbones[1].stages:
        for block in stage.children():
            if block.feedback is not None:
                torch.nn.init.normal_(block.feedback.weight, std=0.1)
    images, read = drawn(2, 3, 75, 70), []
    with torch.no_grad():
        maps = net.neck(net.backbones[0](images))
        plain = net.backbones[1](images, [net.rates(each) for each in maps])
        for level in range(4):
            changed = [each + (place == level) for place, each in enumerate(maps)]
            found = net.backbones[1](images, [net.rates(each) for each in changed])
            read.append("".join(str(n) for n in range(4) if not torch.equal(found[n], plain[n])) or "-")
    return {"read": " ".join(read)}


def reaches_all_but_the_first(found: Figures) -> Finding:
    """A level reaches its own stage and the later ones; the finest none."""
    read = found.one("read")
    figure = f"the levels of the pyramid, fine to coarse, reach the stages {read.replace(' ', ', ')}"
    return Finding.of(figure, read == "- 123 23 3")
