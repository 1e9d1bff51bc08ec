"""Statistics of where a head looks: at offsets, around an earlier occurrence, on kinds of tokens, into a needle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.tile import Tile
from regard.probes.head_statistics import RowMean, ids_of, real_at, refuse_other
from regard.probes.token_statistics import OneSequence


class Offsets(RowMean):
    """Mean weight on the key at each offset from the query, ``(heads, offsets)``; -1 is the token before.

    Rows count for which all of these keys exist, hidden ones too: they receive zero.
    """

    name = "offsets"

    def __init__(self, offsets: Sequence[int] = (-1, 0, 1)) -> None:
        super().__init__()
        if not offsets:
            raise wrong("offsets", "none", "at least one")
        self.offsets = tuple(offsets)

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        slots = [(tile.rows + offset).expand(tile.queries.shape) for offset in self.offsets]
        there = torch.stack([real_at(tile, at) & (at < tile.m) for at in slots]).all(0)
        return torch.stack([tile.at(at) for at in slots], dim=3), tile.queries & there


class Lags(RowMean):
    """Mean weight at each lag from the last earlier occurrence of the row's own token: the lag-conditional curve.

    Lag 0 is that occurrence, lag +1 the token after it, which an induction head reads. ``(heads, 2 reach + 1)``, from
    -reach to reach. Rows count for which all of these keys stand before the row.

    Paper: Ji-An et al., arXiv 2405.14992.
    """

    name = "lags"

    def __init__(self, reach: int = 8) -> None:
        super().__init__()
        if reach < 1:
            raise wrong("reach", str(reach), "at least one token to either side")
        self.reach = reach

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        last = ids_of(self, tile).last[:, tile.rows]
        slots = [last + lag for lag in range(-self.reach, self.reach + 1)]
        there = torch.stack([real_at(tile, at) & (at < tile.rows) for at in slots]).all(0)
        return torch.stack([tile.at(at) for at in slots], dim=3), tile.queries & there & (last >= 0)


class OnTokens(RowMean):
    """Mean weight on keys that are one of some token ids, ``(heads, groups)``, such as delimiters or digits.

    Args:
        groups: name to token ids; the values are in the order of the names.
    """

    name = "on_tokens"

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        for group, ids in groups.items():
            if not ids:
                raise wrong(f"groups[{group!r}]", "no token ids", "at least one")
        self.groups = {group: tuple(ids) for group, ids in groups.items()}

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        ids = ids_of(self, tile).ids
        inside = [torch.isin(ids, torch.tensor(group, device=ids.device)) for group in self.groups.values()]
        return tile.read(torch.stack(inside, dim=2).to(tile.weights.dtype)), tile.queries


class SpanMeans(OneSequence):
    """Mean weight a row gives to each key of named spans that it may see: ``(batch, heads, n, spans)``, float32.

        Σ_{j in span} A_ij / |{j in span: j may be seen by i, j no padding}|

    NaN where a row sees no key of the span, or was not computed. The lookback ratio compares two of them.

    Args:
        spans: name to ``(start, stop)`` of key slots; ``stop`` None for "to the end".
    """

    name = "span_means"

    def __init__(self, spans: Mapping[str, tuple[int, int | None]]) -> None:
        super().__init__()
        for span, (start, stop) in spans.items():
            if start < 0 or (stop is not None and stop <= start):
                raise wrong(f"spans[{span!r}]", f"{(start, stop)}", "0 <= start < stop, or stop None")
        self.spans = dict(spans)
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def update(self, tile: Tile) -> None:
        self.check(tile)
        slots = torch.arange(tile.m, device=tile.rows.device)
        inside = torch.stack(
            [(slots >= start) & (slots < (tile.m if stop is None else stop)) for start, stop in self.spans.values()], 1
        )
        mass = tile.read(inside[None].to(tile.weights.dtype))
        one = torch.eye(len(tile.rows), dtype=torch.bool, device=tile.rows.device)
        seen = tile.seen(one).to(mass.dtype) @ inside[tile.columns].to(mass.dtype)
        values = torch.where(seen > 0, mass / seen.clamp(min=1), torch.nan)
        self.parts.setdefault(tile.layer, []).append(
            (tile.rows, values.float().masked_fill(~tile.queries[:, None, :, None], torch.nan))
        )

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, parts in other.parts.items():
            self.parts.setdefault(layer, []).extend(parts)

    def result(self) -> dict[int, Tensor]:
        found = {}
        for layer, parts in sorted(self.parts.items()):
            rows, values = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=2)
            whole = values.new_full((*values.shape[:2], int(rows.max()) + 1, values.shape[3]), torch.nan)
            whole[:, :, rows] = values
            found[layer] = whole
        return found


class ColumnMeans(OneSequence):
    """Share of heads for which a key's mean weight, from all queries at or after it, exceeds a threshold.

        sink_k = mean over sequences of 1[mean_{i >= k} A_ik > threshold]

    ``(heads, tokens)`` for the first ``tokens`` keys of sequences that have exactly as many.

    Args:
        tokens: T, the length of every sequence. threshold: ε.

    Raises:
        ValueError: sequences of another length, or with padding, whose means would be over other numbers of queries.

    Paper: Gu et al., arXiv 2410.10781: T = 64, ε = 0.3.
    """

    name = "column_means"

    def __init__(self, tokens: int = 64, threshold: float = 0.3) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise wrong("threshold", str(threshold), "a weight between 0 and 1")
        self.tokens, self.threshold = tokens, threshold
        self.sums: dict[int, dict[int, Tensor]] = {}

    def update(self, tile: Tile) -> None:
        if tile.m != self.tokens or tile.share < 1 or not bool(tile.key_mask.all()):
            what = f"{tile.m} keys" if tile.m != self.tokens else "padding, or sampled rows"
            raise wrong("tile", what, f"every row of sequences of {self.tokens} tokens without padding")
        sums = self.sums.setdefault(tile.layer, {})
        batch, heads = tile.weights.shape[:2]
        if tile.sequence not in sums:
            sums[tile.sequence] = tile.weights.new_zeros(batch, heads, self.tokens, dtype=torch.float64)
        sums[tile.sequence][:, :, tile.columns] += tile.weights.sum(2)

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, sums in other.sums.items():
            own = self.sums.setdefault(layer, {})
            first = max(own, default=-1) + 1
            own |= {first + i: seen for i, seen in enumerate(sums.values())}

    def means(self, layer: int) -> Tensor:
        """``(sequences, heads, tokens)``: mean_{i >= k} A_ik."""
        every = torch.cat(list(self.sums[layer].values()))
        return every / torch.arange(self.tokens, 0, -1, device=every.device)

    def result(self) -> dict[int, Tensor]:
        return {layer: (self.means(layer) > self.threshold).double().mean(0) for layer in sorted(self.sums)}


class NeedleHits(OneSequence):
    """Retrieval score of one run: how much of a needle a head's strongest keys copy, ``(batch, heads)``.

        Σ_t 1[argmax_j A_tj in the needle and token_j = token_{t+1}] / needle length

    over the rows t from the one before the first answered token on, since row t gives token t + 1.

    Args:
        needle: ``(start, stop)``, key slots of what is to be copied. answer: slot of the first answered token.

    Raises:
        ValueError: a needle that does not stand before the answer.

    Paper: Wu et al., arXiv 2404.15574.
    """

    name = "needle_hits"

    def __init__(self, needle: tuple[int, int], answer: int) -> None:
        super().__init__()
        if not 0 <= needle[0] < needle[1] <= answer:
            raise wrong("needle", f"{needle} before an answer at {answer}", "0 <= start < stop <= answer")
        self.needle, self.answer = needle, answer
        self.hits: dict[int, Tensor] = {}

    def update(self, tile: Tile) -> None:
        self.check(tile)
        ids = ids_of(self, tile).ids
        counted = (tile.rows >= self.answer - 1) & (tile.rows + 1 < tile.m)
        following = ids[:, (tile.rows + 1).clamp(max=tile.m - 1)]
        top, at = tile.weights.max(3)
        slot = at + tile.start
        copied = ids[:, None].expand(-1, slot.shape[1], -1).gather(2, slot.flatten(2))
        hit = (slot >= self.needle[0]) & (slot < self.needle[1]) & (copied == following[:, None]) & (top > 0)
        hit = hit & (tile.queries & counted)[:, None]
        size = self.needle[1] - self.needle[0]
        self.hits[tile.layer] = self.hits.get(tile.layer, 0) + hit.sum(2).double() / size

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, hits in other.hits.items():
            self.hits[layer] = self.hits.get(layer, 0) + hits

    def result(self) -> dict[int, Tensor]:
        return dict(sorted(self.hits.items()))
