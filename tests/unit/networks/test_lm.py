"""The language model: any mechanism in any layer, one call or many, saved and loaded, costed by formula."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.networks import LM, Config, Sampling, fitted
from regard.networks.benchmark import BenchmarkNetwork

CLOSE = {"atol": 1e-9, "rtol": 1e-9}


SMALL = {
    "window": "window(size=5)",
    "aha": "aha(of='window(size=3)')",
    "delta": "delta(of='window(size=3)', gamma=4)",
} | {
    "nsa": "nsa(block=4, budget=4, window=5, length=4, stride=2)",
    "mean_nsa": "mean_nsa(block=4, budget=4, window=5)",
    "global_nsa": "global_nsa(block=4, budget=4)",
    "routing_transformer": "routing_transformer(clusters=2)",
}
UNTAUGHT = {
    "flux": ("mechanism.features.", "mechanism.router."),
    "dynamic_mask": ("signals.maps.score.",),
}
"""Parts that a language model's own loss does not teach: what they decide is no function of theirs with a slope, or
has none before what it is multiplied by has moved from zero."""


def hostable() -> list[str]:
    """Every causal mechanism of the atlas, with what is remarkable about it within a few tokens."""
    things = [e for e in regard.entries() if isinstance(e.thing, type) and issubclass(e.thing, Mechanism)]
    return [SMALL.get(entry.name, entry.name) for entry in things if entry.thing.examples()[0].mechanism.traits.causal]


def model(layers: str = "softmax, window(size=5)", **sizes) -> LM:
    return LM(Config(31, **{"width": 24, "heads": 3, "layers": layers} | sizes), seed=1).double().eval()


def tokens(batch: int, n: int) -> torch.Tensor:
    return torch.randint(31, (batch, n), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", hostable())
def test_every_mechanism_can_be_its_attention_and_be_extended(name):
    lm, ids = model(f"{name}*2"), tokens(2, 23)
    with torch.no_grad():
        want, state = lm(ids), lm.start(2)
        parts = []
        for part in ids.split([7, 1, 1, 11, 3], dim=1):
            logits, state = lm.extend(part, state)
            parts.append(logits)
    if all(block.attention.mechanism.traits.resumable for block in lm.layers):
        torch.testing.assert_close(torch.cat(parts, 1), want, **CLOSE)
    assert state.bytes == lm.state_bytes(23, 2)
    assert state.seen.tolist() == [23, 23]


@pytest.mark.parametrize("name", hostable())
def test_every_parameter_learns(name):
    lm = model(f"{name}*2", kv_heads=None)
    lm.loss(tokens(2, 19)).backward()
    still = [label for label, parameter in lm.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not [label for label in still if not any(part in label for part in UNTAUGHT.get(name, ()))]


@pytest.mark.parametrize("layers", ["softmax, window(size=5)", "lightning, softmax", "forgetting(pro=True)*2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(layers, side):
    lm, ids = model(layers), tokens(3, 17)
    keys = torch.ones(3, 17, dtype=torch.bool)
    for row, short in enumerate((0, 5, 11)):
        keys[row, slice(0, short) if side == "left" else slice(17 - short, 17)] = False
    with torch.no_grad():
        padded = lm(ids, key_mask=keys)
        for row in range(3):
            alone = lm(ids[row, keys[row]][None])
            torch.testing.assert_close(padded[row, keys[row]], alone[0], **CLOSE)
        drawn = lm.generate(ids, 7, key_mask=keys)
        for row in range(3):
            assert torch.equal(drawn[row], lm.generate(ids[row, keys[row]][None], 7)[0])


def test_packed_documents_do_not_meet():
    lm, ids = model("softmax, window(size=5)"), tokens(1, 19)
    segments = (torch.arange(19) >= 11).long()[None]
    with torch.no_grad():
        packed = lm(ids, segments=segments)
        torch.testing.assert_close(packed[:, :11], lm(ids[:, :11]), **CLOSE)
        torch.testing.assert_close(packed[:, 11:], lm(ids[:, 11:]), **CLOSE)


def test_generation_is_the_most_likely_token_each_time():
    lm, ids = model(), tokens(2, 5)
    drawn, grown = lm.generate(ids, 11), ids
    for _ in range(11):
        with torch.no_grad():
            grown = torch.cat([grown, lm(grown)[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(drawn, grown[:, 5:])


def test_generation_stops_and_then_repeats_the_stop():
    lm, ids = model(), tokens(2, 5)
    free = lm.generate(ids, 11)
    stop = int(free[0, 3])
    ended = lm.generate(ids, 11, stop=[stop])
    first = (free[0] == stop).nonzero()[0, 0]
    assert torch.equal(ended[0, : first + 1], free[0, : first + 1])
    assert (ended[0, first:] == stop).all()
    assert lm.generate(ids, 0).shape == (2, 0)


def test_sampling_follows_the_probabilities_and_its_cuts():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_011, -1)
    draws = [
        Sampling(1.0, **cut, generator=torch.Generator().manual_seed(0))(logits)
        for cut in ({}, {"top_k": 2}, {"top_p": 0.7})
    ]
    shares = draws[0].bincount(minlength=4) / len(logits)
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.01, rtol=0)
    assert draws[1].unique().tolist() == [0, 1]
    assert draws[2].unique().tolist() == [0, 1]  # 0.64 alone is less than 0.7
    assert Sampling()(logits).unique().tolist() == [0]
    for bad in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Sampling(**bad)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    lm = model("softmax(sink_heads=3), lightning").float()
    lm.save_pretrained(tmp_path / "lm")
    again = LM.from_pretrained(tmp_path / "lm")
    assert again.config == lm.config
    assert torch.equal(again(tokens(2, 7)), lm(tokens(2, 7)))
    with pytest.raises(FileNotFoundError, match=r"without config\.json"):
        LM.from_pretrained(tmp_path)
    (tmp_path / "lm" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="another model"):
        LM.from_pretrained(tmp_path / "lm")


@pytest.mark.parametrize("inner", [None, 0])
@pytest.mark.parametrize("layers", ["softmax, window(size=5)", "lightning*2", "mamba2, retnet", "linear"])
def test_flops_are_those_that_are_counted(layers, inner):
    lm = LM(Config(31, width=24, heads=3, layers=layers, inner=inner), seed=0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        lm(tokens(2, 64))
    assert lm.flops(64, 2) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.filterwarnings("error")
def test_without_networks_blocks_are_attention_alone(tmp_path):
    lm, ids = model("softmax*2", inner=0), tokens(2, 13)
    attention = sum(p.numel() for block in lm.layers for p in block.attention.parameters())
    assert lm.parameter_count == attention + 31 * 24 + 3 * 24
    x = lm.embed(ids)
    for block in lm.layers:
        x = x + block.attention(block.norms[0](x), Layout(causal=True))
    torch.testing.assert_close(lm(ids), lm.read(x), **CLOSE)
    lm.save_pretrained(tmp_path)
    assert torch.equal(LM.from_pretrained(tmp_path).double()(ids), lm(ids))
    parallel = BenchmarkNetwork(lm.config, "causal self", "parallel").layers[0]
    torch.testing.assert_close(
        parallel(x.float(), Layout(), None), x.float() + parallel.attention(parallel.norms[0](x.float()))
    )


def test_equal_parameters_for_unequal_mechanisms():
    target = LM(Config(97, width=48, layers="softmax*3"), seed=0).parameter_count
    for layers in ("lightning*3", "aha*3", "window(size=7)*2, softmax"):
        found = LM(fitted(Config(97, width=48, layers=layers), target), seed=0).parameter_count
        assert abs(found - target) <= 0.01 * target
    with pytest.raises(ValueError, match="parameters"):
        fitted(Config(97, width=48), 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 25}, "width: got 25, want a multiple of the 3 heads"),
        ({"layers": "softmax*0"}, "layers"),
        ({"heads": 3, "kv_heads": 2}, "kv_heads: got 2, want a divisor of the 3 heads"),
        ({"inner": -1}, "inner: got -1, want at least 0"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        model(**{"layers": "softmax"} | change)


def test_bad_ids_are_named():
    lm = model()
    with pytest.raises(ValueError, match="ids: got 0 to 31, want 0 to 30"):
        lm(torch.arange(32)[None])
    with pytest.raises(TypeError, match="ids"):
        lm(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least one to continue"):
        lm.generate(tokens(2, 0), 3)


PROJECTIONS = [
    *("latent(rank=10, plain=6, rotary=4, value=5)", "latent(rank=10, plain=6, rotary=4, value=5, form=absorbed)"),
    *("moh(shared=1, routed=1)", "moh(router=relu)", "moh(routed=2, router=norm)", "nexus", "nexus(order=3)"),
    *("dual", "dual(relational=2, relations=4, symmetric=True, symbols=relative)", "dual(symbols=position)"),
    "dual(relational=3)",
    *("knocking_heads", "head_embeddings(form=add)", "super_attention", "merged_query_key"),
]


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_any_projection_can_be_a_layers(projection, tmp_path):
    lm, ids = model("softmax, window(size=5)", projection=projection), tokens(2, 19)
    with torch.no_grad():
        want, state = lm(ids), lm.start(2)
        parts = []
        for part in ids.split([7, 1, 11], dim=1):
            logits, state = lm.extend(part, state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), want, **CLOSE)
    assert state.bytes == lm.state_bytes(19, 2)
    lm.save_pretrained(tmp_path)
    assert torch.equal(LM.from_pretrained(tmp_path).double()(ids), want)


def test_what_is_no_projection_is_named():
    with pytest.raises(ValueError, match="projection"):
        model(projection="window")
