"""Chains of pointers lead where they say, and a reader that is built by hand follows one hop and no more."""

import pytest
import torch

from regard.studies.stacked_heads import ChainReader, Chains, chain_prompt, fewest_layers, hops_by_steps, looks


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_whoever_follows_the_pointers_comes_to_the_end(hops):
    chains = Chains(3, 17)
    keys, values, ends, places = chains.batch(29, hops, torch.Generator().manual_seed(hops))
    assert keys.shape == values.shape == (29, 3 * hops + 1)
    assert keys[:, -1].eq(17).all()
    for row in range(29):
        pointers = dict(zip(keys[row, :-1].tolist(), values[row, :-1].tolist(), strict=True))
        assert len(pointers) == 3 * hops
        at, seen = int(values[row, -1]), []
        while at < 17:
            seen.append(keys[row].tolist().index(at))
            at = pointers[at]
        assert at - 17 == ends[row]
        assert seen == places[row].tolist()


def test_values_that_are_dealt_anew_lead_to_the_end_by_chance_alone():
    keys, values, ends, _ = Chains(4, 24).batch(2000, 1, torch.Generator().manual_seed(0), linked=False)
    found = values.gather(1, (keys == values[:, -1:]).int().argmax(1, keepdim=True))[:, 0] - 24
    assert abs((found == ends).double().mean().item() - 0.25) < 0.04


def test_layers_that_are_needed_grow_as_the_logarithm_to_base_three():
    assert [fewest_layers(hops) for hops in (1, 2, 4, 5, 13, 14)] == [1, 2, 2, 3, 3, 4]
    assert [hops_by_steps(layers) for layers in (1, 2, 3)] == [1, 3, 7]


def test_one_layer_that_matches_values_with_keys_follows_one_hop():
    """Symbols are unit vectors, queries ask for the value's and keys show the key's: one hop always, two by chance."""
    chains = Chains(2, 6)
    model, width = ChainReader(chains, 1, width=16, heads=1).double(), 16
    projection = model.layers[0].attention.projection
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.keys.weight[:6, :6] = torch.eye(6)
        model.values.weight[:, 8:] = torch.eye(8)
        for norm in (model.norm, model.layers[0].norms[0]):
            norm.weight.fill_(1.0)
        eye = torch.eye(width, dtype=torch.float64)
        projection.q.weight[:6] = 30 * eye[8:14]
        projection.k.weight[:6] = eye[:6]
        projection.v.weight[:2] = eye[14:]
        projection.out.weight[:, :2] = 10 * eye[:, 14:]
        model.read.weight[:, 14:] = torch.eye(2)
    right = []
    for hops in (1, 2):
        keys, values, ends, places = chains.batch(400, hops, torch.Generator().manual_seed(3))
        right.append((model(keys, values).argmax(1) == ends).double().mean().item())
        assert looks(model, keys, values, places)[0, 0, 0] > 0.99
    assert right[0] == 1
    assert right[1] < 0.9


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match=r"^chains: got 1, want at least two"):
        Chains(1)
    with pytest.raises(ValueError, match=r"^hops: got 7, want 1 to 6, as there are 24 symbols"):
        Chains().batch(2, 7, torch.Generator())


@pytest.mark.parametrize("hops", [1, 3])
def test_a_prompt_tells_the_chain_to_the_right_end(hops):
    chains, names = Chains(3, 11), [f"N{i}" for i in range(17)]
    for seed in range(5):
        text, ends = chain_prompt(chains, hops, names, torch.Generator().manual_seed(seed))
        *lines, asked = text.split("\n")
        arrows = dict(line.split(" -> ") for line in lines)
        assert len(arrows) == 3 * hops
        at = asked.split("from ")[1].split(" to the end")[0]
        for _ in range(hops):
            at = arrows[at]
        assert at == ends[0]
        assert len(set(ends)) == 3
        assert not set(ends) & set(arrows)
    with pytest.raises(ValueError, match="names"):
        chain_prompt(chains, hops, names[:13], torch.Generator())
