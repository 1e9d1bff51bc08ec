"""Wave functions of spins: exact energies, and networks trained by stochastic reconfiguration."""

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from regard.studies.wave_function import Heisenberg, Reconfiguration, WaveFunction, log_cosh, variation

EXACT = {0.0: -0.701780, 0.5: -0.528620}  # of a site, 4 × 4


@pytest.mark.parametrize("j2", EXACT)
def test_energies_of_the_lattice(j2):
    """4 × 4, 12,870 states: the lowest energy a site is the known one, with the sign rule and by SciPy without it."""
    assert Heisenberg(4, j2=j2).ground_energy() / 16 == pytest.approx(EXACT[j2], abs=1e-6)
    model = Heisenberg(4, j2=j2, marshall=False)
    apply = model.operator(model.states())
    operator = LinearOperator((12870, 12870), matvec=lambda x: apply(torch.from_numpy(x.ravel())).numpy(), dtype="f8")
    assert eigsh(operator, k=1, which="SA", tol=1e-8)[0][0] / 16 == pytest.approx(EXACT[j2], abs=1e-6)


def test_log_cosh_is_that_of_complex_numbers():
    """Its real part, and its imaginary part up to whole turns."""
    a, b = torch.randn(2, 7, 5, dtype=torch.float64) * 4
    want, got = torch.complex(a, b).cosh().log().sum(-1), log_cosh(a, b)
    torch.testing.assert_close(got[:, 0], want.real)
    torch.testing.assert_close(torch.exp(1j * got[:, 1]), torch.exp(1j * want.imag))


@pytest.mark.parametrize("attention", ["factored", "softmax"])
def test_reconfiguration_finds_the_ground_state(attention):
    """2 × 2: both networks come within 1e-3 of the exact energy; derivatives are those of autograd."""
    torch.manual_seed(0)
    model = Heisenberg(2)
    network = WaveFunction(2, 1, attention, width=8, heads=2, depth=1)
    trainer, exact = Reconfiguration(network, model, samples=64), model.ground_energy()
    found = trainer.derivatives(trainer.states[:3])
    for part in range(2):
        network.zero_grad()
        network(trainer.states[1:2])[0, part].backward()
        want = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        torch.testing.assert_close(found[part, 1], want, atol=1e-5, rtol=1e-4)
    for _ in range(40):
        trainer.step(0.2)
    error = (trainer.energy() - exact) / abs(exact)
    assert -1e-9 < error < 1e-3


def test_factored_attention_has_fewer_parameters():
    """4 × 4 in patches of 2 × 2: no queries, keys and places, one weight for each head and offset."""
    counts = {
        kind: sum(parameter.numel() for parameter in WaveFunction(attention=kind).parameters())
        for kind in ("factored", "softmax")
    }
    assert counts["softmax"] - counts["factored"] == 2 * (2 * 24 * 24 - 4 * 4) + 4 * 24
    spins = torch.where(torch.rand(5, 16) < 0.5, -1.0, 1.0)
    network = WaveFunction()
    _, maps = network.encoded(spins)
    assert torch.equal(maps[:, 0], maps[:, 4])
    moved = spins.view(5, 4, 4).roll(2, 1).flatten(1)
    torch.testing.assert_close(network(moved), network(spins))


def test_how_much_maps_differ_by_hand():
    """Two states whose shares are 1 and 3, by their maps; a map that is given nothing does not differ at all."""
    torch.manual_seed(0)
    states, shares = torch.tensor([[1.0, 1, -1, -1], [-1.0, 1, 1, -1]]), torch.tensor([1.0, 3.0])
    network = WaveFunction(2, 1, "softmax", width=8, heads=2, depth=1).double()
    maps = network.encoded(states.double())[1][0]
    mean = (maps[0] + 3 * maps[1]) / 4
    apart = [(each - mean).abs().sum(-1).mean(-1) / 2 for each in maps]
    want = (apart[0] + 3 * apart[1]) / 4
    found = variation(network, states.double(), shares)
    assert want.min() > 1e-3
    torch.testing.assert_close(found[0], want.detach())
    factored = WaveFunction(2, 1, width=8, heads=2, depth=1)
    assert variation(factored, states, shares).max() <= 1e-7
