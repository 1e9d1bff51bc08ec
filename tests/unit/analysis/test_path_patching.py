"""Direct paths against a model whose later heads are frozen by hand, circuits at their two ends, and tracing."""

import torch

import regard
from regard.analysis.patching import SitePatching
from regard.analysis.path_patching import PathPatching, circuit, kept_by
from regard.analysis.planted import PLACES, planted_model
from regard.analysis.sweep import LogitDifference, Pair, heads_of
from regard.edits import HeadAblation
from regard.laws import examine, examples_of


def pair(seed: int = 0) -> Pair:
    base, donor = torch.randint(0, 29, (2, 11), generator=torch.Generator().manual_seed(seed))
    return Pair(base, donor, LogitDifference(3, 8))


def test_the_last_layers_direct_path_is_its_whole_effect():
    model = planted_model()
    direct, whole = PathPatching().run(model, [pair()]), SitePatching().run(model, [pair()])
    last = [i for i, site in enumerate(direct.sites) if site.layer == 1]
    torch.testing.assert_close(direct.values[:, last], whole.values[:, last])


def test_what_goes_through_a_later_head_is_left_out():
    every = heads_of(planted_model())
    model, given = planted_model(every), pair(2)
    direct, whole = PathPatching().run(model, [given]), SitePatching().run(model, [given])
    first = [i for i, site in enumerate(direct.sites) if site.layer == 0]
    assert float((direct.values - whole.values)[:, first].abs().max()) > 1e-4
    with regard.trace(model) as base, torch.no_grad():
        model(given.base[None])
    with regard.trace(model) as donor, torch.no_grad():
        donor_end = given.metric(model(given.donor[None]).logits[:, -1])
    z = base.get("z", 0).clone()
    z[0, 2, -1] = donor.get("z", 0)[0, 2, -1]
    layers = model.model.layers

    def instead(module, inputs, of):
        return (of.transpose(1, 2).flatten(2),)

    hooks = [layers[0].self_attn.o_proj.register_forward_pre_hook(lambda m, i: instead(m, i, z))]
    hooks.append(layers[1].self_attn.o_proj.register_forward_pre_hook(lambda m, i: instead(m, i, base.get("z", 1))))
    with torch.no_grad():
        end = given.metric(model(given.base[None]).logits[:, -1])
    for hook in hooks:
        hook.remove()
    want = (end - direct.base) / (donor_end - direct.base)
    torch.testing.assert_close(direct.values[0, direct.sites.index(direct.sites[2])], want[0], atol=1e-6, rtol=0)


def test_all_heads_keep_everything_and_those_that_say_something_are_enough():
    model, pairs = planted_model(), [pair(1), pair(3)]
    one = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(kept_by(model, pairs, heads_of(model)), one)
    torch.testing.assert_close(kept_by(model, pairs, PLACES), one)
    assert float((kept_by(model, pairs, PLACES[:1]) - one).abs().max()) > 1e-3
    assert set(circuit(PathPatching().run(model, pairs), 2)) == set(PLACES)


def test_a_trace_reads_what_edits_left():
    model = planted_model()
    with regard.trace(model, ["z", "resid"], edits=[HeadAblation({0: [1]})], layers=[0]) as seen, torch.no_grad():
        model(torch.arange(7)[None])
    assert float(seen.get("z", 0)[0, 1].abs().max()) == 0
    assert float(seen.get("z", 0)[0, 0].abs().max()) > 0
    assert seen.get("resid", 0).shape == (1, 7, 18)


def test_path_patching_obeys_the_laws_of_analyses():
    (sample,) = examples_of(PathPatching)
    for law in ("null", "heads", "merge", "table"):
        finding = examine(sample, law, kind="analysis")
        assert finding.verdict == "holds", f"{law}: {finding.detail}"
