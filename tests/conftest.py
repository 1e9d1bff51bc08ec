"""What every test shares: two workers on two cores, so one thread each, no network, and the same draws in every run."""

import os
import random
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import hypothesis
import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported
torch.set_num_threads(1)
hypothesis.settings.register_profile("same", database=None, derandomize=True, deadline=None)
hypothesis.settings.load_profile("default" if "DRAW_ANEW" in os.environ else "same")


def seed(name: str) -> None:
    """Of all that is drawn without a generator; by name, as numbers such as 0 are those of generators in tests."""
    drawn = zlib.crc32(f"{name} {os.environ.get('DRAW_ANEW', '')}".encode())
    torch.manual_seed(drawn)
    np.random.seed(drawn)
    random.seed(drawn)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A test draws the same whichever tests ran before it in its process, which their speed decides."""
    seed(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """So does a fixture that tests share, whichever of them asks for it first."""
    if fixturedef.scope == "function":
        return (yield)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed(f"{fixturedef.baseid} {fixturedef.argname}")
    try:
        return (yield)
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
