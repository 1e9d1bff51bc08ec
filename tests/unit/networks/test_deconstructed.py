"""Layers that lack mixing, the softmax's form, or dependence on the sequence: what they are, and what they cost."""

import pytest
import torch
import torch.nn.functional as F

from regard.claims.language import LENGTH, VARIANTS
from regard.core.layout import Layout
from regard.networks.deconstructed import DeconstructedLM
from regard.networks.lm import LM, Config

MIXED = f"random_qk(length={LENGTH}), static_qk, fixed_qk(length={LENGTH}), self_gated, no_mixing, softmax"


def small(layers, seed=0):
    model = DeconstructedLM(Config(29, 24, layers, heads=2), seed).double()
    if "fixed_qk" in layers:
        model.fix(torch.randint(29, (LENGTH,), generator=torch.Generator().manual_seed(1)))
    return model.requires_grad_(False)


def weights(model, layer, ids):
    """A of a layer whose queries and keys come from elsewhere, ``(b, h, n, n)``."""
    seen, block = {}, model.layers[layer]
    handle = block.attention.register_forward_pre_hook(lambda module, given: seen.setdefault("given", given))
    model(ids)
    handle.remove()
    q, k, _, _ = block.attention.inputs(*seen["given"])
    return block.attention.mechanism.weights(q, k, Layout(causal=True))


def test_standard_layers_are_the_language_model():
    """With standard layers alone it is the language model, and all variants have its parameters but for rounding."""
    ids, config = torch.randint(29, (2, 13)), Config(29, 24, "softmax*2", heads=2)
    torch.testing.assert_close(DeconstructedLM(config, 0)(ids), LM(config, 0)(ids))
    for name in VARIANTS.values():
        found = DeconstructedLM(Config(29, 24, f"{name}*2", heads=2), 0).parameter_count
        assert abs(found - LM(config, 0).parameter_count) <= 3 * 24 * 2


def test_without_mixing_a_token_is_alone():
    """No mixing: what comes before a token does not change its logits; all others let it."""
    ids = torch.randint(29, (1, 13))
    for name in VARIANTS.values():
        model = small(f"{name}*2")
        changed = torch.cat([(ids[:, :6] + 1) % 29, ids[:, 6:]], 1)
        same = torch.equal(model(ids)[:, 6:], model(changed)[:, 6:])
        assert same == (name == "no_mixing")


def test_fixed_maps_do_not_know_the_text():
    """Maps from random embeddings and from a fixed text are the same for all texts, bit by bit; static ones are not,
    and do not know the layers below."""
    first, second = torch.randint(29, (2, 1, 13))
    for kind in ("random_qk", "fixed_qk", "static_qk"):
        model = small(f"softmax, {VARIANTS[kind]}")
        assert torch.equal(weights(model, 1, first), weights(model, 1, second)) == (kind != "static_qk")
    model = small("softmax, static_qk")
    before = weights(model, 1, first)
    model.layers[0].network.down.weight.add_(1)
    assert torch.equal(weights(model, 1, first), before)
    model = small(f"softmax, {VARIANTS['random_qk']}")
    before = weights(model, 1, first)
    model.layers[0].network.down.weight.add_(1)
    assert not torch.allclose(weights(model, 1, first), before)  # ε went through the layer below


def test_a_fixed_text_read_by_itself_is_standard_attention():
    """A model that reads the very text that its maps are fixed to computes what standard attention computes."""
    model, standard = small(VARIANTS["fixed_qk"] + "*2"), LM(Config(29, 24, "softmax*2", heads=2), 0).double()
    standard.load_state_dict({name: w for name, w in model.state_dict().items() if name not in ("noise", "text")})
    ids = model.text[None, :17]
    torch.testing.assert_close(model(ids), standard(ids), atol=1e-12, rtol=0)


def test_self_gated_layers_are_a_running_mean():
    """Σ_{j≤i} e^{s_j} v_j / Σ_{j≤i} e^{s_j} with s_j of token j alone, as the paper's recurrence has it."""
    layer, x = small("self_gated").layers[0].attention, torch.randn(2, 11, 24, dtype=torch.float64)
    p = layer.projection
    q, k, v = (m(x).unflatten(2, (2, 12)) for m in (p.q, p.k, p.v))
    grown = ((F.silu(q) * k).sum(-1, keepdim=True) / 12**0.5).exp()
    want = p.out(((grown * v).cumsum(1) / grown.cumsum(1)).flatten(2))
    torch.testing.assert_close(layer(x, Layout(causal=True)), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("layers", [MIXED, *(f"{name}*2" for name in VARIANTS.values())])
def test_decoding_padding_and_saving(layers, tmp_path):
    """In any chunks, with padding, as one call and as alone; a saved model is the model."""
    model, ids = small(layers), torch.randint(29, (2, 13))
    keys = torch.ones(2, 13, dtype=torch.bool)
    keys[1, :4] = False
    want, state, parts = model(ids, keys), model.start(2), []
    for part in torch.arange(13).split([5, 1, 1, 6]):
        out, state = model.extend(ids[:, part], state, keys[:, part])
        parts.append(out)
        state = state.select(torch.tensor([0, 1]))
    torch.testing.assert_close(torch.cat(parts, 1)[keys], want[keys], atol=1e-10, rtol=0)
    torch.testing.assert_close(want[1, 4:], model(ids[1:, 4:])[0], atol=1e-10, rtol=0)
    model.float().save_pretrained(tmp_path)
    torch.testing.assert_close(DeconstructedLM.from_pretrained(tmp_path)(ids), model(ids))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="ids: got 65 tokens"):
        small(VARIANTS["random_qk"])(torch.zeros(1, 65, dtype=torch.int64))
    with pytest.raises(ValueError, match="fixed_qk: call `fix`"):
        DeconstructedLM(Config(29, 24, VARIANTS["fixed_qk"], heads=2))(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="ids: got shape"):
        small(VARIANTS["fixed_qk"]).fix(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match="sigma"):
        small("random_qk(sigma=1)")
    model = small(VARIANTS["random_qk"])
    with pytest.raises(ValueError, match="65 tokens in all"):
        model.extend(torch.zeros(1, 65, dtype=torch.int64), model.start(1))
