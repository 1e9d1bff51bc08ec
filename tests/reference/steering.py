"""Writes steering.json: what the code that authors published with their papers of steering computes.

python tests/reference/steering.py FOLDER        (NumPy 2, SciPy 1.17)

FOLDER holds checkouts, each named owner+repository: PositionalHidden+PositionalHidden. Of each, the named functions
alone are run.
"""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import scipy

CHANNELS, TOKENS, LAYERS = 11, 421, 9


def taken(repository, file, *names, **others):
    """Top-level functions of a file, in a namespace of their own."""
    tree = ast.parse((Path(sys.argv[1]) / repository / file).read_text())
    tree.body = [part for part in tree.body if getattr(part, "name", None) in names]
    space = dict(others)
    exec(compile(ast.fix_missing_locations(tree), file, "exec"), space)
    return space


def states():
    """``(layers, tokens, channels)``: trends of several kinds with waves on them, the embeddings first."""
    t, found = np.arange(TOKENS) / TOKENS, np.zeros((LAYERS, TOKENS, CHANNELS))
    trends = [t, -(t**2), 0 * t, np.sqrt(t), (t - 0.5) ** 2, -t, t**3, 0.1 * np.sin(3 * t), t - t**2 / 4, -np.exp(-t)]
    for layer in range(LAYERS):
        for channel in range(CHANNELS):
            speed = (5 + channel) * 9 * (1 if channel % 3 else 0.2)
            wave = np.sin(7 * channel + 3 * layer + speed * t) * (0.05 + 0.02 * (channel * layer % 5))
            trend = [*trends, 0 * t][channel] * (1 + 0.1 * layer)
            found[layer, :, channel] = trend + wave * (0.02 + 0.1 * channel)
    return found.astype(np.float32)


def positional_hidden():
    """The channels that are found, and in how many layers each is monotone."""
    names = ("fit_and_monotic", "get_mono_layers", "get_smoothness", "get_min_smoothness_across_layers")
    code = taken(
        "PositionalHidden+PositionalHidden",
        "experiments/search_dimension/seach_dim_by_statistic.py",
        *names,
        "search_by_statistic",
        np=np,
        scipy=scipy,
        tqdm=lambda given, **_: given,
    )
    given = states()
    rows = {channel: code["get_mono_layers"](given[1:, :, channel], skip=300) for channel in range(CHANNELS)}
    found = code["search_by_statistic"](given, 10)
    rough = [float(code["get_min_smoothness_across_layers"](given[1:, :, one], rows[one], skip=200)) for one in found]
    return {"channels": found, "layers": {key: len(value) for key, value in rows.items()}, "roughness": rough}


if __name__ == "__main__":
    import scipy.signal

    path = Path(__file__).with_name("steering.json")
    path.write_text(json.dumps({"positional_hidden": positional_hidden()}, indent=1) + "\n")
