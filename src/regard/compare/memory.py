"""Peak memory of one cell, in a process of its own: ``python -m regard.compare.memory FIELDS mine|baseline``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch

from regard.compare.cost import CostCell, chosen
from regard.experiments.timing import peak


def main(fields: str, which: str) -> None:
    """Prints the bytes, after a short run of the same kind has set up what PyTorch keeps."""
    cell = CostCell(**json.loads(fields))
    torch.set_num_threads(cell.threads)
    chosen(replace(cell, length=min(cell.length, 512)), which)()
    print(peak(chosen(cell, which), cell.sizes.device))


if __name__ == "__main__":
    main(*sys.argv[1:])
