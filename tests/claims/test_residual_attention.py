"""Residual attention networks: sizes, and a mask of zero."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.networks.vision.residual_attention import AttentionModule, ResidualAttentionNetwork


@pytest.mark.parametrize(
    ("layers", "parameters", "printed", "multiply_adds"), [(56, 31_810_728, 31.9, 6.2), (92, 52_466_344, 51.3, 10.4)]
)
def test_the_sizes(layers, parameters, printed, multiply_adds, record_property):
    """The parameters of the authors' graphs, exactly; within 3% of what the paper prints of parameters and FLOPs."""
    with torch.device("meta"):
        net = ResidualAttentionNetwork(layers)
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    count, work = sum(p.numel() for p in net.parameters()), counter.get_total_flops() / 2e9
    record_property("parameters", f"{count:,}")
    record_property("GMAC", f"{work:.2f}")
    assert count == parameters
    assert abs(count / 1e6 / printed - 1) < 0.03
    assert abs(work / multiply_adds - 1) < 0.03


@pytest.mark.parametrize(("depth", "size"), [(1, (5, 3)), (3, (13, 9)), (2, (1, 1))])
def test_a_mask_of_zero_leaves_the_trunk(depth, size):
    """With M = 0 the module is its units one after the other, bit by bit; M lies between zero and one."""
    torch.manual_seed(0)
    module, x = AttentionModule(8, depth).eval(), torch.randn(2, 8, *size)
    mask = module.map(x)
    assert mask.shape == x.shape
    assert 0 < mask.min() <= mask.max() < 1
    plain = module.after(module.trunk(module.before(x)))
    assert not torch.equal(module(x), plain)
    module.mask.register_forward_hook(lambda *_: torch.zeros_like(x))
    assert torch.equal(module(x), plain)


def test_any_image_and_other_layers():
    torch.manual_seed(0)
    assert ResidualAttentionNetwork(56, 5, 8).eval()(torch.randn(1, 3, 35, 20)).shape == (1, 5)
    with pytest.raises(ValueError, match="layers: got 50, want one of 56, 92"):
        ResidualAttentionNetwork(50)
