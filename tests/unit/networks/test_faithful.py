"""Thresholds of parts: which patches of a data set they leave to the background."""

import pytest
import torch

from regard.networks.vision.ifam import FaithfulViT


def sample():
    torch.manual_seed(0)
    net = FaithfulViT(5, 3, 12, 2, 7, 1, 4, 3).double().eval()
    with torch.no_grad():
        net.prototypes.mul_(6)
    return net, [torch.rand(2, 3, 13, 18, dtype=torch.float64) for _ in range(3)]


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_thresholds_are_quantiles_of_what_is_each_parts(share):
    """By a loop over patches; then as many of a part's patches fall short as the share says, and no others come in."""
    net, batches = sample()
    own = {part: [] for part in range(3)}
    for images in batches:
        x = net.one(images)[:, 1:]
        for patch in x.flatten(0, 1):
            part = int((patch - net.prototypes).square().sum(-1).argmin())
            if part < 3:
                own[part].append(float(patch @ net.prototypes[part]))
    found = net.train().find_thresholds(batches, share)
    assert net.training
    for part, values in own.items():
        if not values:
            assert found[part] == float("-inf")
            continue
        place = share * (len(values) - 1)
        low, high = sorted(values)[int(place)], sorted(values)[-int(-place // 1)]
        assert found[part].item() == pytest.approx(low + (place - int(place)) * (high - low))
    x = net.eval().one(batches[0])[:, 1:]
    maps, like = net.maps(x), x @ net.prototypes.T
    assert (maps[..., :3] == 0).equal(like[..., :3] < found)
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
    assert FaithfulViT(5, 3, 12, 2, 7, 1, 4, 3).load_state_dict(net.float().state_dict())


def test_thresholds_hide_patches_from_the_second_stage():
    """With the highest thresholds what is kept reaches one of them."""
    net, batches = sample()
    net.find_thresholds(batches[:1], 1.0)
    after = net.all_outputs(batches[0])["kept"]
    assert after.any()
    like = net.one(batches[0])[:, 1:] @ net.prototypes.T
    reach = (like[..., :3] >= net.thresholds - 1e-9).any(-1)
    assert (reach | ~after).all()
    with pytest.raises(ValueError, match="share"):
        net.find_thresholds(batches, 1.5)
    with pytest.raises(ValueError, match="batches"):
        net.find_thresholds([])
