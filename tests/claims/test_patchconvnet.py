"""PatchConvNet: published sizes, and a pooling whose zero query is a mean."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.networks.vision.patchconvnet import AttentionPool, PatchConvNet


def test_the_sizes(record_property):
    """S60, S120 and B60 have the authors' parameters; S60 takes 4.0 billion multiply-adds at 224 × 224."""
    with torch.device("meta"):
        nets = {size: PatchConvNet(size) for size in ("S60", "S120", "B60")}
        with FlopCounterMode(display=False) as counter:
            nets["S60"](torch.empty(1, 3, 224, 224))
    counts = {size: sum(p.numel() for p in net.parameters()) for size, net in nets.items()}
    record_property("parameters", counts)
    record_property("GMAC", f"{counter.get_total_flops() / 2e9:.3f}")
    assert counts == {"S60": 25_231_096, "S120": 47_723_896, "B60": 99_388_936}
    assert round(counter.get_total_flops() / 2e9, 1) == 4.0


@pytest.mark.parametrize(("y", "x"), [(1, 1), (5, 3)])
def test_a_zero_query_is_a_mean(y, x):
    """With queries of zero every key weighs 1 / (n + 1), the query's own included, as in the authors' code."""
    torch.manual_seed(0)
    pool = AttentionPool(8, 1, 2, 1e-4).double()
    projection = pool.attention.projection
    for parameter in (*projection.q.parameters(),):
        torch.nn.init.zeros_(parameter)
    maps = torch.randn(2, 8, y, x, dtype=torch.float64)
    torch.testing.assert_close(pool.map(maps), torch.full((2, 2, 1, y, x), 1 / (y * x + 1), dtype=torch.float64))
    query, keys = pool.keys(maps)
    values = projection.v(keys)
    assert values.shape[1] == y * x + 1
    want = projection.out(values.mean(1, keepdim=True))
    torch.testing.assert_close(pool.attention(query, context=keys), want, atol=1e-9, rtol=0)


def test_a_query_for_each_class_reads_cells_alone():
    torch.manual_seed(0)
    net = PatchConvNet(classes=5, per_class=True, width=16, depth=1).double()
    images = torch.randn(2, 3, 40, 19, dtype=torch.float64)
    features = net.features(images)
    assert net(images).shape == (2, 5)
    torch.testing.assert_close(net.pool.map(features).sum((3, 4)), torch.ones(2, 1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="size: got 'M', want one of S60, S120"):
        PatchConvNet("M")
