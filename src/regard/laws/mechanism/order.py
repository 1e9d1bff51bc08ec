"""Laws about the order of tokens: causal, extend, symmetry."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.laws.mechanism.subject import BATCH, SHORT, Broken, Inputs, Subject, Unclaimed, real_rows, same


def causal(subject: Subject) -> str:
    """Changing the tokens after i leaves rows up to i as they are: exactly, bit by bit. The last rows, asked alone, are
    those of the whole.

    Where the data decide what is computed, other rows in a product may round a row differently, by a few bits. What is
    said to leak must be seen to.
    """
    if not subject.traits.causal:
        raise Unclaimed("bidirectional only")
    checked, bits, leaked = 0, 0 if subject.traits.flops == "exact" else 64, False
    for dtype in (torch.float64, torch.float32):
        mechanism = subject.cast(dtype)
        for n, m in ((SHORT, SHORT), (SHORT, 17), (subject.long, subject.long)):
            if not subject.fits(n, m, True):
                continue
            before, fresh = (subject.draw(n, m, seed=seed, dtype=dtype, batch=BATCH) for seed in (0, 1))
            first = subject.call(before, Layout(causal=True), mechanism)
            for i in sorted({0, 1, n // 2, 256 % n, n - 2}):
                after = changed_after(subject, before, fresh, i, m - n)
                second = subject.call(after, Layout(causal=True), mechanism)
                error = (first - second)[:, :, : i + 1].abs().max().item()
                if not error <= bits * torch.finfo(dtype).eps * first.abs().max().item():
                    leaked = True
                    if subject.traits.leaks:
                        continue
                    raise Broken(f"{dtype}, n={n}, m={m}: tokens after {i} change earlier rows by {error:.1e}")
                checked += 1
    if subject.traits.suffix:
        last_rows(subject, subject.cast(torch.float64))
    if subject.traits.leaks:
        return leaking(leaked)
    return f"{'to rounding' if bits else 'exact'} at {checked} cuts"


def leaking(leaked: bool) -> str:
    """What is told of a leak; Broken if one is declared that there is not."""
    if not leaked:
        raise Broken("no row reads later tokens, declared leaks")
    return "rows choose by later tokens, as declared"


def last_rows(subject: Subject, mechanism: Mechanism) -> None:
    """Broken unless fewer queries than keys are the last ones of a whole call."""
    m = 41
    inputs = subject.draw(m)
    for name, layout in subject.layouts(m, m):
        if not layout.causal:
            continue
        whole = subject.call(inputs, layout, mechanism)
        for n in (1, 2, 5, SHORT):
            last = inputs.map(lambda name, x, n=n: x[:, :, m - n :] if subject.side(name) == "query" else x)
            rows = real_rows(layout, n, m, BATCH)
            got = subject.call(last, layout, mechanism)
            same(got, whole[:, :, m - n :], 1e-9, f"the last {n} of {m} queries alone, {name}", rows)


def changed_after(subject: Subject, old: Inputs, new: Inputs, i: int, shift: int) -> Inputs:
    """``old`` up to query ``i`` and key ``i + shift``, ``new`` after it."""

    def join(name: str, tensor: Tensor) -> Tensor:
        cut = i + 1 if subject.side(name) == "query" else i + 1 + shift
        return torch.cat([tensor[:, :, :cut], new.tensors[name][:, :, cut:]], dim=2)

    return old.map(join)


def extend(subject: Subject) -> str:
    """Any split into chunks, down to one token at a time, with padding in any of them, equals one call."""
    if not subject.traits.causal:
        raise Unclaimed("bidirectional only")
    if not subject.traits.resumable:
        raise Unclaimed("each call stands for itself")
    worst, n, mechanism = 0.0, 41, subject.cast(torch.float64)
    inputs = subject.draw(n)
    generator = torch.Generator().manual_seed(7)
    holes = (torch.rand(BATCH, n, generator=generator) < 0.6).to(subject.device)
    holes[:, -1] = True
    for name, keys in (
        ("no padding", None),
        ("left padding", subject.padding(n, BATCH, "left")),
        ("right padding", subject.padding(n, BATCH, "right")),
        ("padding anywhere", holes),
    ):
        rows = torch.ones(BATCH, n, dtype=torch.bool) if keys is None else keys.cpu()
        want = subject.call(inputs, Layout(causal=True, key_mask=keys), mechanism)
        for split in ([n], [1] * n, [3, 1, 1, 17, 2, 7, 10], [29] + [1] * (n - 29)):
            got = in_chunks(inputs, split, keys, mechanism, subject.device)
            worst = max(worst, same(got, want, 1e-9, f"{name}, chunks {brief(split)}", rows))
    picked(subject, mechanism, inputs)
    return f"{worst:.0e}"


def brief(split: list[int]) -> str:
    """A split, short enough for a table."""
    return ", ".join(map(str, split[:4])) + (" …" if len(split) > 4 else "")


def in_chunks(inputs: Inputs, split: list[int], keys: Tensor | None, mechanism, device: str) -> Tensor:
    """The output of ``extend`` over consecutive chunks of these sizes."""
    state = mechanism.start(inputs.q.shape[0], device=device, dtype=inputs.q.dtype)
    outputs, start = [], 0
    for size in split:
        part = inputs.map(lambda _, tensor, span=slice(start, start + size): tensor[:, :, span])
        mask = None if keys is None else keys[:, start : start + size]
        out, state = mechanism.extend(part.q, part.k, part.v, state, mask, **part.signals)
        outputs.append(out)
        start += size
    return torch.cat(outputs, dim=2)


def picked(subject: Subject, mechanism, inputs: Inputs) -> None:
    """Broken if ``State.select`` does not carry the chosen sequences on, as beam search needs."""
    order = torch.tensor([2, 0], device=subject.device)
    first, last = (inputs.map(lambda _, t, span=span: t[:, :, span]) for span in (slice(0, 40), slice(40, 41)))
    _, state = mechanism.extend(
        first.q, first.k, first.v, mechanism.start(BATCH, device=subject.device, dtype=first.q.dtype), **first.signals
    )
    want, _ = mechanism.extend(last.q, last.k, last.v, state, **last.signals)
    chosen = last.map(lambda _, tensor: tensor[order])
    got, _ = mechanism.extend(chosen.q, chosen.k, chosen.v, state.select(order), **chosen.signals)
    same(got, want[order], 1e-9, "state.select")


def symmetry(subject: Subject) -> str:
    """Permuting keys changes nothing and permuting queries permutes rows, where claimed."""
    if not subject.traits.equivariant:
        raise Unclaimed("order matters")
    n, m, mechanism = SHORT, 17 if subject.traits.cross else SHORT, subject.cast(torch.float64)
    generator = torch.Generator().manual_seed(11)
    orders = {"query": torch.randperm(n, generator=generator), "key": torch.randperm(m, generator=generator)}
    inputs = subject.draw(n, m)
    shuffled = inputs.map(lambda name, tensor: tensor[:, :, orders[subject.side(name)].to(tensor.device)])
    want = subject.call(inputs, Layout(), mechanism)[:, :, orders["query"].to(subject.device)]
    return f"{same(subject.call(shuffled, Layout(), mechanism), want, 1e-9, 'permuted'):.0e}"
