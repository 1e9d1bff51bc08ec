"""Latents by `regard.pool`: what is refused, what varies by call, probes of features."""

import pytest
import torch

import regard
from regard.networks.latents.flare import FlareModel
from regard.networks.latents.perceiver import fourier, positions
from regard.networks.latents.slot_autoencoder import SlotAutoencoder, SoftPlaces
from regard.networks.latents.tempr import TemPr
from regard.train.fit import Recipe
from regard.train.probe import Probe, probe


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("ep", {"channels": 12, "queries": 5}, "^queries: got 5 queries and d_out 1 for 12 channels"),
        ("slots", {"channels": 0}, "^channels: got 0, want at least 1"),
        ("slots", {"channels": 3, "rounds": 0}, "^rounds: got 0"),
        ("perceiver", {"channels": 3, "width": 8, "rounds": 2, "reads": 3}, "^reads: got 3, want 1 to 2"),
        ("perceiver", {"channels": 3, "width": 8, "heads": 3}, "^heads: got 3, want a divisor of the 8"),
        ("flare", {"channels": 12, "heads": 5}, "^heads: got 5, want a divisor of the 12"),
        ("flare", {"channels": 8, "scale": 0.0}, "^scale: got 0.0, want above 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name, config, said):
    with pytest.raises(ValueError, match=said):
        regard.pool(name, **config)


def test_arrays_and_masks_that_do_not_fit_are_named():
    pool = regard.pool("ep", channels=12, queries=3)
    with pytest.raises(ValueError, match=r"^array: got shape \(2, 5, 7\), want \(batch, n, 12\)"):
        pool(torch.randn(2, 5, 7))
    with pytest.raises(ValueError, match=r"^array: got no elements"):
        pool(torch.randn(2, 0, 12))
    with pytest.raises(ValueError, match=r"^key_mask: got torch.int64 of shape \(2, 5\), want bool"):
        pool(torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^features: got shape \(1, 2, 3, 5\), want \(batch, 4, n, channels\)"):
        TemPr(5, 3, latents=2, width=8, heads=2, head_dim=4)(torch.randn(1, 2, 3, 5))


def test_slots_of_another_number():
    pool, array = regard.pool("slots", channels=5, slots=3, width=8), torch.randn(2, 7, 5)
    draws = [pool.start(2, torch.Generator().manual_seed(seed), 6) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert pool(array, start=draws[0]).shape == (2, 6, 8)
    first, second = (pool(array, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first, second)


def test_fourier_features():
    found = positions((3, 5), 2)
    assert found.shape == (15, 2 * 5)
    torch.testing.assert_close(found[:, 0], torch.tensor([-1.0, 0, 1]).repeat_interleave(5))
    torch.testing.assert_close(found[:, 1], torch.linspace(-1, 1, 5).repeat(3))
    half = fourier(torch.tensor([[0.5]]), 2, [4])[0]  # frequencies 1 and 2
    torch.testing.assert_close(half, torch.tensor([0.5, 1, 0, 0, -1]), atol=1e-6, rtol=0)


def test_a_probe_learns_what_a_mean_hides():
    """One of 7 features says the class by its first channel, found by its second; the others cancel."""
    noise = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256,), generator=noise)
    features = torch.randn(256, 7, 6, generator=noise)
    place = torch.randint(7, (256,), generator=noise)
    features[torch.arange(256), place, 1] = 4.0
    features[torch.arange(256), place, 0] = labels * 2.0 - 1
    features[:, :, 0] -= features[:, :, 0].mean(1, keepdim=True)
    torch.manual_seed(0)
    made = probe(regard.pool("ep", channels=6, queries=2), features, labels, Recipe(150, rate=1e-2))
    right = (made(features).argmax(1) == labels).float().mean().item()
    torch.manual_seed(0)
    plain = probe(None, features, labels, Recipe(150, rate=1e-2))
    assert right > 0.9 > (plain(features).argmax(1) == labels).float().mean().item() + 0.1


def test_probes_leave_padding_out():
    features, real = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)
    real[1, 2:] = False
    for pool in (None, regard.pool("ep", channels=6, queries=2)):
        made = Probe(pool, 6, 4).eval()
        other = torch.where(real[..., None], features, 9.0)
        torch.testing.assert_close(made(features, real), made(other, real))
    with pytest.raises(ValueError, match=r"^pool: got one of 6 channels, want one of the features' 5"):
        Probe(regard.pool("ep", channels=6, queries=2), 5, 4)
    with pytest.raises(ValueError, match=r"^labels: got shape \(2,\), want \(3,\)"):
        probe(None, features, torch.zeros(2, dtype=torch.int64))


def test_slots_draw_images_of_the_paper_s_size():
    """The parts' parameters as the paper's table of layers gives them, 8 · 2⁴ pixels, shares that sum to one."""
    model = SlotAutoencoder(7, seed=0)
    conv, mlp, places = 64 * 64 * 25 + 64, 2 * (64 * 64 + 64), 4 * 64 + 64
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["encoder"] == 3 * 64 * 25 + 64 + 3 * conv + places + 128 + mlp
    assert count["decoder"] == places + 5 * conv + 64 * 4 * 9 + 4
    assert model.shape == (3, 128, 128)
    small = SlotAutoencoder(3, 2, 8, 5, 1, seed=0).double()
    images = torch.rand(2, 2, 10, 10, dtype=torch.float64)
    drawn = small(images, torch.Generator().manual_seed(0))
    assert drawn.parts.shape == (2, 3, 2, 10, 10)
    torch.testing.assert_close(drawn.shares.sum(1), torch.ones(2, 10, 10, dtype=torch.float64))
    torch.testing.assert_close(drawn.image[:, 1], (drawn.shares * drawn.parts[:, :, 1]).sum(1))
    (a, *_) = small.maps(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(a.flatten(2).sum(2), torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^images: got shape \(2, 2, 9, 9\)"):
        small(images[..., :9, :9])


def test_slots_in_another_order_draw_the_same_image_and_places_are_soft():
    model = SlotAutoencoder(3, 2, 8, 5, 0, seed=0).double()
    slots = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(model.draw(slots[:, [2, 0, 1]]).image, model.draw(slots).image)
    places = SoftPlaces(4).double()
    torch.nn.init.eye_(places.map.weight)
    torch.nn.init.zeros_(places.map.bias)
    corner = places(torch.zeros(1, 4, 3, 5, dtype=torch.float64))[0, :, 2, 1]
    torch.testing.assert_close(corner, torch.tensor([1.0, 0.25, 0.0, 0.75], dtype=torch.float64))


def test_an_autoencoder_of_slots_learns():
    """Its error falls, and each part has a gradient."""
    model = SlotAutoencoder(3, 1, 8, 6, 0, seed=0)
    images, generator = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.Generator()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = model.loss(images, generator.manual_seed(1))
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_network_of_flare_norms_before_each_step_and_adds_it():
    """Two blocks between its ends, whose norms all differ; what is masked tells the others nothing."""
    torch.manual_seed(0)
    model, x = FlareModel(3, 2, width=8, blocks=2, latents=5, heads=4, hidden=1).double(), torch.randn(2, 7, 3).double()
    for place, norm in enumerate(model.norms):
        torch.nn.init.constant_(norm.bias, place + 1.0)
    real = torch.ones(2, 7, dtype=torch.bool)
    real[:, 5:] = False
    first, second, third, fourth = model.norms
    want = model.first(x)
    want = want + model.mixers[0](first(want), real)
    want = want + model.mlps[0](second(want))
    want = want + model.mixers[1](third(want), real)
    want = want + model.mlps[1](fourth(want))
    found = model(x, real)
    assert found.shape == (2, 7, 2)
    torch.testing.assert_close(found, model.last(want))
    torch.testing.assert_close(model(x[:, :5]), found[:, :5])
