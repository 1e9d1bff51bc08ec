"""Data with known answers, and how well a model answers.

| task | what it asks | needs |
|---|---|---|
| `Copy` | a random block, repeated | ids |
| `Induction` | A B … A → B | ids |
| `Recall` | the value of a key, among distractors and filler | ids |
| `Passkey` | a number hidden in filler | an encoder |
| `IndirectObject` | the one of two names that is not the giver | an encoder |
| `ColouredObjects` | the colour of one of a few objects | an encoder |
| `FewShot` | the made-up label of a kind of words | an encoder |
| `DocumentQuestion` | a fact that stands in one of many documents | an encoder |

A task is a small frozen object with `sample(generator, length) -> Example`: exactly `length` token ids and a mask
over the
tokens that are answers. Tasks take ids or an encoder from outside, so any model can be trained or tested with them:

>>> import torch
>>> task = Copy(symbols=range(1, 6), block=(3, 3), bos=0)
>>> example = task.sample(torch.Generator().manual_seed(0), length=8)
>>> bool((example.ids[4:7] == example.ids[1:4]).all()), example.answers.tolist()
(True, [False, False, False, False, True, True, True, True])
"""

from regard.tasks.example import Encode, Example, Task, batch, plain_encoder, word_ids
from regard.tasks.metrics import accuracy, correct
from regard.tasks.symbols import Copy, Induction, Recall
from regard.tasks.text import (
    ColouredObjects,
    DocumentQuestion,
    FewShot,
    IndirectObject,
    Packed,
    Passkey,
    Piece,
    TextTask,
)

__all__ = [
    "ColouredObjects",
    "Copy",
    "DocumentQuestion",
    "Encode",
    "Example",
    "FewShot",
    "IndirectObject",
    "Induction",
    "Packed",
    "Passkey",
    "Piece",
    "Recall",
    "Task",
    "TextTask",
    "accuracy",
    "batch",
    "correct",
    "plain_encoder",
    "word_ids",
]
