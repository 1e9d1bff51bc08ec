"""Writes words.json: maps between words and divergences of heads, as clarkkev/attention-analysis computes them.

python tests/reference/words.py CHECKOUT        (its bpe_utils.py and head_distances.py; NumPy 2)
"""

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

WORDS = [[0], [1, 2, 3], [4], [5, 6], [7]]
HEADS, N = 144, 8
"""As many heads as the authors' script has written into it."""


def divergences(code, maps):
    """What head_distances.py leaves in its file, its two files being in memory."""
    kept = []
    tools = sys.modules["utils"]
    tools.logged_loop = lambda data, n_steps=None: data
    tools.load_pickle = lambda path: [{"tokens": list(range(N)), "attns": maps.reshape(12, 12, N, N)}]
    tools.write_pickle = lambda value, path: kept.append(value.copy())
    sys.argv = ["head_distances.py", "--attn-data-file", "in", "--outfile", "out"]
    exec(code, {"__name__": "__main__"})
    return kept[-1]


if __name__ == "__main__":
    checkout = Path(sys.argv[1])
    sys.modules["utils"], bert = ModuleType("utils"), ModuleType("bert")
    bert.tokenization = ModuleType("bert.tokenization")
    sys.modules["bert"], sys.modules["bert.tokenization"] = bert, bert.tokenization
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(HEADS, N, N)) * draw.uniform(0.1, 4, size=(HEADS, 1, 1))
    maps = np.round(np.exp(scores) / np.exp(scores).sum(-1, keepdims=True), 6)
    maps /= maps.sum(-1, keepdims=True)
    code = {}
    exec((checkout / "bpe_utils.py").read_text(), code)
    far = divergences((checkout / "head_distances.py").read_text(), maps)
    found = {
        "maps": maps[:5].tolist(),
        "words": WORDS,
        "word_maps": [code["get_word_word_attention"](one, WORDS, "mean").tolist() for one in maps[:5]],
        "divergences": far[:5, :5].tolist(),
    }
    (Path(__file__).parent / "words.json").write_text(json.dumps(found) + "\n")
