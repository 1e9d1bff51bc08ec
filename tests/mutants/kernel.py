"""Mutants of kernels: for each law, ranks that compute softmax attention together, and do it wrong in one way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from regard.core.kinds import Sample
from regard.kernels.base import Kernel
from regard.parallel import local
from regard.parallel.base import Call, Shards
from regard.parallel.gather import Gather
from regard.parallel.plan import Plan
from regard.parallel.ring import Ring, shape_of
from regard.parallel.tree import Tree


class Plain(Tree):
    """A tree, which obeys every law."""

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls())]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Kernel]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Kernel]) -> type[Kernel]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        mutant.examples = classmethod(lambda cls: [Sample(cls.__name__, cls())])  # pyright: ignore
        return mutant

    return register


@breaks("definition", "shards")
class LogSumExpNotMerged(Gather):
    """Takes the mean of what its queries see on each rank, whatever that rank's share of the row."""

    def forward_pass(self, q, k, v, call):
        _, saved = super().forward_pass(q, k, v, call)
        held = enumerate(self.gathered(k, v, call))
        seen = [local.attend(q, *kv, call.pieces(call.rank, rank), call.scaling(q))[0] for rank, kv in held]
        return torch.stack(seen).mean(0), saved


@dataclass(frozen=True)
class FromTheStart(Call):
    """A call in which every shard is taken to begin where the sequence does."""

    def pieces(self, queries, keys):
        rows, cols = self.queries.size(queries), self.keys.size(keys)
        return local.visible([(0, 0, (0, rows))] * bool(rows), [(0, 0, (0, cols))] * bool(cols), self.causal)


@breaks("definition", "gradients", "shards")
class MaskOfTheShard(Ring):
    """Is causal by the place of a key in its shard, not in the sequence."""

    def run(self, q, k, v, call, **signals):
        return super().run(q, k, v, FromTheStart(**vars(call)))


@breaks("definition")
class ScaleMissing(Ring):
    """Does not divide scores by the root of their size."""

    def run(self, q, k, v, call, **signals):
        return super().run(q, k, v, replace(call, scale=1.0))


@breaks("gradients", "packed", "shards")
class KeysGradientsStay(Ring):
    """Gives its keys the gradient of its own queries alone; what other ranks found is lost."""

    def backward_pass(self, grad, q, k, v, saved, call):
        dq, _, _ = super().backward_pass(grad, q, k, v, saved, call)
        _, dk, dv = local.gradients(grad, q, k, v, *saved, call.pieces(call.rank, call.rank), call.scaling(q))
        return dq, dk, dv


@breaks("gradients")
class QueriesOfOneRank(Tree):
    """Gives queries the gradient of its own keys alone."""

    def backward_pass(self, grad, q, k, v, saved, call):
        found = super().backward_pass(grad, q, k, v, saved, call)
        own = local.gradients(grad, q, k, v, *saved, call.pieces(call.rank, call.rank), call.scaling(q))
        return own[0], *found[1:]


@breaks("packed")
class BordersForgotten(Ring):
    """Knows of one document only."""

    def run(self, q, k, v, call, **signals):
        return super().run(q, k, v, replace(call, keys=replace(call.keys, borders=(0,)), queries=call.queries))


@breaks("packed")
class BordersAreShards(Ring):
    """Takes what each rank holds for a document of its own."""

    def run(self, q, k, v, call, **signals):
        plan = replace(call.keys, borders=tuple(sorted({first for own in call.keys.shards for first, _ in own})))
        return super().run(q, k, v, replace(call, keys=plan, queries=plan))


@breaks("half")
class SumsInHalfPrecision(Ring):
    """Merges with log-sum-exps rounded to the precision of its inputs."""

    def forward_pass(self, q, k, v, call):
        out, lse = (x.to(q.dtype) for x in local.attend(q, k, v, [], call.scaling(q)))
        for rank, kv in enumerate(Gather().gathered(k, v, call)):
            pieces = call.pieces(call.rank, rank)
            found, sums = (x.to(q.dtype) for x in local.attend(q, *kv, pieces, call.scaling(q)))
            out = torch.lerp(out, found, torch.sigmoid(sums - lse).nan_to_num_(0)[..., None])
            lse = torch.logaddexp(lse, sums)
        return out, (out, lse)


@breaks("shards", "gradients")
class OneStretchEach(Ring):
    """Believes that ranks hold stretches of the sequence, in the order of their numbers."""

    def run(self, q, k, v, call, **signals):
        plan = Plan.sized(call.keys.sizes, call.keys.borders)
        return super().run(
            q, k, v, replace(call, keys=plan, queries=plan if call.queries == call.keys else call.queries)
        )


@breaks("traffic")
class SendsPadding(Gather):
    """Pads what it sends to the length of the largest shard."""

    def gathered(self, k, v, call):
        most = max(call.keys.sizes)
        kv = F.pad(torch.cat([k, v], -1), (0, 0, 0, most - k.shape[2]))
        every = call.group.gather(kv, [(*kv.shape[:2], most, kv.shape[3])] * call.ranks)
        own = [part[:, :, :size] for part, size in zip(every, call.keys.sizes, strict=True)]
        return [(part[..., : k.shape[-1]], part[..., k.shape[-1] :]) for part in own]


@breaks("traffic")
class LastTurnToo(Ring):
    """Hands the keys on once more than anyone needs."""

    def forward_pass(self, q, k, v, call):
        found = super().forward_pass(q, k, v, call)
        kv = torch.cat([k, v], -1)
        call.group.shift(kv, shape_of(kv, call, call.rank - 1)).wait()
        return found


@breaks("decoding")
class NotYetItself(Tree):
    """A new token does not see itself."""

    def decode(self, q, k, v, state, group, scale=None):
        out, after = super().decode(q, k, v, state, group, scale)
        if not state.plan.length:
            return torch.zeros_like(out), after
        call = Call(state.plan, Plan.replicated(q.shape[2], group.size), group, causal=True)
        return self.attend(q, state.k, state.v, call), after


@breaks("decoding")
class FirstRankKeepsAll(Tree):
    """Every new token is kept by the first rank."""

    def decode(self, q, k, v, state, group, scale=None):
        new = k.shape[2]
        plan = state.plan.grown([new] + [0] * (group.size - 1))
        own = [x if group.rank == 0 else x[:, :, :0] for x in (k, v)]
        first = state.k.shape[1] == 0
        k, v = (x if first else torch.cat([old, x], 2) for old, x in zip((state.k, state.v), own, strict=True))
        call = Call(plan, Plan.replicated(q.shape[2], group.size), group, causal=True)
        return self.attend(q, k, v, call), Shards(state.seen + new, k, v, plan)


@breaks("failure")
class ZerosInstead(Ring):
    """Gives zeros where something goes wrong."""

    def attend(self, q, k, v, call, **signals):
        try:
            return super().attend(q, k, v, call, **signals)
        except (RuntimeError, ValueError):
            return q.new_zeros(*q.shape[:3], v.shape[3])


@breaks("failure")
class NobodyAsks(Gather):
    """Does not ask whether the others are in the same call."""

    def attend(self, q, k, v, call, **signals):
        return super().attend(q, k, v, replace(call, check=False), **signals)
