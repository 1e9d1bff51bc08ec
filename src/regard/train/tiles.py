"""Fewer pairs and fewer steps of a video model: tiles searched for layer by layer, and two ways to distil."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.build import build
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.patterns.base import Pattern
from regard.patterns.named import attention_tiles

Calls = Mapping[str, tuple[Tensor, Tensor, Tensor]]
"""q, k and v ``(b, h, n, d)`` of each layer, by its name."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""What a model says of noisy samples ``(b, …)`` at times ``(b,)``: where they flow."""


@dataclass(frozen=True)
class Choice:
    """The tiles of a layer.

    Args:
        pattern: the sparsest that passed, None where only all pairs did. references: its reference frames, those of the
            video where all pairs are kept. kept: the share of pairs. loss: what its output lost.
    """

    pattern: Pattern | None
    references: int
    kept: float
    loss: float


def spaced(frames: int, count: int) -> list[int]:
    """Reference frames: ``count`` of them, evenly from the first on."""
    return sorted({round(number * frames / count) for number in range(count)})


@torch.no_grad()
def search_tiles(
    calls: Calls, frames: int, tokens: int, most: float, references: Sequence[int] | None = None
) -> dict[str, Choice]:
    """For each layer the sparsest `attention_tiles` whose output stays within a loss of that of all pairs.

        loss = mean of (softmax over tiles · v − softmax over all · v)²,   kept (f + 2 k f − k² − k) / f²

    Args:
        calls: what each layer attended with, of the full model on some videos. frames, tokens: of a video and of a
            frame. most: the loss that passes. references: numbers k of reference frames that are tried, fewest first;
            the powers of two below ``frames`` if None.

    Raises:
        ValueError: other numbers of tokens, or of reference frames than 1 to below ``frames``; a loss below zero.

    Paper: Ding et al., arXiv 2502.06155.
    """
    tried = sorted(2**n for n in range(frames.bit_length()) if 2**n < frames) if references is None else references
    if most < 0 or any(not 1 <= count < frames for count in tried):
        raise wrong("most, references", f"{most}, {list(tried)}", f"0 or more, numbers of 1 to {frames - 1}")
    full, found = build("softmax"), {}
    for name, (q, k, v) in calls.items():
        if q.shape[2] != frames * tokens or k.shape[2] != frames * tokens:
            raise wrong("calls", f"{name} of {q.shape[2]} tokens", f"{frames} × {tokens}")
        wanted, choice = full(q, k, v), Choice(None, frames, 1.0, 0.0)
        n = torch.arange(frames * tokens)
        for count in sorted(tried):
            chosen = spaced(frames, count)
            pattern = attention_tiles(frames, tokens, chosen)
            seen = pattern.visible(n[:, None], n, len(n)).expand(len(n), len(n))
            out = full(q, k, v, Layout(mask=seen.to(q.device)[None, None]))
            loss = (out - wanted).square().mean().item()
            if loss <= most:
                choice = Choice(pattern, len(chosen), seen.double().mean().item(), loss)
                break
        found[name] = choice
    return found


def bounds(times: Tensor, segments: int) -> Tensor:
    """The time at which the segment of each time ends: the next lower multiple of 1 / segments."""
    return ((times * segments).ceil() - 1).clamp(min=0) / segments


def flowed(x: Tensor, velocity: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """``x + (end − start) velocity``, the step of a sample from one time to another."""
    return x + (end - start).view(-1, *(1,) * (x.dim() - 1)) * velocity


def consistency_loss(
    student: Velocity,
    target: Velocity,
    teacher: Velocity,
    videos: Tensor,
    segments: int,
    steps: int,
    generator: Generator,
) -> Tensor:
    """Multi-step consistency distillation: inside of a segment, what the student says leads to the same end from a time
    and from the teacher's step before it.

        x_t = (1 − t) x + t ε,   x_s = x_t + (s − t) teacher(x_t, t),   s one step before t
        loss = mean of (J(student, x_t, t) − J(target, x_s, s))²,   J(f, x, t) = x + (e − t) f(x, t)

    e is the end of the segment that both times are in.

    Args:
        student: that learns. target: the student with the mean of its weights over time, or itself; no gradient passes.
            teacher: of many steps. videos: x ``(b, …)``. segments: 1 for one that leads to the sample at once; a model
            is used with as many steps. steps: of the teacher, a multiple of the segments. generator: of times and ε.

    Raises:
        ValueError: steps that are no multiple of the segments.

    Papers: Ding et al., arXiv 2502.06155; Heek et al. (multistep consistency), 2403.06807.
    """
    if segments < 1 or steps % segments or steps < segments:
        raise wrong("segments, steps", f"{segments}, {steps}", "one segment or more, steps a multiple of it")
    number = torch.randint(1, steps + 1, (len(videos),), generator=generator)
    noise = torch.randn(videos.shape, generator=generator, dtype=videos.dtype)
    now = (number / steps).to(videos)
    before = ((number - 1) / steps).to(videos)
    x = flowed(videos, noise.to(videos) - videos, torch.zeros_like(now), now)
    end = bounds(number / steps - 0.5 / steps, segments).to(videos)  # from within the step, whatever rounding does
    with torch.no_grad():
        earlier = flowed(x, teacher(x, now), now, before)
        wanted = flowed(earlier, target(earlier, before), before, end)
    return (flowed(x, student(x, now), now, end) - wanted).square().mean()


def knowledge_loss(
    student: Velocity, teacher: Velocity, videos: Tensor, generator: Generator, own: float = 0.0
) -> Tensor:
    """Knowledge distillation into the sparse model: ``mean of (student − teacher)² + own · (student − (ε − x))²``.

    Args:
        student, teacher: of noisy videos. videos: x ``(b, …)``. generator: of times and ε. own: the weight of what the
            student is trained by without a teacher.
    """
    times = torch.rand(len(videos), generator=generator, dtype=videos.dtype).to(videos)
    noise = torch.randn(videos.shape, generator=generator, dtype=videos.dtype).to(videos)
    x = flowed(videos, noise - videos, torch.zeros_like(times), times)
    said = student(x, times)
    with torch.no_grad():
        wanted = teacher(x, times)
    loss = (said - wanted).square().mean()
    return loss + own * (said - (noise - videos)).square().mean() if own else loss


@torch.no_grad()
def sample(model: Velocity, noise: Tensor, steps: int) -> Tensor:
    """Videos from noise ``(b, …)`` in so many steps of the same length."""
    x = noise
    for number in range(steps, 0, -1):
        now, after = (torch.full((len(x),), each / steps).to(x) for each in (number, number - 1))
        x = flowed(x, model(x, now), now, after)
    return x
