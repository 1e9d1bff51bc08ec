"""What authors' networks gave, by tests/reference/networks.py, and their weights by our names."""

import json
import re
from pathlib import Path

import torch

from reference.stages import state
from reference.waves import wave

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "networks.json").read_text())


def named(ours, theirs, names, made=None):
    """Their weights by our names: ``names`` are patterns of ours and what they are there, ``made`` what is done."""
    found, used = {}, set()
    for name, tensor in ours.items():
        there = name
        for pattern, by in names:
            there = re.sub(pattern, by, there)
        part = re.fullmatch(r"(.*qkv)\.([qkv])\.(.*)", there)
        if part:
            there = f"{part[1]}.{part[3]}"
        value = theirs[there]
        used.add(there)
        if part:
            value = value.chunk(3)["qkv".index(part[2])]
        for pattern, change in (made or {}).items():
            if re.search(pattern, there):
                value = change(value)
        assert value.numel() == tensor.numel(), (name, there, value.shape)
        found[name] = value.reshape(tensor.shape)
    assert not set(theirs) - used, sorted(set(theirs) - used)[:5]
    return found


def check(net, about, names, made=None, before=lambda theirs: theirs, call=None):
    """The numbers that come out are theirs, whose weights are changed by ``before`` first."""
    net = net.double().eval()
    net.load_state_dict(named(net.state_dict(), before(state(about["state"])), names, made))
    with torch.no_grad():
        out = (call or net)(*(wave(shape, 0.3 * place) for place, shape in enumerate(about["inputs"])))
    want = torch.tensor(about["out"], dtype=torch.float64)
    assert want.std() > 1e-3
    torch.testing.assert_close(out.flatten()[::3], want, atol=1e-7, rtol=0)
