"""Writes observe.json: relevance, pair probes and masks of attention, as their authors' code computes them.

python tests/reference/observe.py RELEVANCE BINDING PATTERNS        (checkouts of Hey1Li/Salient-Relevance-Propagation,
liyihao0302/vit-object-binding and raymondzmc/Attention-Pattern-Exploitation)
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

OBJECTS = torch.tensor([[0, 0, 1, 1, 1, 2, 0]])
IDS = torch.tensor([[1, 5, 6, 2, 1, 6, 7, 8, 2], [1, 9, 9, 4, 2, 1, 4, 3, 2]])


def numbers(x):
    return json.loads(json.dumps(x.detach().tolist()), parse_float=lambda text: float(f"{float(text):.9g}"))


def relevance(checkout):
    """The classes of the first cell of VGG_FACE.ipynb, on a network of two convolutions and two linear layers."""
    cells = json.loads((checkout / "VGG_FACE.ipynb").read_text())["cells"]
    text = "".join(cells[0]["source"])
    code = {"nn": nn, "F": F, "torch": torch}
    exec(text[text.index("class Linear(nn.Linear)") : text.index("#hyperparameters")], code)
    torch.manual_seed(0)
    plain = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    plain += [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)]
    plain = [layer.double() for layer in plain]

    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)

        def relprop(self, R):
            return R.view(-1, 4, 2, 2)

    made = []
    for layer in plain:
        wrapped = (
            Flat() if isinstance(layer, nn.Flatten) else code[type(layer).__name__].__new__(code[type(layer).__name__])
        )
        if isinstance(layer, nn.ReLU):
            nn.ReLU.__init__(wrapped)
        elif not isinstance(layer, nn.Flatten):
            nn.Module.__init__(wrapped)
            wrapped.__dict__.update({k: v for k, v in layer.__dict__.items() if k not in ("_forward_hooks",)})
        made.append(wrapped)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    image = x
    for layer in made:
        layer.X = x
        x = layer(x)
        layer.Y = x
    answers = x.argmax(1)
    found = F.one_hot(answers, 3) * x
    for layer in reversed(made):
        found = layer.relprop(found)
    weights = [[numbers(p) for p in layer.parameters()] for layer in plain if list(layer.parameters())]
    return {"weights": weights, "image": numbers(image), "logits": numbers(x), "relevance": numbers(found)}


def binding(checkout):
    """The three probes of src/utils/models.py, and what their trainer counts as right."""
    code = {}
    exec((checkout / "src/utils/models.py").read_text(), code)
    torch.manual_seed(1)
    cfg = SimpleNamespace(probe=SimpleNamespace(in_dim=5))
    x, found = torch.randn(7, 5, dtype=torch.float64), {}
    for form, name in (
        ("linear", "LinearProbe"),
        ("diagonal", "DiagonalQuadraticProbe"),
        ("quadratic", "QuadraticProbe"),
    ):
        probe = code[name](cfg).double()
        weight, bias = probe.parameters()
        pairs = probe.forward_pairwise(x, x)
        same, told = OBJECTS[0, :, None] == OBJECTS[0], pairs > 0
        share = (torch.triu(told == same).sum() / torch.triu(torch.ones_like(pairs)).sum()).item()
        found[form] = {"weight": numbers(weight), "bias": numbers(bias), "pairs": numbers(pairs), "right": share}
    return {"x": numbers(x), "objects": OBJECTS.tolist(), **found}


def patterns(checkout):
    """`get_dynamic_mask` of models/summarization.py, of texts whose sentences begin with 1 and end with 2."""
    text = (checkout / "models/summarization.py").read_text()
    body = re.search(r"    def get_dynamic_mask.*?return dynamic_attn_masks\n", text, re.S).group(0)
    code = {"torch": torch}
    exec("class Model:\n" + body, code)
    model = code["Model"]()
    model.encoder = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=1, num_attention_heads=4))
    model.use_pals = model.use_pal_patterns = False
    model.device, model.cls_id, model.sep_id = "cpu", 1, 2
    model.args = SimpleNamespace(match_token_attn="mask")
    model.matching_token_heads, model.intersent_heads = [(0, 0)], [(0, 1)]
    model.positional_heads = {"+1": [(0, 2)], "-1": [(0, 3)]}
    masks = model.get_dynamic_mask(IDS)[:, 0]
    names = ("matching", "sentence", "next", "previous")
    return {"ids": IDS.tolist()} | {name: masks[:, head].int().tolist() for head, name in enumerate(names)}


if __name__ == "__main__":
    first, second, third = map(Path, sys.argv[1:])
    found = {"relevance": relevance(first), "binding": binding(second), "patterns": patterns(third)}
    (Path(__file__).parent / "observe.json").write_text(json.dumps(found) + "\n")
