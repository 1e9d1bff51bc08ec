"""Writes subjects.json: what code of the authors of IR-Diffusion computes with references of subjects.

python tests/reference/subjects.py FOLDER        (PyTorch 2.13)

FOLDER holds the checkout hehuiguo+DreamStory, of which one class is run.
"""

import json
from pathlib import Path

import torch
from authors import plain, random, rounded, short, taken
from torch import nn

HEADS, SIZE, ROWS, COLUMNS = 2, 3, 4, 5


class Heads(nn.Module):
    """Projections, and heads as diffusers' attention splits and merges them."""

    scale, upcast_attention, upcast_softmax = SIZE**-0.5, False, False
    residual_connection, rescale_output_factor = False, 1.0

    def __init__(self):
        super().__init__()
        width = HEADS * SIZE
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False), nn.Identity()])

    def head_to_batch_dim(self, x):
        return x.unflatten(2, (HEADS, SIZE)).transpose(1, 2).flatten(0, 1)

    def batch_to_head_dim(self, x):
        return x.unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2)


def attention(moved, inside, places):
    """Attention of the target, the two halves of guidance as a batch of two."""
    found = taken(
        "hehuiguo+DreamStory", "src/DreamStory/attention_processor/DreamStoryScaledAttnProcessor.py",
        "DreamStoryScaledAttnProcessor", DreamStoryAttnProcessor=object, Optional=None, Attention=None,
    ).DreamStoryScaledAttnProcessor  # fmt: skip
    own, subjects = found.__new__(found), len(inside)
    flat = [mask.flatten() for mask in inside], [mask.reshape(-1, 1) for mask in places]
    told = {
        "latents_shape": (ROWS, COLUMNS), "subj_num": subjects, "ref_sa_lambda": 0, "is_DIFT": False,
        "cur_step": 0, "step_idx_list": [0], "cur_att_layer": 0, "self_attn_layer_idx_list": [0],
        "is_spatial_self_attn": True, "is_rescale_self_attn": moved, "is_isolate_sa": True,
        "spatial_mask_dict": {f"original_{ROWS}x{COLUMNS}": flat[1]},
    }  # fmt: skip
    for name, value in told.items():
        setattr(own, name, value)
    layer = random(Heads())
    x = rounded(torch.randn(2, subjects + 1, ROWS * COLUMNS, HEADS * SIZE))  # references, then the target
    states = x.flatten(0, 1)
    q, k, v = (layer.head_to_batch_dim(to(states)) for to in (layer.to_q, layer.to_k, layer.to_v))
    out = own.self_attention(
        layer, states, states, (layer.scale * q @ k.mT).softmax(-1), q, k, v, *flat, *flat
    )  # masks with cells left out are these masks, none being left out
    weights = dict(layer.named_parameters())
    return {"weights": weights, "x": x, "inside": inside, "places": places, "out": out.view_as(x)[:, -1]}


def masks(*rows):
    return torch.tensor([[[float(cell) for cell in row] for row in mask.split()] for mask in rows])


INSIDE = masks("00000 01100 01110 00000", "11010 10110 01110 00000")
PLACES = masks("00000 00000 00111 00110", "11000 01000 11000 00000")
OVERLAPPING = masks("00000 00000 01110 01100", "11000 01000 11000 00000")

MADE = {
    "moved": lambda: attention(True, INSIDE, PLACES),
    "concatenated": lambda: attention(False, INSIDE, PLACES),
    "overlapping": lambda: attention(True, INSIDE, OVERLAPPING),
    "one of two is missing": lambda: attention(True, INSIDE, PLACES * torch.tensor([1.0, 0])[:, None, None]),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        found = {name: short(plain(make())) for name, make in MADE.items()}
    text = ",\n".join(f'"{name}": {json.dumps(x)}' for name, x in found.items())
    Path(__file__).with_name("subjects.json").write_text("{\n" + text + "\n}\n")
