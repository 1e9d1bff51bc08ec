"""The J1-J2 model on 4 × 4 sites: how near a wave function comes to the exact energy.

    python benchmarks/waves.py --attention factored

Stochastic reconfiguration, the rate falling to zero over the second half of the steps. Prints the relative error every
20 steps, and in the end; about two seconds a step on one thread.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import typer

from regard.studies.wave_function import Heisenberg, Reconfiguration, WaveFunction


def main(
    attention: Literal["factored", "softmax"] = "factored",
    steps: Annotated[int, typer.Option(min=1)] = 260,
    samples: Annotated[int, typer.Option(min=2)] = 1024,
    rate: float = 0.08,
    seed: int = 0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Trains one network and prints how far its energy is from the exact one."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = Heisenberg(4)
    exact = model.ground_energy()
    trainer = Reconfiguration(WaveFunction(attention=attention), model, samples=samples)
    for step in range(steps):
        energy = trainer.step(rate * min(1.0, (steps - step) / (0.5 * steps)))
        if step % 20 == 0:
            print(f"step {step}: {(energy - exact) / abs(exact):.2e}", flush=True)
    print(f"{attention}, {steps} steps: {(trainer.energy() - exact) / abs(exact):.2e}")


if __name__ == "__main__":
    typer.run(main)
