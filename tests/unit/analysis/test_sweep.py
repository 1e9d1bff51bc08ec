"""Patching on the shipped model: what must hold whatever the model is; texts, cache and store change nothing."""

from __future__ import annotations

import random

import pytest
import torch

from regard.analysis.patching import SitePatching, patch
from regard.analysis.sweep import (
    Effects,
    LogitDifference,
    Pair,
    Probability,
    Site,
    by_layer,
    digest,
    heads_of,
    random_like,
)  # fmt: skip
from regard.experiments.bootstrap import bootstrap
from regard.hosts import small

N = 23


@pytest.fixture(scope="module")
def model():
    return small.load("tiny")[0]


@pytest.fixture(scope="module")
def pair():
    base, donor = torch.randint(1, 2048, (2, N), generator=torch.Generator().manual_seed(3))
    return Pair(base, donor, LogitDifference(17, 400))


def close(found, expected, atol=2e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def test_a_donor_of_the_same_text_changes_nothing(model, pair):
    found = SitePatching("z", (None, 5)).run(model, [Pair(pair.base, pair.base, pair.metric)])
    with torch.no_grad():
        whole = pair.metric(model(pair.base[None]).logits[:, -1]).double()
    close(found.base, whole)
    sweep = SitePatching("z", (None, 5))
    sweep.effect = lambda patched, base, donor: patched - base  # type: ignore[method-assign]
    changed = sweep.run(model, [Pair(pair.base, pair.base, pair.metric)]).values
    close(changed, torch.zeros_like(changed))


def test_states_of_the_first_block_are_the_donors_whole_run(model, pair):
    found = SitePatching("resid", (None,)).run(model, [pair])
    close(found.values[0, 0], torch.tensor(1.0, dtype=torch.float64), 1e-3)
    assert found.sites[0] == Site(0, "resid", None, None)


def test_the_states_before_the_last_block_decide_the_last_token(model, pair):
    """What the last block still reads of the others is all that the last token's state leaves open."""
    both = [[Site(3, "resid"), *(Site(3, "z", head) for head in range(8))]]
    sweep = SitePatching()
    from regard.edits.trace import Trace
    from regard.hosts.attach import attach

    traces = [Trace("z", "resid"), Trace("z", "resid")]
    with torch.no_grad():
        for trace, ids in zip(traces, (pair.donor, pair.base), strict=True):
            with attach(model, edits=[trace]):
                end = model(ids[None]).logits[:, -1]
                if trace is traces[0]:
                    wanted = pair.metric(end).double()
    close(sweep.patched(model, both, pair, traces[0], traces[1]), wanted, 1e-3)


def test_the_cache_of_the_prefix_gives_what_whole_passes_give(model, pair):
    by_cache = SitePatching("z", (-1,), rows=7).run(model, [pair])
    whole = SitePatching("z", (N - 1,), rows=5).run(model, [pair])  # the same position, not told that it is the last
    close(by_cache.values, whole.values, 1e-3)
    assert by_cache.values.abs().max() > 0.01


def test_a_row_changes_its_own_site_alone(model, pair):
    sites = [Site(1, "z", 2), Site(3, "z", 6), Site(0, "mlp")]

    class Some(SitePatching):
        def sites(self, model):
            return sites

    together = Some(rows=3).run(model, [pair])
    for i, site in enumerate(sites):
        sites_of_one = [site]

        class One(SitePatching):
            def sites(self, model, of=sites_of_one):
                return of

        close(One(rows=1).run(model, [pair]).values[0, 0], together.values[0, i], 1e-3)


def test_what_was_stopped_goes_on(model, pair, tmp_path, monkeypatch):
    sweep, other = SitePatching("mlp"), Pair(pair.donor, pair.base, pair.metric)
    first = sweep.run(model, [pair], tmp_path / "kept")
    measured = []
    monkeypatch.setattr(
        SitePatching, "one", lambda self, m, s, p, was=SitePatching.one: measured.append(p) or was(self, m, s, p)
    )
    both = sweep.run(model, [pair, other], tmp_path / "kept")
    assert measured == [other]
    assert torch.equal(both.values[:1], first.values)
    sweep.run(model, [Pair(pair.base, pair.donor, LogitDifference(17, 401))], tmp_path / "kept")
    assert len(measured) == 2


def test_results_merge_to_those_of_all_pairs(model, pair):
    sweep, other = SitePatching("attn"), Pair(pair.donor, pair.base, Probability(17))
    whole = sweep.run(model, [pair, other])
    parts = sweep.run(model, [pair]).merge(sweep.run(model, [other]))
    assert torch.equal(whole.values, parts.values)
    assert [row["effect"] for row in whole.table()] == whole.mean.tolist()
    with pytest.raises(ValueError, match="other: got patching of 4 sites, want patching of the same sites"):
        whole.merge(Effects("patching", whole.sites[::-1], whole.values, whole.base, whole.donor))


def test_intervals_hold_the_mean():
    values = torch.randn(31, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap(values)
    assert bool(((low < values.mean(0)) & (values.mean(0) < high)).all())
    assert 0.4 < float((high - low).mean() / (2 * 1.96 / 31**0.5)) < 1.3
    one = bootstrap(values[:1])
    assert torch.equal(one[0], values[0])


def test_controls_have_the_same_layers_and_none_of_the_heads(model):
    every = heads_of(model)
    chosen = random.Random(1).sample(every, 7)
    control = random_like(chosen, every, 5)
    assert {layer: len(of) for layer, of in by_layer(control).items()} == {
        layer: len(of) for layer, of in by_layer(chosen).items()
    }
    assert not set(control) & set(chosen)
    assert control != random_like(chosen, every, 6)
    with pytest.raises(ValueError, match="heads: got 5 of layer 2, want at most 3"):
        random_like([(2, h) for h in range(5)], every, 0)


def test_bad_input_is_named(model, pair):
    with pytest.raises(ValueError, match="pair: got shapes"):
        Pair(pair.base, pair.donor[1:], pair.metric)
    with pytest.raises(ValueError, match="part: got 'w', want one of z, resid, attn, mlp"):
        SitePatching("w")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokenizer: got None"):
        patch(model, "a b", "a c", ("x", "y"))
    with pytest.raises(ValueError, match="data: got no pairs"):
        SitePatching().run(model, [])


def test_what_is_kept_is_found_again_under_the_same_digest():
    """The first digits of SHA-256 of "abc" as its standard, FIPS 180, has them."""
    assert digest("abc") == "ba7816bf8f01cfea"
