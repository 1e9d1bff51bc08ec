"""The laws of decoding strategies: plain decoding at the neutral dial, what is mixed is what the copies say, no batch.

They are held on the small Llama of `laws.small`, whose tokens are below 29; what examples are about has to lie in the
first 12 tokens. An example is ``given`` ``plain=True`` where it is plain decoding as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.decoding.base import Mixture, Strategy
from regard.laws.edit import CLOSE, LENGTH, model
from regard.laws.finding import Broken, Unclaimed
from regard.laws.small import VOCABULARY, tokens

NEW, PAD, END = 9, 0, 2


class Decoded:
    """A strategy under examination.

    Args:
        sample: the strategy, and whether it is ``plain``.
    """

    def __init__(self, sample: Sample) -> None:
        self.strategy: Strategy = sample.thing
        self.plain = bool(sample.given.get("plain"))

    def ids(self, strategy: Strategy | None, given: Tensor, **options: Any) -> Tensor:
        """The new tokens of some ids, by a strategy or by `generate` alone."""
        usual: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
        usual |= {"attention_mask": torch.ones_like(given), "custom_generate": strategy}
        return model().generate(given, **(usual | options))[:, given.shape[1] :]


def different(got: Tensor, want: Tensor) -> str:
    """Where two continuations part, empty where they do not."""
    if got.shape != want.shape:
        return f"{tuple(got.shape)} tokens, want {tuple(want.shape)}"
    apart = (got != want).nonzero()
    return f"sequence {int(apart[0, 0])} parts at its token {int(apart[0, 1])} of {got.shape[1]}" if len(apart) else ""


def agree(got: Tensor, want: Tensor, what: str) -> None:
    """Raises `Broken` where two continuations part."""
    if told := different(got, want):
        raise Broken(f"{what}: {told}")


def neutral(subject: Decoded) -> str:
    """At the neutral value of its dial it is plain decoding, greedy and sampled from the same seed; else it is not."""
    strategy, given = subject.strategy, tokens(5, LENGTH)
    if strategy.dial is None and not subject.plain:
        raise Unclaimed("it has no dial, and is not plain")
    idle = strategy if subject.plain else strategy.at(strategy.dial[1])  # pyright: ignore[reportOptionalSubscript]
    plain = subject.ids(None, given)
    agree(subject.ids(idle, given), plain, "greedy")
    changes = bool(different(subject.ids(strategy, given), plain))
    if strategy.draws:
        drawn = []
        for one in (None, idle, strategy):
            torch.manual_seed(7)
            drawn.append(subject.ids(one, given, do_sample=True, top_k=11, temperature=1.3))
        agree(drawn[1], drawn[0], "sampled")
        changes = changes or bool(different(drawn[2], drawn[0]))
    if not subject.plain and not changes:
        raise Broken("it changes no token of 5 sequences")
    return "greedy and sampled" if strategy.draws else "greedy"


@torch.no_grad()
def definition(subject: Decoded) -> str:
    """Each token is the likeliest of the mixture of the copies, each run alone, without a cache or a batch."""
    strategy = subject.strategy
    if not isinstance(strategy, Mixture):
        raise Unclaimed("it mixes no copies")
    given, worst = tokens(3, LENGTH)[1:2], torch.inf
    new = subject.ids(strategy, given)
    text = torch.cat([given, new], 1)
    each = []
    for copy in range(strategy.copies):
        with strategy.running(model(), 1, [copy]):
            each.append(model()(input_ids=text, use_cache=False).logits[0, LENGTH - 1 : -1].float())
    scores = strategy.mixed(torch.stack(each, 1))
    for step, (token, row) in enumerate(zip(new[0], scores, strict=True)):
        short = float(row.max() - row[token])
        worst = min(worst, *(row.topk(2).values.diff().abs().tolist()))
        if not short <= CLOSE:
            raise Broken(f"token {step} is {short:.1e} short of the likeliest")
    return f"margins of {worst:.0e} and more"


def batch(subject: Decoded) -> str:
    """A sequence padded on the left, in a batch, goes on as it does alone."""
    strategy, ids = subject.strategy, tokens(3, LENGTH)
    padded = torch.cat([torch.full((3, 4), PAD), ids], 1)
    padded[0] = tokens(1, LENGTH + 4)
    mask = torch.ones_like(padded)
    mask[1:, :4] = 0
    both = subject.ids(strategy, padded, attention_mask=mask)
    agree(both[:1], subject.ids(strategy, padded[:1]), "the longest")
    for row in (1, 2):
        agree(both[row : row + 1], subject.ids(strategy, ids[row : row + 1]), f"row {row}, padded")
    return "3 sequences"


def cached(subject: Decoded) -> str:
    """Without a cache, and with a prompt that comes in chunks, it gives the same tokens."""
    strategy, given = subject.strategy, tokens(2, LENGTH)
    want = subject.ids(strategy, given)
    agree(subject.ids(strategy, given, use_cache=False), want, "without a cache")
    agree(subject.ids(strategy, given, prefill_chunk_size=5), want, "in chunks")
    return "without a cache and in chunks"


def ends(subject: Decoded) -> str:
    """It ends where `generate` is told to, with padding behind; it refuses beams; and leaves the model as it was."""
    strategy, given = subject.strategy, tokens(3, LENGTH)
    before = model()(input_ids=given).logits
    free = subject.ids(strategy, given)
    stop = int(free[0, 2])
    found = subject.ids(strategy, given, eos_token_id=stop)
    for row, sequence in enumerate(found):
        known = sequence if not isinstance(strategy, Mixture) else free[row]  # an end may choose another branch
        last = next((place for place, token in enumerate(known) if token == stop), NEW - 1)
        agree(sequence[None, : last + 1], known[None, : last + 1], f"row {row} before its end")
        if (sequence[last + 1 :] != PAD).any():
            raise Broken(f"row {row} goes on behind its end")
    short = subject.ids(strategy, given, max_new_tokens=4)
    agree(short, free[:, :4] if isinstance(strategy, Mixture) else short[:, :4], "the first 4 tokens")
    try:
        subject.ids(strategy, given, num_beams=2)
    except ValueError:
        pass
    else:
        raise Broken("it takes beams without a word")
    if not torch.equal(model()(input_ids=given).logits, before):
        raise Broken("the model is not what it was")
    return f"at token {stop} of {VOCABULARY}"


LAWS: dict[str, Callable[[Decoded], str]] = {law.__name__: law for law in (neutral, definition, batch, cached, ends)}


def subject(example: Sample, device: str = "cpu") -> Decoded:
    """What the laws look at."""
    return Decoded(example)


def example(thing: Strategy, **given: Any) -> Sample:
    """A strategy from elsewhere as an example."""
    return Sample(type(thing).__name__, thing, given)
