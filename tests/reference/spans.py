"""Writes spans.json: what the author's package computes, its kernels in Triton's interpreter.

TRITON_INTERPRET=1 PYTHONPATH=AUTHOR:tests/reference python -O tests/reference/spans.py

AUTHOR holds what `pip download superlinear==0.1.0 --no-deps` unpacks to (concavity-ai/superlinear). -O, as there is no
GPU to assert. With Triton 3.7, PyTorch 2.13.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from waves import wave

torch.cuda.device = lambda *_: nullcontext()
torch.compile = lambda thing, **_: thing

from superlinear.kernels.common.adjustment import compute_qend_from_qanchor  # noqa: E402
from superlinear.kernels.common.power import window_len_from_sw_index  # noqa: E402
from superlinear.kernels.superlinear.attention._prefill import (  # noqa: E402
    full_span_attention_fused_with_search_values as attention,
)
from superlinear.kernels.superlinear.search._reference import get_spans  # noqa: E402
from superlinear.kernels.superlinear.span._triton_impl import decode_span_attention_staged  # noqa: E402

POWERS = {"search_power": 0.55, "inv_search_power_int": None, "span_power": 0.4}
CASES = {
    "plain": {"num_spans": 3},
    "window": {"num_spans": 2, "backward_factor": 3.0, "forward_factor": 1.0, "sw_index": 2},
    "powers": {"num_spans": 3, "backward_factor": 1.5, "forward_factor": 0.5, "sw_index": 1, **POWERS},
}
TOKENS, PADDED = 71, 13
ROUNDED = 24
"""A query whose span the kernel makes a key longer than the package's reference function: it rounds √25 up, by exp and
log. No gradient comes from it."""


def drawn(names=("q", "asked", "k", "v")):
    """Two heads of 8 channels."""
    return {name: 2 * wave((1, 2, TOKENS, 8), 0.1 + place).float() for place, name in enumerate(names)}


def spans(case, given, mask=None):
    """Anchors, first and last keys of the spans of every third query, by anchors, those that are none behind."""
    own = {name: case[name] for name in POWERS if name in case}
    searched = {**own, "sw_index": case.get("sw_index", 0)}
    places = torch.arange(TOKENS)
    first, anchors, _ = get_spans(
        given["asked"], given["k"], places, mask, topk=case["num_spans"], **searched,
        backward_factor=case.get("backward_factor", 2.0),
    )  # fmt: skip
    last = compute_qend_from_qanchor(
        anchors, cache_position=places, key_length=TOKENS, attention_mask=mask, **searched,
        forward_factor=case.get("forward_factor", 0.0),
    )  # fmt: skip
    order = torch.where(anchors < 0, TOKENS, anchors).argsort(dim=-1, stable=True)
    return {
        name: x.gather(3, order)[:, :, ::3].tolist()
        for name, x in (("first", first), ("last", last), ("anchors", anchors))
    }


def short(x):
    """To seven digits."""
    return [short(each) for each in x] if isinstance(x, list) else float(f"{x:.7g}")


def measured(name):
    """A case: spans, every seventh row of the output, that of a padded text, and gradients of a weighing of it."""
    case, given = CASES[name], drawn()
    names, mask = ("asked", "q", "k", "v"), (torch.arange(TOKENS) >= PADDED)[None]
    leaves = [given[x].requires_grad_() for x in names]
    out = attention(*leaves, torch.arange(TOKENS), **case)
    weighing = wave(out.shape, 0.7).float()
    weighing[:, :, ROUNDED] = 0
    slopes = torch.autograd.grad((out * weighing).sum(), leaves)
    with torch.no_grad():
        padded = attention(*leaves, torch.arange(TOKENS), mask, **case)
        renamed = {"topk" if name == "num_spans" else name: x for name, x in case.items()}
        last = [x[:, :, -1:] for x in leaves[:2]]
        one = decode_span_attention_staged(*last, *leaves[2:], torch.arange(TOKENS)[-1:], **renamed)
    power = {name: case.get(name, x) for name, x in (("search_power", None), ("inv_search_power_int", 2))}
    return spans(case, given) | {
        "window": window_len_from_sw_index(case.get("sw_index", 0), **power),
        "out": short(out[:, :, ::7].tolist()),
        "padded": short(padded[:, :, PADDED::7].tolist()),
        "decoded": short(one.tolist()),
        **{f"d {x}": short(slope[:, :, ::9].tolist()) for x, slope in zip(names, slopes, strict=True)},
    }


if __name__ == "__main__":
    text = ",\n".join(f'"{name}": {json.dumps(measured(name))}' for name in CASES)
    Path(__file__).with_suffix(".json").write_text("{\n" + text + "\n}\n")
