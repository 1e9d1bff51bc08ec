"""The retrieval problem: pointers that are followed to their end, which takes more layers the more there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.spec import parse_layers
from regard.networks.base import Network
from regard.networks.benchmark import layer_of
from regard.networks.lm import Config


@dataclass(frozen=True)
class Chains:
    """Pairs of a key and a value in random order, whose values are keys of other pairs, or ends.

    Each of some chains leads by ``hops`` pairs from a start to an end of its own; the last token names the start of the
    first chain, and its end is asked for. All chains are of the same length, so that only who follows the pointers can
    tell one end from another.

    Args:
        chains: in one text, and ends that there are. symbols: that may be keys.
    """

    chains: int = 4
    symbols: int = 24

    def __post_init__(self) -> None:
        if self.chains < 2:
            raise wrong("chains", str(self.chains), "at least two, so that there is something to tell apart")

    def batch(
        self, count: int, hops: int, generator: Generator, linked: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys and values of the tokens, both ``(b, chains · hops + 1)``, the end ``(b,)``, and where the pairs of the
        chain that is asked for stand ``(b, hops)``.

        The last token has no key, which is ``symbols``; ends are values from ``symbols`` on.

        Args:
            linked: whether pointers lead on; otherwise values are dealt anew among all pairs.

        Raises:
            ValueError: no hops, or more pairs than symbols.
        """
        pairs = self.chains * hops
        if not 1 <= pairs <= self.symbols:
            raise wrong("hops", str(hops), f"1 to {self.symbols // self.chains}, as there are {self.symbols} symbols")
        keys = torch.rand(count, self.symbols, generator=generator).argsort(1)[:, :pairs].view(count, self.chains, hops)
        ends = torch.rand(count, self.chains, generator=generator).argsort(1)
        values = torch.cat([keys[..., 1:], (self.symbols + ends)[..., None]], 2).flatten(1)
        if not linked:
            values = values.gather(1, torch.rand(count, pairs, generator=generator).argsort(1))
        order = torch.rand(count, pairs, generator=generator).argsort(1)
        shown = [torch.gather(of.flatten(1), 1, order) for of in (keys, values)]
        last = (torch.full((count, 1), self.symbols), keys[:, 0, :1])
        both = [torch.cat([part, end], 1) for part, end in zip(shown, last, strict=True)]
        return both[0], both[1], ends[:, 0], order.argsort(1)[:, :hops]


@published(
    "stacked_heads",
    family="observe",
    kind="study",
    row=343,
    title="Mechanism and Emergence of Stacked Attention Heads in Multi-Layer Transformers",
    arxiv="2411.12118",
    year=2024,
    aliases=("retrieval_problem", "stacked_attention_heads"),
    fidelity="abstract only",
    claim=(
        Claim(
            "every chain that is longer needs more layers: it is followed above a depth and at chance below it",
            cells="stacked.depths",
            holds="stacked.need_layers",
        ),
        Claim(
            "the longest chains alone are not learned; with shorter ones among them they are, in as many steps",
            cells="stacked.curricula",
            holds="stacked.need_shorter_ones",
        ),
        Claim(
            "heads emerge one after the other, the first hop before those behind it",
            cells="stacked.emergence",
            holds="stacked.in_order",
        ),
        Claim(
            "so a pretrained language model, asked at once, follows one hop and not three",
            cells="stacked.of_smollm2",
            holds="stacked.deep_chains_are_lost",
        ),
    ),
)
class ChainReader(Network):
    """Layers of attention alone over a set of pairs, read at the last token.

        h_0 = E_k[key] + E_v[value],   h_{l+1} = h_l + attention(norm(h_l)),   logits = norm(h_L,last) W

    A pair is one token, so that no layer is spent on joining keys with values, and nothing tells where it stands. What
    a token knows of its chain can at most triple in a layer, by what is before and behind it, and grows from one pair
    for pairs and none for the query: see `fewest_layers`.

    Shapes: ``keys, values (b, n)`` -> ``(b, chains)``.

    Args:
        chains: the data, for its sizes. layers, width, heads: of the attention. seed: of the weights.

    Paper: Mușat, arXiv 2411.12118; of the minimal formulation the abstract is followed, the rest is ours.
    """

    def __init__(self, chains: Chains, layers: int, width: int = 64, heads: int = 2, seed: int = 0) -> None:
        super().__init__()
        sizes = Config(chains.chains, width, f"softmax*{layers}", heads=heads, inner=0, rotary_base=None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.keys = nn.Embedding(chains.symbols + 1, width)
            self.values = nn.Embedding(chains.symbols + chains.chains, width)
            self.layers = nn.ModuleList(
                layer_of(sizes, text, index, "noncausal self", "sequential")
                for index, text in enumerate(parse_layers(sizes.layers))
            )
            self.norm = nn.RMSNorm(width)
            self.read = nn.Linear(width, chains.chains, bias=False)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        x = self.keys(keys) + self.values(values)
        for layer in self.layers:
            x = layer(x, Layout(), None)
        return self.read(self.norm(x[:, -1]))


def fewest_layers(hops: int) -> int:
    """The fewest layers that can follow a chain: the least t with (3ᵗ − 1) / 2 ≥ hops, which is ⌈log₃(2 hops + 1)⌉.

    After t layers a pair can know of 3ᵗ pairs, itself in the middle; the query, which adds to what it knows at most the
    half of that which lies behind the pair it looks at and that pair, of Σ_{s<t} 3ˢ. The paper's bound, log₃(2 hops),
    is less than one below it.
    """
    layers = 0
    while (3**layers - 1) // 2 < hops:
        layers += 1
    return layers


def hops_by_steps(layers: int) -> int:
    """The longest chain that looking ahead follows, 2ᵗ − 1: each layer doubles what pairs know of what follows."""
    return 2**layers - 1


@torch.no_grad()
def looks(model: ChainReader, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """``(layers, heads, hops)``: the mean weight that the last token gives each pair of the chain it asks for."""
    maps = model.intermediates(keys, values)
    rows = torch.stack([a[:, :, -1] for a in maps.values()])
    return rows.gather(3, places[None, :, None].expand(len(rows), -1, rows.shape[2], -1)).mean(1)


def chain_prompt(chains: Chains, hops: int, names: Sequence[str], generator: Generator) -> tuple[str, list[str]]:
    """The problem in words for a language model, and the ends that there are, the right one first.

    A line for each pair, in random order, then the start that is asked for: the answer is to be the next word.

    Args:
        names: at least as many as there are symbols and ends; which are which is drawn.

    Raises:
        ValueError: too few names, or see `Chains.batch`.
    """
    every = chains.symbols + chains.chains
    if len(names) < every:
        raise wrong("names", f"{len(names)}", f"at least {every}, for symbols and ends")
    keys, values, ends, _ = chains.batch(1, hops, generator)
    order = torch.randperm(len(names), generator=generator)[:every].tolist()
    called = [names[i] for i in order]
    lines = [
        f"{called[key]} -> {called[value]}" for key, value in zip(keys[0].tolist(), values[0].tolist(), strict=True)
    ][:-1]
    start, end = called[int(values[0, -1])], int(ends[0])
    answers = [called[chains.symbols + (end + step) % chains.chains] for step in range(chains.chains)]
    text = "\n".join(lines)
    return f"{text}\nFollowing the arrows from {start} to the end of its chain leads to", answers  # pyright: ignore
