"""GUI-KV: of earlier screenshots what the newest does not show already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import View, sampled
from regard.policies.snapkv import Windowed

BASES = ("first", "pivoted", "svd")


@published(
    "gui_kv",
    family="cache",
    kind="policy",
    row=298,
    title="GUI-KV: Efficient GUI Agents via KV Cache with Spatio-Temporal Awareness",
    arxiv="2510.00536",
    year=2025,
    fidelity="authors' code",
    claim=Claim(
        "of frames that are nine tenths static, what is kept of the earlier ones is in the changed regions twice as "
        "often as with SnapKV",
        cells="screens.kept_changes",
        holds="screens.twice_snapkv",
    ),
)
@dataclass(frozen=True, kw_only=True)
class GUIKV(Windowed):
    """SnapKV's scores, raised where the current frame is salient, and zero for what it repeats of earlier frames.

        s_j = pool(Σ of the window's rows i of A_ij) + α softmax((‖h_j‖ − mean)/(σ τ)) on the current frame
        ρ_j = ‖k_j − Q Qᵀ k_j‖ of earlier frames,   s_j = 0 for the int((1 − C/n) · earlier) smallest ρ

    Q is an orthonormal basis of ``rank`` directions of the current frame's keys: that of its first keys, as the
    authors' code takes them, which are the top rows of a screen; or of those keys that are least told by the others
    before them (``pivoted``); or the directions of largest variance (``svd``). h are the states that the layer's
    attention is given, which are read while the model runs; the mean and the unbiased σ are over the frame. Heads that
    share keys share their mean attention, and one choice. Shapes: as `core.policy.View`; C the head's budget, n its
    entries. Cost: that of SnapKV, and a basis of each head.

    Args:
        frames: ``(start, stop)`` positions of each, of all sequences alike, the current one last, as `frames_of` finds
            them; none for SnapKV. saliency: ‖h‖ of the current frame's tokens in all layers, in the place of those
            that the model has. alpha, tau: α, 0 for no such term, and τ. rank: of Q. basis: see above.
        window, kernel, pooling, sinks, recent, every: as for SnapKV.

    Raises:
        ValueError: frames that are empty or overlap, as many norms as there are not tokens, another basis, or, when a
            cache is judged, a rank that leaves no residual in the keys' dimensions.

    Paper: Huang et al., arXiv 2510.00536: α 2, w 8, τ 3.5, 32 keys. Its scores are those of their code; their models of
    screens are no part of it.
    """

    window: int = 8
    frames: tuple[tuple[int, int], ...] = ()
    saliency: tuple[float, ...] = ()
    alpha: float = 2.0
    tau: float = 3.5
    rank: int = 32
    basis: str = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        empty = any(start >= stop for start, stop in self.frames)
        borders = [place for frame in self.frames for place in frame]
        if empty or borders != sorted(borders):
            raise wrong("frames", str(self.frames), "(start, stop) of each, one after the other")
        if self.basis not in BASES or self.rank < 1:
            raise wrong("basis, rank", f"{self.basis!r}, {self.rank}", f"one of {', '.join(BASES)}, and at least 1")
        if self.saliency and (not self.frames or len(self.saliency) != self.frames[-1][1] - self.frames[-1][0]):
            what = f"{len(self.saliency)} norms, for frames {self.frames}"
            raise wrong("saliency", what, "one for each token of the last frame")

    @property
    def needs_states(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return bool(self.frames) and self.alpha != 0 and not self.saliency

    @property
    def keeps(self) -> Mapping[str, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {"state_norm": 0.0} if self.needs_states else {}

    def observe(self, view: View) -> None:
        if self.needs_states:
            assert view.states is not None
            norms, count = view.states.float().norm(dim=1), len(view.states)
            view.stats["state_norm"] = torch.cat([view.stats["state_norm"][: view.size - count], norms])

    def scores(self, view: View) -> Tensor:
        found = super().scores(view) * view.q.shape[1]
        if not self.frames:
            return found
        (first, last), at = self.frames[-1], view.positions
        current = (at >= first) & (at < last)
        if self.alpha != 0 and bool(current.any()):
            if self.saliency:
                norms = torch.tensor(self.saliency, device=at.device)[at[current] - first]
            else:
                norms = view.stats["state_norm"][current]
            found = found.masked_scatter(current, found[current] + self.salient(norms).to(found.dtype))
        earlier = torch.stack([(at >= start) & (at < stop) for start, stop in self.frames[:-1]] or [at < 0]).any(0)
        repeated = int(max(0.0, 1 - view.budget / view.size) * int(earlier.sum()))
        if not repeated or not bool(current.any()):
            return found
        left = self.residuals(view.keys[earlier].float(), view.keys[current].float())
        gone = earlier.nonzero()[:, 0][left.argsort(stable=True)[:repeated]]
        zero = torch.zeros_like(current).index_fill(0, gone, True)
        return found.masked_fill(zero & found.isfinite(), 0)

    def salient(self, norms: Tensor) -> Tensor:
        """What is added to the scores of tokens of these ``norms (t,)``."""
        spread = norms.std() if len(norms) > 1 else norms.new_zeros(())
        return self.alpha * ((norms - norms.mean()) / (spread + 1e-8) / self.tau).softmax(0)

    def residuals(self, keys: Tensor, current: Tensor) -> Tensor:
        """ρ ``(t,)`` of ``keys (t, d)``: how much of them the ``current (c, d)`` keys' basis does not tell."""
        d = keys.shape[1]
        if self.rank >= d:
            raise wrong(
                "rank", f"{self.rank}, for keys of {d} numbers", f"at most {d - 1}: all keys are told by so many"
            )
        basis = self.basis_of(current)
        return (keys - keys @ basis @ basis.mT).norm(dim=1)

    def basis_of(self, keys: Tensor) -> Tensor:
        """Q ``(d, rank)`` of ``keys (c, d)``, or of as many directions as there are keys."""
        rank = min(self.rank, len(keys))
        if self.basis == "svd":
            return torch.linalg.svd(keys, full_matrices=False).Vh[:rank].mT
        if self.basis == "first":
            return torch.linalg.qr(keys[:rank].mT).Q
        left, found = keys.clone(), []
        for _ in range(rank):
            worst = left[left.norm(dim=1).argmax()]
            found.append(worst / worst.norm().clamp(min=1e-12))
            left = left - (left @ found[-1])[:, None] * found[-1]
        return torch.linalg.qr(torch.stack(found, 1)).Q

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        frames = ((1, 5), (5, 9), (10, 15))
        return sampled(
            cls(window=2, kernel=3, frames=frames, saliency=(1.0, 3.0, 2.0, 5.0, 4.0), rank=2),
            cls(window=2, kernel=1, frames=frames, rank=3, basis="pivoted", sinks=1),
            cls(window=2, kernel=3, frames=frames, rank=2, alpha=0.0),
        )


def frames_of(ids: Tensor, token: int) -> tuple[tuple[int, int], ...]:
    """``(start, stop)`` of each frame of a text ``ids (n,)``: the runs of the token that stands for parts of images."""
    inside = torch.cat([ids.new_zeros(1), (ids == token).to(ids), ids.new_zeros(1)])
    steps = inside.diff()
    starts, stops = ((steps == way).nonzero()[:, 0].tolist() for way in (1, -1))
    return tuple(zip(starts, stops, strict=True))
