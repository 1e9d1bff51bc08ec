"""Mediation of calculations: the equation by hand, a model whose one network tells it, and all parts together."""

import pytest
import torch
from torch import tensor

from regard.analysis.arithmetic_mediation import (
    ArithmeticMediation,
    Results,
    all_patched,
    arithmetic_pair,
    indirect_effect,
    neuron_effects,
    relative_importance,
)
from regard.analysis.planted import planted_model
from regard.analysis.sweep import Effects, Pair, Site
from regard.laws import examine, examples_of

METRIC = Results(3, 8)


def pairs(count: int = 2) -> list[Pair]:
    """Texts that differ in their last token alone."""
    draw, found = torch.Generator().manual_seed(2), []
    for _ in range(count):
        base = torch.randint(0, 29, (7,), generator=draw)
        donor = base.clone()
        donor[-1] = (base[-1] + 5) % 29
        found.append(Pair(base, donor, METRIC))
    return found


def silent(layer: int):
    """A model of which no head says anything, and one network at most."""
    model = planted_model(())
    with torch.no_grad():
        for at, block in enumerate(model.model.layers):
            if at != layer:
                block.mlp.down_proj.weight.zero_()
    return model


def test_the_known_effects():
    (sample,) = examples_of(ArithmeticMediation)
    assert examine(sample, "known", kind="analysis").verdict == "holds"


@pytest.mark.parametrize("layer", [0, 1])
def test_only_the_network_that_speaks_has_an_effect(layer):
    found = ArithmeticMediation().run(silent(layer), pairs())
    said = {site for site, x in zip(found.sites, found.values.abs().amax(0), strict=True) if float(x) > 1e-9}
    assert said == {Site(layer, "mlp", None, -1)}


def test_where_no_part_speaks_there_are_no_effects():
    found = ArithmeticMediation(slots=(-1, 2)).run(silent(5), pairs(1))
    assert float(found.values.abs().max()) < 1e-12


def test_an_earlier_position_reaches_the_end_through_heads_alone():
    (pair,) = pairs(1)
    donor = pair.base.clone()
    donor[2] = (donor[2] + 5) % 29
    early = Pair(pair.base, donor, METRIC)
    silent_heads = ArithmeticMediation(("mlp",), (2,)).run(planted_model(()), [early])
    speaking = ArithmeticMediation(("mlp",), (2,)).run(planted_model(((1, 0),)), [early])
    assert float(silent_heads.values.abs().max()) < 1e-12
    first, second = speaking.values[0].abs()
    assert float(first) > 1e-6
    assert float(second) < 1e-12  # what the last network says there is read by nobody


def test_effects_are_those_of_the_patched_runs_probabilities():
    model, (pair,) = silent(1), pairs(1)
    found = ArithmeticMediation(("mlp",)).run(model, [pair])
    with torch.no_grad():
        hidden = [model.model(ids[None]).last_hidden_state for ids in (pair.base, pair.donor)]
        states = [model.model.embed_tokens(ids[None]) for ids in (pair.base, pair.donor)]
        block = model.model.layers[1]
        said = [block.mlp(block.post_attention_layernorm(x)) for x in states]
        patched = model.lm_head(model.model.norm(states[0] + said[1]))[:, -1]
        base = model.lm_head(hidden[0])[:, -1]
    want = indirect_effect(METRIC(base), METRIC(patched))
    torch.testing.assert_close(found.values[0, 1:], want)


def test_all_parts_of_a_donor_with_the_same_embeddings_give_its_probabilities():
    model, (pair,) = planted_model(), pairs(1)
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[:1].clone() + 1e-3 * torch.randn(
            29, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
        donor = METRIC(model(pair.donor[None]).logits[:, -1])
        base = METRIC(model(pair.base[None]).logits[:, -1])
    moved = all_patched(model, [pair])
    assert float((moved - donor).abs().max()) < float((base - donor).abs().max())
    own = all_patched(model, [Pair(pair.base, pair.base, METRIC)])
    torch.testing.assert_close(own, base)


def test_relative_importance_by_hand():
    sites = (Site(0, "mlp"), Site(1, "mlp"), Site(1, "attn"))
    values = tensor([[1.0, 3.0, -0.5], [1.0, 3.0, -0.5]], dtype=torch.float64)
    found = Effects("arithmetic_mediation", sites, values, values, values)
    assert relative_importance(found, lambda site: site.layer == 1) == pytest.approx(2 / 3)


class Words:
    """A tokenizer of letters."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(letter) - 97 for letter in text]}


@pytest.mark.parametrize(
    ("texts", "results", "said"),
    [(("ab", "ac"), ("d", "ef"), "result"), (("ab", "ac"), ("d", "d"), "other"), (("ab", "abc"), ("d", "e"), "pair")],
)
def test_pairs_that_cannot_be_measured_are_refused(texts, results, said):
    with pytest.raises(ValueError, match=said):
        arithmetic_pair(Words(), *texts, *results)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="parts"):
        ArithmeticMediation(("z",))
    with pytest.raises(ValueError, match="slots"):
        ArithmeticMediation(slots=())
    with pytest.raises(ValueError, match="pairs"):
        all_patched(planted_model(), [])


@pytest.mark.parametrize("slot", [-1, 4])
def test_a_neuron_is_mediated_by_putting_its_activation_in(slot):
    model, (pair, other) = planted_model(), pairs()
    donor = pair.base.clone()
    donor[4] = (donor[4] + 3) % 29
    given = [Pair(one.base, donor if slot == 4 else one.donor, METRIC) for one in (pair, other)]
    found = neuron_effects(model, given, 1, slot, rows=3)
    down, kept = model.model.layers[1].mlp.down_proj, []
    handle = down.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].clone()))
    with torch.no_grad():
        base = METRIC(model(given[0].base[None]).logits[:, -1])
        model(given[0].donor[None])
        handle.remove()
        for neuron in range(found.shape[1]):

            def put(module, inputs, k=neuron):
                x = inputs[0].clone()
                x[0, slot, k] = kept[1][0, slot, k]
                return (x,)

            handle = down.register_forward_pre_hook(put)
            patched = METRIC(model(given[0].base[None]).logits[:, -1])
            handle.remove()
            torch.testing.assert_close(found[0, neuron], indirect_effect(base, patched)[0], atol=1e-9, rtol=1e-6)
    if slot == -1:
        assert float(found.abs().max()) > 1e-4
    with pytest.raises(ValueError, match="layer"):
        neuron_effects(model, given, 2)
