"""Routing in a model as it is: what the report says before, and what a swap does."""

import pytest
import torch

from regard import swap
from regard.compare.route_report import route_report
from regard.hosts import small


@pytest.fixture(scope="module")
def tiny():
    return small.load("tiny")


def test_a_router_holds_between_random_and_the_best_blocks(tiny):
    model, tokenizer = tiny
    rows, density = route_report(
        model, tokenizer, small.SAMPLE.read_text(), "bound", block=4, budget=9, length=301, rows=41
    )
    assert [(row.layer, row.head) for row in rows] == [(layer, head) for layer in range(4) for head in range(8)]
    assert all(row.router <= row.oracle + 1e-5 <= 1 + 2e-5 for row in rows)
    assert all(row.random <= row.oracle + 1e-5 for row in rows)
    mean = {name: sum(getattr(row, name) for row in rows) / len(rows) for name in ("router", "oracle", "random")}
    assert mean["random"] + 0.02 < mean["router"] < mean["oracle"]
    assert 0.1 < density < 0.25


def test_short_texts_and_unknown_scores_are_refused(tiny):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="text: got 3 tokens"):
        route_report(model, tokenizer, "a b c", block=4, budget=5)
    with pytest.raises(ValueError, match=r"score: got 'medium', want one of mean, bound, middle"):
        route_report(model, tokenizer, "a b c", "medium")


def test_a_budget_of_everything_is_the_model_and_a_small_one_generates_as_one_pass(tiny):
    model, tokenizer = tiny
    ids = torch.tensor(tokenizer([small.SAMPLE.read_text()[:400]], add_special_tokens=False)["input_ids"])[:, :61]
    mask = torch.ones_like(ids).repeat(2, 1)
    mask[1, :7] = 0
    both = ids.repeat(2, 1)
    with torch.no_grad():
        plain = model(input_ids=both, attention_mask=mask).logits
        with swap(model, "routed", block=3, budget=99):
            routed = model(input_ids=both, attention_mask=mask).logits
        torch.testing.assert_close(routed[mask.bool()], plain[mask.bool()], atol=2e-3, rtol=1e-3)
        with swap(model, "routed", block=3, budget=4):
            told = model.generate(both, attention_mask=mask, max_new_tokens=7, do_sample=False, pad_token_id=0)
            longer = torch.nn.functional.pad(mask, (0, 7), value=1)
            again = model(input_ids=told, attention_mask=longer).logits[:, 60:-1].argmax(-1)
    assert torch.equal(told[:, 61:], again)
