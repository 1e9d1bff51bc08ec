"""Layers as integration over depth: the parallel block as an Euler step, orders of error, gradients, digits."""

from functools import partial
from itertools import pairwise
from math import log2

import pytest
import torch

from regard.networks.lm import Config
from regard.networks.neural_ode.solver import Solver
from regard.networks.neural_ode.vit import ODEViT, change
from regard.networks.vision.vit import ViT

SIZES = {"width": 32, "heads": 2}
EULER = Solver()


def vit(solver=EULER, time=1.0, layers="softmax", seed=0):
    return ODEViT(Config(10, layers=layers, **SIZES), (8, 8), 2, solver, time, seed=seed)


@pytest.fixture
def field():
    """F of one layer in float64, and a start."""
    torch.manual_seed(0)
    return partial(change, vit().double().layers[0]), torch.randn(3, 16, 32, dtype=torch.float64)


@torch.no_grad()
def test_a_unit_euler_step_is_the_parallel_block():
    """Euler in unit steps equals parallel layers, and T steps T layers that share their weights (1e-12)."""
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    plain = ViT(Config(10, layers="softmax*3", **SIZES), (8, 8), 2, backbone="parallel").double()
    found = vit(layers="softmax*3").double()
    found.load_state_dict(plain.state_dict())
    torch.testing.assert_close(found(images), plain(images), atol=1e-12, rtol=0)
    for layer in plain.layers[1:]:
        layer.load_state_dict(plain.layers[0].state_dict())
    shared = vit(Solver("euler", 3), 3.0).double()
    shared.load_state_dict({name: weight for name, weight in plain.state_dict().items() if name in shared.state_dict()})
    torch.testing.assert_close(shared(images), plain(images), atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("rk4", 4)])
def test_the_global_error_has_its_order(field, method, order):
    """The error after a span of 4 falls as h (Euler) and h⁴ (RK4), to 0.3 in the exponent."""
    f, x = field
    want = Solver("dormand_prince", None, 1e-12)(f, x, 4.0)
    errors = [(Solver(method, steps)(f, x, 4.0) - want).norm().item() for steps in (8, 16, 32, 64)]
    slopes = [log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - order) < 0.3 for slope in slopes)


@torch.no_grad()
def test_adaptive_steps_keep_their_tolerance(field):
    """Dormand–Prince: a finer tolerance takes more evaluations, errs less and within ten times it; time runs back."""
    f, x = field
    want, errors, calls = Solver("rk4", 256)(f, x, 2.0), [], []

    def counted(y):
        calls[-1] += 1
        return f(y)

    for tolerance in (1e-3, 1e-6, 1e-9):
        calls.append(0)
        errors.append((Solver("dormand_prince", None, tolerance)(counted, x, 2.0) - want).abs().max().item())
        assert errors[-1] < 10 * tolerance * (1 + want.abs().max())
    assert errors == sorted(errors, reverse=True)
    assert calls == sorted(set(calls))
    exact = Solver("dormand_prince", None, 1e-10)
    torch.testing.assert_close(exact(f, exact(f, x, 2.0), -2.0), x, atol=1e-8, rtol=0)


@pytest.mark.parametrize("solver", [Solver("dormand_prince", None, 1e-9), Solver("rk4", 32), Solver("euler", 1)])
def test_the_adjoint_gives_the_gradients(field, solver):
    """Adjoint and direct gradients agree to the solver's error, and one Euler step's differ by what it leaves out."""
    f, x = field
    parameters, found = list(f.args[0].parameters()), []
    for adjoint in (False, True):
        start = x.clone().requires_grad_()
        out = Solver(solver.method, solver.steps, solver.tolerance, adjoint)(f, start, 1.0, parameters)
        found.append(torch.autograd.grad(out.sin().sum(), (start, *parameters)))
    apart = max((a - b).abs().max().item() for a, b in zip(*found, strict=True))
    assert (apart < 1e-6) == (solver.method != "euler")


def test_the_adjoint_keeps_no_steps(field):
    """Tensors saved for the backward pass do not grow with the steps by the adjoint, and do by direct gradients."""
    f, x = field
    parameters, saved = list(f.args[0].parameters()), []
    for adjoint in (True, False):
        for steps in (2, 8):
            kept = []

            def pack(tensor, kept=kept):
                kept.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                Solver("rk4", steps, adjoint=adjoint)(f, x.clone().requires_grad_(), 1.0, parameters)
            saved.append(sum(kept))
    assert saved[0] == saved[1] == x.numel()
    assert saved[3] > 3.5 * saved[2]


def test_bad_input_is_named():
    for arguments, name in (
        ({"method": "heun"}, "method"),
        ({"steps": 0}, "steps"),
        ({"method": "rk4", "steps": None}, "steps"),
        ({"tolerance": 0.0}, "tolerance"),
    ):
        with pytest.raises(ValueError, match=name):
            Solver(**arguments)
    with pytest.raises(RuntimeError, match="tolerance"):
        Solver("dormand_prince", None)(lambda x: x / 0, torch.ones(1), 1.0)
