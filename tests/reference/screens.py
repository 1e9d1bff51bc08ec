"""Writes screens.json: which tokens the authors of GUI-KV keep of frames and a question.

python tests/reference/screens.py FILE        (gui_kv/gui_kv_utils.py of SalesforceAIResearch/GUI-KV)
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location("authors", sys.argv[1])
authors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(authors)

DIM, FRAMES, TOKENS, KEPT = 37, ((3, 23), (26, 46), (47, 67)), 73, 31


def case(seed, **about):
    """One head's queries, keys and states in eighths, and the places that are kept besides the window, ascending."""
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, TOKENS, DIM, generator=draw).mul(8).round() / 8 for _ in range(2))
    states = torch.randn(1, TOKENS, 11, generator=draw).mul(8).round() / 8
    starts, stops = zip(*FRAMES, strict=True)
    cluster = authors.GUIKVCluster(
        max_capacity_prompt=KEPT, vision_start_idx=list(starts), vision_end_idx=list(stops), **about
    )
    cluster.update_kv(k, q, k, None, 1, states)
    told = {name: (8 * x).int().tolist() for name, x in (("q", q[0, 0]), ("k", k[0, 0]), ("states", states[0]))}
    return {"about": about, "kept": sorted(cluster.kept_indices[0, 0].tolist()), **told}


cases = [
    case(1, window_size=5, kernel_size=5, alpha=2.0, temperature=3.5),
    case(2, window_size=4, kernel_size=3, alpha=0.3, temperature=1.0),
    case(3, window_size=6, kernel_size=1, alpha=2.0, temperature=0.7, pooling="maxpool"),
]
found = {"frames": FRAMES, "size": KEPT, "cases": cases}
Path(__file__).with_suffix(".json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
