"""Answers of SmolLM2 that stand in the text it was given, and answers that do not: told apart by where heads look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from regard.analysis.base import Prompt
from regard.analysis.lookback import lookback_ratios
from regard.analysis.retrieval_heads import needles
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import smollm2
from regard.decoding.lookback_decoding import LookbackDecoding, fitted, ratios_of
from regard.edits.trace import Trace
from regard.hosts.attach import attach

LENGTH, DEPTHS, SAID = 96, tuple(i / 17 for i in range(1, 17)), 6


def asked(tokenizer: Any, seed: int) -> list[tuple[Prompt, bool]]:
    """Prompts that ask for digits which stand in them, and the same without the sentence that they stand in."""
    found = []
    for prompt in needles(tokenizer, [LENGTH], DEPTHS, seed=seed):
        assert prompt.needle is not None
        start, stop = prompt.needle
        found.append((prompt, True))
        cut = torch.cat([prompt.ids[: start - 6], prompt.ids[stop + 1 :]])
        found.append((Prompt(cut, answer=len(cut)), False))
    return found


@torch.no_grad()
def features(model: Any, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Means over what the model says: of the lookback ratios, and of its last states."""
    given, trace = prompt.ids[None], Trace("resid")
    whole = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=SAID, do_sample=False)[0]
    answered = Prompt(whole, answer=len(prompt.ids))
    with attach(model, edits=[trace]):
        ratios = lookback_ratios(model, answered).mean(0)
    last = max(layer for _, layer in trace.kept)
    return ratios, trace.get("resid", last)[0, len(prompt.ids) :].mean(0)


def area(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Area under the curve of a logistic classifier with ℓ2 penalty, fitted to standardised features."""
    (x, y), (held_out, truth) = train, test
    mean, spread = x.mean(0), x.std(0) + 1e-6
    x, held_out = (x - mean) / spread, (held_out - mean) / spread
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        solver.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weight + bias, y) + weight.square().sum() / (2 * len(x))
        value.backward()
        return value.item()

    solver.step(loss)
    scores = (held_out @ weight).detach()
    right, wrong = scores[truth == 1], scores[truth == 0]
    return float(((right[:, None] > wrong).float() + 0.5 * (right[:, None] == wrong).float()).mean())


@measured()
def told() -> dict[str, float]:
    """Areas under the curve, on held-out prompts, of lookback ratios and of hidden states."""
    model, tokenizer = smollm2()
    sets = []
    for seed in (0, 1):
        rows = [(*features(model, prompt), stands) for prompt, stands in asked(tokenizer, seed)]
        ratios, states = (torch.stack([row[i] for row in rows]).float() for i in (0, 1))  # pyright: ignore
        sets.append((ratios, states, torch.tensor([float(row[2]) for row in rows])))
    (ratios, states, y), (more_ratios, more_states, truth) = sets
    return {
        "ratios": area((ratios, y), (more_ratios, truth)),
        "states": area((states, y), (more_states, truth)),
        "prompts": len(truth),
    }


def as_well_as_states(found: Figures) -> Finding:
    """From 0.8 on, and at most 0.05 below hidden states."""
    ratios, states = found.one("ratios"), found.one("states")
    figure = f"area under the curve {ratios:.2f} by lookback ratios, {states:.2f} by SmolLM2's last states"
    return Finding.of(f"{figure}, {found.one('prompts')} held-out prompts", ratios >= 0.8, ratios >= states - 0.05)


PIECE, CANDIDATES, TEMPERATURE = 3, 8, 1.2
"""Tokens of a piece, so that an answer of six has two; how many are sampled, and how freely."""


@torch.no_grad()
def sampled(model: Any, prompt: Prompt, seed: int, strategy: LookbackDecoding | None = None) -> Tensor:
    """What the model says after a prompt, ``(SAID,)``."""
    torch.manual_seed(seed)
    given = prompt.ids[None]
    usual = {"attention_mask": torch.ones_like(given), "max_new_tokens": SAID, "min_new_tokens": SAID}
    usual |= {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "custom_generate": strategy}
    return model.generate(given, **usual)[0, len(prompt.ids) :]


def stands(tokenizer: Any, prompt: Prompt, said: Tensor) -> bool:
    """Whether the number that is said is the one in the text."""
    assert prompt.needle is not None
    start, stop = prompt.needle
    return tokenizer.decode(said).strip().startswith(tokenizer.decode(prompt.ids[start:stop]).strip())


@quick(prompts=[2])
@measured(seed=range(2), prompts=[16])
def guided(seed: int, prompts: int) -> dict[str, float]:
    """Answers that are wrong: sampled, guided by a classifier of other samples, and by one of shuffled labels."""
    model, tokenizer = smollm2()
    known, unseen = (needles(tokenizer, [LENGTH], DEPTHS[:prompts], seed=10 + 2 * seed + part) for part in (0, 1))
    features, labels = [], []
    for draw in range(2):
        for prompt in known:
            said = sampled(model, prompt, draw)
            whole = torch.cat([prompt.ids, said])
            features.append(ratios_of(model, whole, len(prompt.ids) - 1, len(prompt.ids)))
            labels.append(float(stands(tokenizer, prompt, said)))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = torch.stack(features), torch.tensor(labels)
    ways: dict[str, LookbackDecoding | None] = {"sampled": None}
    for name, told in (("guided", y), ("shuffled", y[order])):
        ways[name] = LookbackDecoding(*fitted(x, told), CANDIDATES, PIECE)
    wrong = {
        name: 1 - sum(stands(tokenizer, prompt, sampled(model, prompt, 99, way)) for prompt in unseen) / len(unseen)
        for name, way in ways.items()
    }
    return {"known right": y.mean().item(), **wrong}


def fewer_errors(found: Figures) -> Finding:
    """A twentieth fewer answers are wrong than sampled ones, and fewer than with shuffled labels, on average."""
    plain, own, shuffled = (found.mean(name) for name in ("sampled", "guided", "shuffled"))
    figure = f"wrong {own:.0%} guided, {plain:.0%} sampled, {shuffled:.0%} guided by shuffled labels"
    return Finding.of(figure, own <= 0.95 * plain, plain > 0, own < shuffled)
