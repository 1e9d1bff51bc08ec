"""Self-critical training: a writer's own draws are rewarded by how much better they are than what it would write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from regard.networks.writer import Writer

Reward = Callable[[Tensor], Tensor]
"""Sequences ``(b, steps)`` to the reward of each ``(b,)``."""


@torch.no_grad()
def drawn(model: Writer, source: Tensor, steps: int, generator: Generator, lengths: Tensor | None = None) -> Tensor:
    """Tokens ``(b, steps)``, each drawn from what the writer says after those before it."""
    encoded = model.encode(source, lengths)
    state, written = model.start(encoded), []
    previous = torch.full((source.shape[0],), model.target, device=source.device)
    for _ in range(steps):
        state, logits = model.step(state, previous, encoded)
        chances = logits.softmax(-1).cpu()
        previous = torch.multinomial(chances, 1, generator=generator)[:, 0].to(source.device)
        written.append(previous)
    return torch.stack(written, 1)


def through(tokens: Tensor, stop: int) -> Tensor:
    """Which tokens ``(b, n)`` come up to the first ``stop``, that one among them."""
    stopped = (tokens == stop).long()
    return stopped.cumsum(1) - stopped == 0


def self_critical(
    model: Writer,
    source: Tensor,
    reward: Reward,
    steps: int,
    stop: int,
    generator: Generator,
    lengths: Tensor | None = None,
) -> Tensor:
    """The loss whose gradient raises the chance of draws by what they are better than the likeliest caption.

        L = − mean (r(y) − r(ŷ)) Σ_t log p(y_t | y_<t),   y drawn, ŷ the likeliest token at each step

    The sum goes up to the first ``stop``. The baseline is the writer's own, so that none is learned.

    Args:
        source, lengths: as `Writer.encode` takes them. reward: r. steps: tokens that are written. generator: of draws.

    Paper: Rennie et al., arXiv 1612.00563, which bottom-up and top-down attention (Anderson et al., arXiv 1707.07998)
    is trained by in the end.
    """
    tokens = drawn(model, source, steps, generator, lengths)
    better = reward(tokens) - reward(model.generate(source, steps, lengths))
    logs = model(source, tokens, lengths).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    return -(better[:, None] * logs * through(tokens, stop)).sum(1).mean()
