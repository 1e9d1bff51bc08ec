"""Recurrent layers of Transformers models: the attention that they imply, held against their own scans."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.qwen3_next import modeling_qwen3_next

import regard
from regard.hosts import scans
from regard.probes import Entropy, Received
from regard.probes.record import Record, record
from unit.hosts.models import RECURRENT, VOCABULARY, eager, recurrent, tokens
from unit.hosts.test_watch import CLOSE, Dense

CLASSES = {"Mamba": "mamba", "Mamba2": "mamba2", "Qwen3Next": "gated_deltanet"}


@pytest.fixture(autouse=True)
def without_triton(monkeypatch):
    """Transformers takes flash-linear-attention's kernels where that is installed, without a GPU too: not here."""
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        monkeypatch.setattr(modeling_qwen3_next, name, inspect.unwrap(getattr(modeling_qwen3_next, name)))


def seen(model, n: int, **inputs):
    """``(output, session)`` of a watched pass."""
    with regard.watch(model, [Dense(n)]) as session, torch.no_grad():
        output = model(**inputs)
    return output, session


@torch.no_grad()
def stepped(name: str, layer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(A, A v)`` of a layer of ``x (1, n, width)``: its recurrence token by token, on each unit value in turn."""
    float64 = {key: value.double() for key, value in layer.state_dict().items()}

    def through(part: str) -> torch.Tensor:
        return x.double() @ float64[f"{part}.weight"].T

    def convolved(y: torch.Tensor) -> torch.Tensor:
        taps, bias = float64["conv1d.weight"], float64.get("conv1d.bias")
        padded = torch.nn.functional.pad(y[0].T, (taps.shape[-1] - 1, 0))
        out = sum(padded[:, t : t + y.shape[1]] * taps[:, 0, t : t + 1] for t in range(taps.shape[-1]))
        return torch.nn.functional.silu(out if bias is None else out + bias[:, None]).T

    n, softplus = x.shape[1], torch.nn.functional.softplus
    if name == "Mamba":
        hidden = convolved(through("in_proj").chunk(2, -1)[0])
        low, b, c = (hidden @ float64["x_proj.weight"].T).split([layer.time_step_rank, 3, 3], -1)
        step = softplus(low @ float64["dt_proj.weight"].T + float64["dt_proj.bias"])  # (n, heads)
        stays = torch.exp(-step[..., None] * float64["A_log"].exp())  # (n, heads, d)
        q, k = (y[:, None].expand(n, hidden.shape[1], 3) for y in (c, b))
        v, write = hidden[..., None], step
    elif name == "Mamba2":
        _, mixed, low = through("in_proj").split([42, 72, 6], -1)
        hidden, b, c = convolved(mixed).split([42, 15, 15], -1)
        write = softplus(low[0] + float64["dt_bias"])
        stays = torch.exp(-write * float64["A_log"].exp())[..., None]
        q, k = (y.view(n, 3, 5).repeat_interleave(2, 1) for y in (c, b))
        v = hidden.view(n, 6, 7)
    else:
        q, k, v, _, b, a = layer.fix_query_key_value_ordering(through("in_proj_qkvz"), through("in_proj_ba"))
        mixed = convolved(torch.cat([y.flatten(2) for y in (q, k, v)], -1))
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in mixed[:, :20].view(n, 2, 2, 5).unbind(1))
        q, k = (y.repeat_interleave(2, 1) for y in (q / 5**0.5, k))
        v, write = mixed[:, 20:].view(n, 4, 7), b[0].sigmoid()
        stays = torch.exp(-float64["A_log"].exp() * softplus(a[0] + float64["dt_bias"]))[..., None]

    def run(values: torch.Tensor) -> torch.Tensor:
        state, out = torch.zeros(*k.shape[1:], values.shape[2], dtype=torch.float64), []
        for t in range(n):
            state = state * stays[t][..., None]
            new = values[t] - (k[t][..., None] * state).sum(1) if name == "Qwen3Next" else values[t]
            state = state + k[t][..., None] * (write[t][:, None] * new)[:, None]
            out.append((q[t][..., None] * state).sum(1))
        return torch.stack(out, 1)  # (heads, n, e)

    units = torch.eye(n, dtype=torch.float64)[:, None].expand(n, k.shape[1], n)
    return run(units), run(v)


@pytest.mark.parametrize("name", RECURRENT)
def test_the_rows_are_those_of_the_recurrence_step_by_step(name):
    model, ids = recurrent(name), tokens(1, 19)
    with torch.no_grad():
        plain = model(input_ids=ids)
    heard = {}

    def listen(module, args, kwargs):
        heard[module] = (args or [*kwargs.values()])[0]

    layers = [module for module in model.modules() if scans.scan_of(module) is not None]
    handles = [module.register_forward_pre_hook(listen, with_kwargs=True) for module in layers]
    output, session = seen(model, 19, input_ids=ids)
    for handle in handles:
        handle.remove()
    assert torch.equal(output.logits, plain.logits)
    names = {id(module): label for label, module in model.named_modules()}
    assert len(layers) == len(heard) >= 1
    for module, x in heard.items():
        layer = next(layer for layer in session.layers if layer.name == names[id(module)])
        want, _ = stepped(name, module, x)
        torch.testing.assert_close(session["dense"][layer.index][0].double(), want, atol=1e-5, rtol=1e-4)
        assert (layer.mechanism, layer.scaling, layer.causal) == (CLASSES[name], None, True)
    assert not any(module._forward_hooks for module in model.modules())


def test_softmax_layers_beside_recurrences_are_as_ever():
    model, ids = recurrent("Qwen3Next"), tokens(2, 23)
    output, session = seen(model, 23, input_ids=ids)
    expected = eager(model, input_ids=ids)
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(session["dense"][1], expected.attentions[-1], **CLOSE)
    assert [layer.mechanism for layer in session.layers] == ["gated_deltanet", "softmax"]


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(name, side):
    model, ids, mask = recurrent(name), tokens(2, 17), torch.ones(2, 17, dtype=torch.int64)
    mask[1, slice(0, 5) if side == "left" else slice(12, 17)] = 0
    with regard.watch(model, [Dense(17), Entropy(), Received()]) as session, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    _, alone = seen(model, 12, input_ids=ids[1:, mask[1].bool()])
    there = mask[1].bool()
    for layer, dense in session["dense"].items():
        part = dense[1][:, there][:, :, there]
        torch.testing.assert_close(part, alone["dense"][layer][0], atol=1e-5, rtol=1e-4)
        assert dense[1][:, there][:, :, ~there].abs().max() == 0


@pytest.mark.parametrize("name", RECURRENT)
def test_generate_is_followed(name):
    model, ids = recurrent(name), tokens(1, 11)
    with regard.watch(model, [Dense(16), received := Received()]) as session, torch.no_grad():
        out = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    _, whole = seen(model, 16, input_ids=out[:, :16])
    for layer, dense in whole["dense"].items():
        torch.testing.assert_close(session["dense"][layer][:, :, :15, :15], dense[:, :, :15, :15], atol=1e-5, rtol=1e-3)
    assert received.result()[0].value.shape[2] == 15


@pytest.mark.parametrize("name", ["Mamba2", "Qwen3Next"])
def test_chunked_prefill_sees_the_rows_of_one_prefill(name):
    model, ids = recurrent(name), tokens(1, 19)
    with regard.watch(model, [Dense(19)]) as session, torch.no_grad():
        cache = transformers.DynamicCache(config=model.config)
        kind = "past_key_values" if name == "Qwen3Next" else "cache_params"
        for part in (slice(0, 7), slice(7, 19)):
            model(input_ids=ids[:, part], use_cache=True, **{kind: cache})
    _, whole = seen(model, 19, input_ids=ids)
    for layer, dense in whole["dense"].items():
        torch.testing.assert_close(session["dense"][layer], dense, atol=1e-5, rtol=1e-3)


def test_heads_and_rows_are_chosen_and_half_precision_is_read():
    model, ids = recurrent("Mamba2"), tokens(1, 19)
    _, whole = seen(model, 19, input_ids=ids)
    with regard.watch(model, [Dense(19)], layers={1: [4, 2]}, rows=5) as session, torch.no_grad():
        model(input_ids=ids)
    found = session["dense"][1][0]
    rows = found.abs().sum((0, 2)) > 0
    assert (rows.sum(), set(session["dense"])) == (5, {1})
    torch.testing.assert_close(found[:, rows], whole["dense"][1][0, [4, 2]][:, rows], **CLOSE)
    _, half = seen(model.bfloat16(), 19, input_ids=ids)
    assert half["dense"].keys() == {0, 1}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_record_holds_shares_and_recomputes_them(name, tmp_path):
    model, ids = recurrent(name), tokens(1, 23)
    taken = record(model, None, ids, generate=3, keep=True)
    folder = taken.save(tmp_path / "seen")
    _, session = seen(model, taken.n, input_ids=torch.tensor([taken.tokens["ids"]]))
    dense = session["dense"][0][0]
    shares = dense.abs() / dense.abs().sum(-1, keepdim=True)
    assert taken.layers[0]["shares"]
    for of in (taken, Record.load(folder)):
        region = of.region(0, 3, slice(4, 21), slice(2, 19))
        torch.testing.assert_close(region, shares[3, 4:21, 2:19], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(taken.arrays["0/sink"], shares[:, :, :4].mean(1), atol=1e-5, rtol=1e-3)


def test_rows_that_do_not_give_the_scans_output_are_refused(monkeypatch):
    model, ids = recurrent("Mamba2"), tokens(1, 19)
    scan = modeling_mamba2.mamba2_chunk_scan

    def other(*args, **kwargs):
        found = scan(*args, **kwargs)
        return (found[0] * 1.001, found[1]) if isinstance(found, tuple) else found * 1.001

    monkeypatch.setattr(modeling_mamba2, "mamba2_chunk_scan", other)
    said = r"backbone.layers.0.mixer, whose Mamba2Mixer gave outputs 1e-03 off the rows of mamba2, want at most 0.0001"
    with regard.watch(model), pytest.raises(RuntimeError, match=said), torch.no_grad():
        model(input_ids=ids)


def test_states_that_the_watch_has_not_seen_are_refused():
    model, ids = recurrent("Mamba2"), tokens(1, 19)
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids[:, :7], cache_params=cache, use_cache=True)
        said = "past_key_values: got one that backbone.layers.0.mixer goes on with, begun outside of the watch"
        with regard.watch(model), pytest.raises(RuntimeError, match=said):
            model(input_ids=ids[:, 7:], cache_params=cache, use_cache=True)


def test_a_layer_that_drops_its_state_is_refused():
    """Transformers' Mamba begins its state anew at a second chunk of more than one token."""
    model, ids = recurrent("Mamba"), tokens(1, 19)
    cache, said = (
        transformers.DynamicCache(config=model.config),
        r"whose MambaMixer gave outputs .* off the rows of mamba",
    )
    with regard.watch(model), torch.no_grad():
        model(input_ids=ids[:, :7], cache_params=cache, use_cache=True)
        with pytest.raises(RuntimeError, match=said):
            model(input_ids=ids[:, 7:], cache_params=cache, use_cache=True)


JAMBA = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 3, "pad_token_id": 0,
    "num_attention_heads": 3, "num_key_value_heads": 3, "attn_layer_period": 3, "attn_layer_offset": 2,
    "num_experts": 1, "mamba_d_state": 4, "mamba_dt_rank": 3, "use_mamba_kernels": False,
}  # fmt: skip


def test_layers_that_cannot_be_read_are_named_and_can_be_left_out():
    model, ids = transformers.JambaForCausalLM(transformers.JambaConfig(**JAMBA)).eval(), tokens(1, 7)
    said = (
        r"model: got JambaForCausalLM, of which model.layers.0.mamba, a JambaMambaMixer, mixes tokens in its own code, "
        r"and 1 more do, want layers=range\(1\), those that can be read"
    )
    with regard.watch(model), pytest.raises(RuntimeError, match=said), torch.no_grad():
        model(input_ids=ids)
    with regard.watch(model, [Dense(7)], layers=range(1)) as session, torch.no_grad():
        model(input_ids=ids)
    torch.testing.assert_close(session["dense"][0], eager(model, input_ids=ids).attentions[0], **CLOSE)
    assert [layer.name for layer in session.layers] == ["model.layers.2.self_attn"]
