"""What `regard look` says of a model is true of it."""

import sysconfig
from pathlib import Path
from statistics import median

from regard.hosts import small
from regard.records.record import record
from regard.tasks import Copy, accuracy
from regard.train.tiny.heads import without_head

LENGTH = 2000
COPY = Copy(range(1, 2048), block=None, bos=0)


def test_the_induction_head_that_look_names_is_one():
    """Silencing the head that a look at 2,000 tokens names first costs more copying than another does (median)."""
    model, tokenizer = small.load("tiny")
    source = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()
    ids = tokenizer.encode(source)[:LENGTH]
    seen = record(model, tokenizer, ids, keep=False)
    (layer, head, _), *rest = seen.header["summary"]["induction"]
    others = [(at, of) for at, of, other in rest if other < 0.1][::3]

    def copied() -> float:
        return accuracy(model, COPY, (128,), samples=32, batch_size=16, seed=11)[128]

    def without(at: int, of: int) -> float:
        with without_head(model, at, of):
            return copied()

    left = without(layer, head)
    left_without_others = median(without(at, of) for at, of in others)
    assert left < left_without_others
