"""Attention that models compute in their own code: read where weights meet values, named where they do not."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import regard
from regard.probes import Distance, Entropy
from unit.hosts.models import VOCABULARY, spread, t5, tokens

BATCH, LENGTH, WIDTH, HEADS = 2, 11, 24, 3
SIZES = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OWN = {
    "Bloom": {"hidden_size": WIDTH, "n_head": HEADS, "n_layer": 2, "vocab_size": VOCABULARY} | SPECIAL,
    "Falcon": SIZES | SPECIAL | {"num_kv_heads": 1},
    "GPTNeo": {
        "hidden_size": WIDTH, "num_heads": HEADS, "num_layers": 2, "vocab_size": VOCABULARY, "window_size": 5,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
    } | SPECIAL,
}  # fmt: skip


def own(name: str) -> transformers.PreTrainedModel:
    """A causal model that runs its own softmax."""
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**OWN[name])
    return spread(getattr(transformers, f"{name}ForCausalLM")(config))


def deberta() -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    about = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "intermediate_size": 31}
    return spread(transformers.DebertaV2Model(transformers.DebertaV2Config(**SIZES | about)))


def xlnet() -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    config = transformers.XLNetConfig(d_model=WIDTH, n_head=HEADS, n_layer=2, d_inner=31, vocab_size=VOCABULARY)
    return spread(transformers.XLNetModel(config))


def maps(session) -> list[torch.Tensor]:
    """A of each layer."""
    return [session.maps[layer.index].weights(torch.arange(LENGTH)) for layer in session.layers]


@pytest.mark.parametrize("name", [*OWN, "DebertaV2", "XLNet"])
def test_maps_are_the_models_own_weights(name):
    model, ids = {"DebertaV2": deberta, "XLNet": xlnet}.get(name, lambda: own(name))(), tokens(BATCH, LENGTH)
    keys = torch.ones(BATCH, LENGTH, dtype=torch.long)
    keys[0, 7:] = 0
    with torch.no_grad():
        plain = model(ids, attention_mask=keys)[0]
        with regard.watch(model, [Entropy()], keep=1e9) as session:
            watched = model(ids, attention_mask=keys)[0]
        model.config._attn_implementation = "eager"
        dense = model(ids, attention_mask=keys, output_attentions=True).attentions
    torch.testing.assert_close(watched, plain, rtol=0, atol=2e-5)
    assert len(session.layers) == len(dense) == 2
    for layer, found, wanted in zip(session.layers, maps(session), dense, strict=True):
        real = keys.bool()[:, None, :, None]
        torch.testing.assert_close(found * real, wanted * real, rtol=0, atol=2e-5)
        rows = torch.special.entr(wanted.double()).sum(3).transpose(1, 2)[keys.bool()]
        torch.testing.assert_close(session["entropy"][layer.index].value, rows.mean(0), rtol=0, atol=1e-5)
        assert layer.causal == (name in OWN)


@pytest.mark.parametrize("name", OWN)
def test_generated_tokens_are_the_rows_of_one_pass(name):
    model, ids = own(name), tokens(BATCH, LENGTH)
    with torch.no_grad(), regard.watch(model, [Entropy(), Distance()]) as session:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=-1
        )
    with torch.no_grad(), regard.watch(model, [Entropy(), Distance()]) as once:
        model(out[:, :-1], attention_mask=torch.ones_like(out[:, :-1]))
    for probe in ("entropy", "distance"):
        for layer, estimate in once[probe].items():
            torch.testing.assert_close(session[probe][layer].value, estimate.value, rtol=0, atol=1e-4)


class Mixer(nn.Module):
    """A module whose ``mix`` is given hidden states ``(b, n, c)``, and heads of queries, keys and values of them."""

    def __init__(self, mix) -> None:
        super().__init__()
        self.project, self.mix, self.codes = nn.Linear(WIDTH, 3 * WIDTH), mix, nn.Parameter(torch.randn(5, WIDTH))

    def forward(self, x):
        parts = self.project(x).chunk(3, -1)
        return self.mix(self, x, *(part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts))


class Toy(transformers.PreTrainedModel):
    """A model around a `Mixer`; ``base_model`` stays itself."""

    config_class = transformers.BertConfig

    def __init__(self, mix) -> None:
        super().__init__(transformers.BertConfig(**SIZES))
        self.embed, self.mixer = nn.Embedding(VOCABULARY, WIDTH), Mixer(mix)

    def forward(self, input_ids):
        return self.mixer(self.embed(input_ids))


def scores(q, k):
    return q @ k.mT / q.shape[-1] ** 0.5


def written_otherwise():
    """Attention in forms that models write it in."""
    return {
        "matmul": lambda self, x, q, k, v: scores(q, k).softmax(-1) @ v,
        "method": lambda self, x, q, k, v: torch.matmul(F.dropout(F.softmax(scores(q, k), -1), 0.1, False), v),
        "folded": lambda self, x, q, k, v: torch.bmm(
            torch.softmax(scores(q, k).flatten(0, 1), -1).to(v.dtype), v.flatten(0, 1)
        ),
        "einsum": lambda self, x, q, k, v: torch.einsum("bhij,bjhd->bihd", scores(q, k).softmax(3), v.transpose(1, 2)),
        "dots": lambda self, x, q, k, v: torch.einsum("...ij,...jd->...id", scores(q, k).softmax(3), v),
        "transposed": lambda self, x, q, k, v: v.mT @ scores(q, k).softmax(-1).transpose(2, 3),
        "fused": lambda self, x, q, k, v: F.scaled_dot_product_attention(q, k, v),
        "fused by mask": lambda self, x, q, k, v: F.scaled_dot_product_attention(q, k, v, scores(q, k) * 0),
    }


@pytest.mark.parametrize("form", written_otherwise())
def test_every_way_to_write_it_is_read(form):
    torch.manual_seed(5)
    model, ids = Toy(written_otherwise()[form]).eval(), tokens(BATCH, LENGTH)
    with torch.no_grad(), regard.watch(model, [Entropy()], keep=1e9) as session:
        model(ids)
    with torch.no_grad():
        q, k, _ = model.mixer.project(model.embed(ids)).chunk(3, -1)
        q, k = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (q, k))
        torch.testing.assert_close(maps(session)[0], scores(q, k).softmax(-1), rtol=0, atol=2e-5)
    assert [(layer.name, layer.heads, layer.causal) for layer in session.layers] == [("mixer", HEADS, False)]


def attending(then):
    """Attention, and then something else with a softmax in it."""

    def mix(self, x, q, k, v):
        out = (scores(q, k).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return out + then(self, x, q, k, v)

    return mix


NO_ATTENTION = {
    "codebook": lambda self, x, q, k, v: (x @ self.codes.T).softmax(-1) @ self.codes,
    "router": lambda self, x, q, k, v: x * F.linear(x, self.codes).softmax(-1).topk(2).values.sum(-1, keepdim=True),
    "classes": lambda self, x, q, k, v: 0 * F.linear(F.linear(x, self.codes).softmax(-1), self.codes.T),
}


@pytest.mark.parametrize("kind", NO_ATTENTION)
def test_what_is_no_attention_is_not_taken_for_it(kind):
    model = Toy(attending(NO_ATTENTION[kind])).eval()
    with torch.no_grad(), regard.watch(model) as session:
        model(tokens(BATCH, LENGTH))
    assert len(session.layers) == 1


def within_tokens(streams):
    return (scores(streams, streams.flip(2)).softmax(-1) @ streams).mean()


UNREADABLE = {
    "entry by entry": lambda self, x, q, k, v: (scores(q, k).softmax(-1)[..., None] * v[:, :, None]).sum(3).mean(),
    "over queries": lambda self, x, q, k, v: (scores(q, k).softmax(2) @ v).mean(),
    "over channels": lambda self, x, q, k, v: (q.softmax(-1) @ (k.mT @ v)).mean(),
    "by another softmax": lambda self, x, q, k, v: (scores(q, k).softmax(-1) @ scores(k, q).softmax(-1) @ v).mean(),
    "in two products": lambda self, x, q, k, v: (scores(q, k) @ (scores(k, q).softmax(-1) @ v)).mean(),
    "streams, fused": lambda self, x, q, k, v: F.scaled_dot_product_attention(*3 * [torch.stack([x, -x], 2)]).mean(),
    "streams of each token": lambda self, x, q, k, v: within_tokens(
        F.layer_norm(torch.stack([x, 2 * x, -x], 2), (WIDTH,))
    ),
    "in pieces": lambda self, x, q, k, v: torch.cat(
        [part @ v[:, :, :4] for part in F.pad(scores(q, k).softmax(-1), (0, 1)).chunk(3, 3)], 2
    ).mean(),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_softmax_that_weighs_otherwise_is_named(kind):
    model = Toy(attending(UNREADABLE[kind])).eval()
    named = "model: got Toy, of which mixer, a Mixer, mixes tokens in its own code"
    with pytest.raises(RuntimeError, match=named), regard.watch(model), torch.no_grad():
        model(tokens(BATCH, LENGTH))
    with regard.watch(model, layers=[0]) as session, torch.no_grad():
        model(tokens(BATCH, LENGTH))
    assert session.layers[0].name == "mixer"


def test_pytorchs_module_of_several_heads_is_read():
    torch.manual_seed(5)
    heads = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()

    class Pooling(Mixer):
        def __init__(self) -> None:
            super().__init__(lambda self, x, *_: self.attention(self.codes.expand(len(x), -1, -1), x, x)[0])
            self.attention = heads

    model = Toy(None).eval()
    model.mixer = Pooling()
    with torch.no_grad(), regard.watch(model, keep=1e9) as session:
        model(tokens(BATCH, LENGTH))
    with torch.no_grad():
        x = model.embed(tokens(BATCH, LENGTH))
        wanted = heads(model.mixer.codes.expand(BATCH, -1, -1), x, x, average_attn_weights=False)[1]
    assert [layer.name for layer in session.layers] == ["mixer.attention"]
    torch.testing.assert_close(session.maps[0].weights(torch.arange(5)), wanted, rtol=0, atol=2e-6)


def test_an_exception_in_the_middle_leaves_no_mode_behind():
    def mix(self, x, q, k, v):
        raise KeyError("inside")

    model = Toy(mix).eval()
    before = torch.overrides._get_current_function_mode_stack()
    with pytest.raises(KeyError, match="inside"), regard.watch(model):
        model(tokens(BATCH, LENGTH))
    assert torch.overrides._get_current_function_mode_stack() == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_distance_in_cross_attention_counts_the_queries():
    model, ids, target = spread(t5()), tokens(1, 7), tokens(1, 5, seed=1)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1)
    found = []
    for given in (ids, padded):
        with torch.no_grad(), regard.watch(model, [Distance()]) as session:
            model(given, attention_mask=(given != 0).long(), decoder_input_ids=target)
        found.append([session["distance"][layer.index].value for layer in session.layers if layer.cross])
    assert len(found[0]) == 2
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
