"""Projections: parameters by formula, limits that are multi-head attention, conversions."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks import LM, Config
from regard.networks.vision.vit import ViT
from regard.projections.base import Grouped
from regard.projections.fewer import FewerMatrices
from regard.projections.shared import HeadEmbeddings, KnockingHeads, Merged, to_groups

CAUSAL, EXACT, WIDTH = Layout(causal=True), {"atol": 1e-12, "rtol": 0}, 24
MAKE = {
    "add": lambda: HeadEmbeddings(WIDTH, 4, 5, 7, "add"),
    "multiply": lambda: HeadEmbeddings(WIDTH, 4, 5, 7),
    "knocking": lambda: KnockingHeads(Sizes(WIDTH, 4, 2, 5, 7)),
    "knocking, gated": lambda: KnockingHeads(Sizes(WIDTH, 4, 2, 5, 7), "gated"),
    "optimised": lambda: FewerMatrices(WIDTH, 4),
    "efficient": lambda: FewerMatrices(WIDTH, 1, "efficient"),
    "merged": lambda: Merged(WIDTH, 3),
    "symmetric": lambda: Merged(WIDTH, 2, symmetric=True, out=False),
    "multi-query": lambda: to_groups(Grouped(Sizes(WIDTH, 4, 4, 5, 7))),
}


def attention(projection, mechanism="softmax"):
    return Attention(regard.build(mechanism), projection).double()


def hidden(n=17, seed=0):
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MAKE)
def test_parameters_shapes_and_decoding(name):
    """Every projection has the parameters of its formula, and a layer with it decodes as it computes."""
    torch.manual_seed(0)
    projection = MAKE[name]()
    assert projection.parameter_count == sum(p.numel() for p in projection.parameters())
    layer, x = attention(projection), hidden()
    q, k, v = projection.double()(x, x)
    assert q.shape == (2, projection.heads, 17, projection.head_dim)
    assert k.shape == (2, projection.kv_heads, 17, projection.head_dim)
    assert v.shape == (2, projection.kv_heads, 17, projection.value_dim)
    want, state, parts = layer(x, CAUSAL), layer.start(2, dtype=torch.float64), []
    for part in x.split([9, 1, 7], dim=1):
        out, state = layer.extend(part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), want, atol=1e-9, rtol=1e-9)
    assert state.bytes == 2 * 17 * 8 * projection.cached_numbers


def test_multi_query_caches_one_head():
    """MQA: the cache is 1 / h of multi-head attention's, and equal heads convert without a change."""
    whole = Grouped(Sizes(WIDTH, 4, 4, 5, 7)).double()
    assert to_groups(whole).cached_numbers * 4 == whole.cached_numbers
    with torch.no_grad():
        for name, size in (("k", 5), ("v", 7)):
            weight = getattr(whole, name).weight
            weight.copy_(weight[:size].repeat(4, 1))
    torch.testing.assert_close(
        attention(to_groups(whole))(hidden(), CAUSAL), attention(whole)(hidden(), CAUSAL), **EXACT
    )
    with pytest.raises(ValueError, match="kv_heads"):
        to_groups(whole, 3)


def test_equal_embeddings_make_equal_heads():
    """MHE: 3 h d more parameters than one shared projection, and heads of equal embeddings are equal."""
    projection = HeadEmbeddings(WIDTH, 4, 6, 6).double()
    shared = 3 * WIDTH * 6 + 4 * 6 * WIDTH
    assert projection.parameter_count - shared == 3 * 4 * 6
    with torch.no_grad():
        for embedding in projection.embeddings:
            embedding.copy_(embedding[:1].expand_as(embedding))
    for part in projection(hidden(), hidden()):
        assert torch.equal(part, part[:, :1].expand_as(part))


def test_knocking_heads_begin_as_multi_head_attention_and_fold_into_it():
    """KHA: identity maps are multi-head attention exactly; any maps fold into its matrices."""
    torch.manual_seed(0)
    knocking = KnockingHeads(Sizes(WIDTH, 4, 2, 5, 7)).double()
    plain = Grouped(Sizes(WIDTH, 4, 2, 5, 7)).double()
    plain.load_state_dict({name: x for name, x in knocking.state_dict().items() if "mixes" not in name})
    assert torch.equal(attention(knocking)(hidden(), CAUSAL), attention(plain)(hidden(), CAUSAL))
    with torch.no_grad():
        for mix in knocking.mixes:
            mix.add_(0.3 * torch.randn_like(mix))
    want = attention(knocking)(hidden(), CAUSAL)
    torch.testing.assert_close(attention(knocking.folded())(hidden(), CAUSAL), want, **EXACT)


def test_gated_knocking_heads_begin_as_multi_head_attention():
    """KHA with a gated network for the values: with T_G zero and T_D the identity they are the values, exactly; else
    the equation."""
    torch.manual_seed(0)
    gated = KnockingHeads(Sizes(WIDTH, 4, 2, 5, 7), "gated").double()
    plain = Grouped(Sizes(WIDTH, 4, 2, 5, 7)).double()
    plain.load_state_dict({name: w for name, w in gated.state_dict().items() if "." in name and "weight" in name})
    assert torch.equal(attention(gated)(hidden(), CAUSAL), attention(plain)(hidden(), CAUSAL))
    with torch.no_grad():
        for mix in (*gated.mixes, *gated.gated):
            mix.add_(0.3 * torch.randn_like(mix))
    v = plain(hidden(), hidden())[2]
    want = 2 * ((v @ gated.mixes[2]) * torch.sigmoid(v @ gated.gated[0])) @ gated.gated[1]
    torch.testing.assert_close(gated(hidden(), hidden())[2], want, **EXACT)
    with pytest.raises(ValueError, match="values: got gated"):
        gated.folded()
    with pytest.raises(ValueError, match="values: got 'mlp'"):
        KnockingHeads(Sizes(WIDTH, 4, 2, 5, 7), "mlp")  # pyright: ignore


def test_fewer_matrices_are_multi_head_attention_with_the_identity():
    """Optimised and efficient attention: 3/4 and 1/2 of the parameters, the matrices left out being the identity."""
    whole = Grouped(Sizes(WIDTH, 4, 4, 6, 6)).double()
    for form, heads, share in (("optimised", 4, 0.75), ("efficient", 1, 0.5)):
        fewer = FewerMatrices(WIDTH, heads, form).double()
        assert fewer.parameter_count == share * whole.parameter_count
        plain = Grouped(Sizes.even(WIDTH, heads)).double()
        with torch.no_grad():
            for name in ("q", "k", "v", "out"):
                source = getattr(fewer, name, None)
                linear = isinstance(source, torch.nn.Linear)
                getattr(plain, name).weight.copy_(source.weight if linear else torch.eye(WIDTH))
        torch.testing.assert_close(attention(fewer)(hidden(), CAUSAL), attention(plain)(hidden(), CAUSAL), **EXACT)


def test_super_attention_mixes_values_by_place():
    """Super attention: efficient attention of values mixed by a matrix over places; bidirectional, whole texts only."""
    torch.manual_seed(0)
    found = FewerMatrices(WIDTH, 1, "super", length=WIDTH).double()
    assert found.parameter_count == sum(p.numel() for p in found.parameters()) == 3 * WIDTH**2
    efficient = FewerMatrices(WIDTH, 1, "efficient").double()
    efficient.load_state_dict(found.state_dict(), strict=False)
    x = hidden()
    torch.testing.assert_close(attention(found)(x), attention(efficient)(x), **EXACT)
    with torch.no_grad():
        found.align.add_(torch.randn_like(found.align))
        found.out.weight.copy_(torch.eye(WIDTH))
    n = x.shape[1]
    weights = torch.softmax(found.q(x) @ x.mT * WIDTH**-0.5, -1)
    torch.testing.assert_close(attention(found)(x), weights @ (found.align[:n, :n] @ x), **EXACT)
    for layout in (CAUSAL, Layout(key_mask=torch.ones(x.shape[:2], dtype=torch.bool))):
        with pytest.raises(ValueError, match="layout"):
            attention(found)(x, layout)
    with pytest.raises(ValueError, match="projection"):
        attention(found).start(1)


def test_merged_matrices_score_the_same_pairs():
    """Minimal Transformer: one matrix in the place of two scores the same pairs; a symmetric one symmetrically."""
    x, plain = hidden(), Grouped(Sizes(WIDTH, 3, 3, 5, 5)).double()
    merged = Merged(WIDTH, 3).double()
    queries, keys = (w.weight.view(3, 5, WIDTH) for w in (plain.q, plain.k))
    with torch.no_grad():
        merged.between.copy_(queries.mT @ keys)
    scores = [q @ k.mT for q, k, _ in (plain(x, x), merged(x, x))]
    torch.testing.assert_close(scores[1], scores[0], atol=1e-11, rtol=0)
    q, k, _ = Merged(WIDTH, 2, symmetric=True).double()(x, x)
    torch.testing.assert_close(q @ k.mT, (q @ k.mT).mT, **EXACT)
    drawn, triangle = Merged(WIDTH, 2), Merged(WIDTH, 2, symmetric=True)
    assert triangle.between.numel() == 2 * WIDTH * (WIDTH + 1) / 2
    assert triangle.flops == drawn.flops == 2 * drawn.parameter_count


def test_the_smallest_transformer_averages_its_tokens():
    """Minimal Transformer: no network, value or output matrix: a layer is x + softmax(y W yᵀ / √d) y, y = norm(x)."""
    config = Config(10, WIDTH, "softmax", heads=1, inner=0, projection="merged_query_key(out=False)")
    (layer,) = ViT(config, (8, 8), 2).double().layers
    assert sum(parameter.numel() for parameter in layer.parameters()) == WIDTH**2 + WIDTH
    x = hidden()
    y = layer.norms[0](x)
    want = x + torch.softmax(y @ layer.attention.projection.between[0] @ y.mT * WIDTH**-0.5, -1) @ y
    torch.testing.assert_close(layer(x, Layout(), None), want, **EXACT)


def test_bad_sizes_are_named():
    for make, argument in (
        (lambda: FewerMatrices(WIDTH, 5), "heads"),
        (lambda: FewerMatrices(WIDTH, 2, "efficient"), "heads"),
        (lambda: FewerMatrices(WIDTH, 1, "super"), "length"),
        (lambda: FewerMatrices(WIDTH, 2, "super", 8), "heads"),
        (lambda: FewerMatrices(WIDTH, 1, "efficient", triangular=True), "triangular"),
        (lambda: FewerMatrices(WIDTH, 1, "best"), "form"),  # pyright: ignore
        (lambda: HeadEmbeddings(WIDTH, 2, 3, 3, "mix"), "form"),  # pyright: ignore
    ):
        with pytest.raises(ValueError, match=argument):
            make()


def test_causal_super_attention_mixes_values_of_earlier_places_alone():
    """By hand; later tokens change nothing; any split is one pass; padding and packing are refused."""
    torch.manual_seed(0)
    super_form = FewerMatrices(WIDTH, 1, "super", length=13, triangular=True).double()
    with torch.no_grad():
        super_form.align.copy_(torch.randn(13, 13))
    layer, x = attention(super_form), torch.randn(2, 11, WIDTH, dtype=torch.float64)
    q, values = super_form.q(x), torch.stack([super_form.align[i, : i + 1] @ x[:, : i + 1] for i in range(11)], 1)
    want = super_form.out(F.scaled_dot_product_attention(q, x, values, is_causal=True))
    torch.testing.assert_close(layer(x, CAUSAL), want, **EXACT)
    other = torch.cat([x[:, :6], torch.randn_like(x[:, 6:])], 1)
    torch.testing.assert_close(layer(other, CAUSAL)[:, :6], want[:, :6], **EXACT)
    state, parts = layer.start(2, dtype=x.dtype), []
    for part in x.split([1, 4, 6], 1):
        out, state = layer.extend(part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), want, **EXACT)
    for layout in (Layout(), Layout(causal=True, key_mask=torch.ones(2, 11, dtype=torch.bool))):
        with pytest.raises(ValueError, match="layout"):
            layer(x, layout)
    with pytest.raises(ValueError, match="13, the length"):
        layer.extend(x, state)
    with pytest.raises(ValueError, match="key_mask"):
        layer.extend(x, layer.start(2, dtype=x.dtype), torch.arange(11).expand(2, -1) > 2)


def test_a_language_model_of_causal_super_attention_generates():
    model = LM(Config(29, WIDTH, "softmax*2", 1, projection="super_attention(form=super, length=17, triangular=True)"))
    ids = torch.arange(12)[None]
    whole = model(ids)
    out, state = model.extend(ids[:, :7], model.start(1))
    rest, _ = model.extend(ids[:, 7:], state)
    torch.testing.assert_close(torch.cat([out, rest], 1), whole, rtol=0, atol=1e-5)
    assert model.generate(ids, 3).shape == (1, 3)
