"""Writes graphs.json: layers of PyTorch Geometric, from their weights to their outputs, weights of edges and gradients.

python tests/reference/graphs.py        (PyTorch Geometric 2.8.1, PyTorch 2.13)
"""

import json
from pathlib import Path

import torch
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

LAYERS = {
    "gat": lambda: GATConv(4, 3, heads=2, edge_dim=3, add_self_loops=False),
    "gat_mean": lambda: GATConv(4, 3, heads=2, concat=False, add_self_loops=False),
    "gatv2": lambda: GATv2Conv(4, 3, heads=2, edge_dim=3, add_self_loops=False),
    "gatv2_shared": lambda: GATv2Conv(4, 3, heads=2, concat=False, share_weights=True, add_self_loops=False),
    "graph_transformer": lambda: TransformerConv(4, 3, heads=2, edge_dim=3, root_weight=False),
    "graph_transformer_gated": lambda: TransformerConv(4, 3, heads=2, edge_dim=3, beta=True),
    "graph_transformer_gated_mean": lambda: TransformerConv(4, 3, heads=2, concat=False, beta=True),
}


def layer(name):
    """Six nodes, of which one has no edge that leads to it, and eleven edges, one of them twice."""
    made, x = LAYERS[name](), torch.randn(6, 4, requires_grad=True)
    edges = torch.tensor([[0, 1, 2, 3, 3, 4, 5, 5, 0, 0, 2], [1, 1, 1, 2, 4, 5, 5, 0, 2, 2, 4]])
    features = torch.randn(11, 3) if getattr(made, "edge_dim", None) else None
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    out, (_, weights) = made(x, edges, features, return_attention_weights=True)
    weighting = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weighting).sum(), x)
    found = {"x": x, "edges": edges, "out": out, "weights": weights, "weighting": weighting, "dx": gradient}
    found |= {} if features is None else {"features": features}
    return {key: value.tolist() for key, value in found.items()} | {
        "state": {key: value.tolist() for key, value in made.state_dict().items()}
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    parts = {name: layer(name) for name in LAYERS}
    rounded = json.loads(json.dumps(parts), parse_float=lambda text: float(f"{float(text):.8g}"))
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in rounded.items())
    (Path(__file__).parent / "graphs.json").write_text(f"{{{text}}}\n")
