"""The scan in flash-linear-attention's kernels, where that package is installed and computes the same."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regard.kernels import device as gpu

if TYPE_CHECKING:
    from regard.kernels.scan.gated import Inputs

WIDEST = 256  # rows of a state that all of its kernels take
SHUT = -88.0
"""Log decays below it are taken for it: it leaves 1e-38 of a memory, and sums of a chunk's are as exact as TF32 is."""


def usable(state: Tensor) -> bool:
    """Whether a scan from this state runs there: on CUDA, in float32, where PyTorch may multiply it as TF32.

    Its kernels multiply float32 as TF32 whatever PyTorch is told. Mechanisms scan in the precision of sums.
    """
    fits = state.dtype == torch.float32 and gpu.precision() == "tf32" and state.shape[2] <= WIDEST
    return fits and gpu.usable(state) and find_spec("fla") is not None


def scan(x: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """`scan.gated.scan` without a removal of its own, in float32.

    Decays of heads are simple GLA and the gated delta rule, of channels GLA and KDA; a delta rule without decay is
    the gated one with log_decay 0, as the plain one refuses float32. With resets, all sequences become one that is cut
    into its documents. First derivatives only.

    Shapes: as there.

    Papers: GLA: Yang et al., arXiv 2312.06635; the gated delta rule: Yang et al., 2412.06464; KDA: Kimi Team,
    2510.26692.
    """
    ops = import_module("fla.ops")
    decay = None if x.log_decay is None else x.log_decay.clamp(min=SHUT)
    channels = decay is not None and decay.dim() == 4
    if x.beta is None:
        kernel = ops.chunk_gla if channels else ops.chunk_simple_gla
    else:
        kernel = ops.chunk_kda if channels else ops.chunk_gated_delta_rule
        decay = torch.zeros_like(x.beta) if decay is None else decay
    given = {"q": x.q, "k": x.k, "v": x.v, "g": decay, "beta": x.beta}
    tokens = {name: tensor.transpose(1, 2) for name, tensor in given.items() if tensor is not None}
    if x.resets is None:
        out, after = kernel(**tokens, scale=1.0, initial_state=state, output_final_state=True)
        return out.transpose(1, 2), after
    tokens = {name: tensor.flatten(0, 1)[None] for name, tensor in tokens.items()}
    cuts, first = documents(x.resets)
    before = state.new_zeros(len(first), *state.shape[1:])
    before[first] = state * ~x.resets[:, :1, None, None]
    out, after = kernel(**tokens, scale=1.0, initial_state=before, output_final_state=True, cu_seqlens=cuts)
    return out[0].unflatten(0, x.resets.shape).transpose(1, 2), after[first.roll(-1)]


def documents(resets: Tensor) -> tuple[Tensor, Tensor]:
    """Where documents begin, and the last one ends, in all sequences as one; and which of them begin a sequence.

    Shapes: ``resets (b, n)`` -> ``(documents + 1,)``, ``(documents,)`` bool.
    """
    begins = resets.clone()
    begins[:, 0] = True
    starts = begins.flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([resets.numel()])]), starts % resets.shape[1] == 0
