"""Recurrent layers of Transformers models: the attention that they imply, held against their own scans."""

from __future__ import annotations

import functools
import gc
import inspect

import pytest
import torch
import transformers
from transformers.models.mamba2 import modeling_mamba2

import regard
from regard.hosts import recurrent_layers as scans
from regard.probes import Entropy, Received
from regard.records.record import Record, record
from unit.hosts.models import VOCABULARY, eager, tokens
from unit.hosts.recurrent import FORGETFUL, LAYERS, RECURRENT, module_of, recurrent, scan_functions
from unit.hosts.test_watch import CLOSE, Dense

CLASSES = {"Mamba": "mamba", "Mamba2": "mamba2", "Qwen3Next": "gated_deltanet"}
ROWS = {"atol": 1e-5, "rtol": 1e-3}


@pytest.fixture(autouse=True)
def without_triton(monkeypatch):
    """Transformers takes flash-linear-attention's kernels where that is installed, without a GPU too: not here."""
    for name in RECURRENT:
        for label, function in scan_functions(name).items():
            monkeypatch.setattr(module_of(name), label, function)


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


@pytest.mark.parametrize("name", CLASSES)
def test_the_rows_are_those_of_the_recurrence_step_by_step(name):
    model, ids = recurrent(name), tokens(1, 19)
    with torch.no_grad():
        plain = model(input_ids=ids)
    heard = {}

    def listen(module, args, kwargs):
        heard[module] = (args or [*kwargs.values()])[0]

    layers = [module for module in model.modules() if scans.recurrent_layer_of(module) is not None]
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


def rows_of(name: str, model, ids: torch.Tensor, monkeypatch) -> list[torch.Tensor]:
    """A of each recurrent layer: the layer's own scan, run again on each unit value."""
    found, n = [], ids.shape[1]
    if name == "MiniMax":
        layer = model.model.layers[1].self_attn

        def decayed(module, args, output):
            q, k, _ = layer.act_fn(output).unflatten(-1, (-1, 3, layer.head_dim)).transpose(1, 2).unbind(3)
            apart = torch.arange(n)[:, None] - torch.arange(n)
            found.append((q @ k.mT * torch.exp(-layer.slope_rate * apart)).tril())

        handle = layer.qkv_proj.register_forward_hook(decayed)
        with torch.no_grad():
            model(input_ids=ids)
        handle.remove()
        return found
    ((label, scan),) = [item for item in scan_functions(name).items() if "recurrent" not in item[0]]

    def units(x, *others, **given):
        if "selective" in label:  # (batch, channels, tokens), one value a head
            plain = {**given, "D": None, "z": None, "return_last_state": False}
            ones = torch.eye(n).view(n, 1, 1, n).expand(n, *x.shape)
            found.append(torch.stack([scan(one, *others, **plain) for one in ones], dim=-1))
            return scan(x, *others, **given)
        mixer = "chunk_scan" in label
        value = x if mixer else others[1]
        eye = torch.eye(n)[None, :, None].expand(*value.shape[:3], n)
        if mixer:
            out = scan(eye, *others, **{**given, "D": None, "return_final_states": False})
        else:
            out, _ = scan(x, others[0], eye, **given)
        found.append(out.transpose(1, 2))
        return scan(x, *others, **given)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(module_of(name), label, units)
        model(input_ids=ids)
    per = len(found) // sum(layer != "softmax" for layer in LAYERS[name])
    return [torch.cat(found[i : i + per], dim=1) for i in range(0, len(found), per)]


@pytest.mark.parametrize("name", RECURRENT)
def test_every_layer_is_read_and_its_rows_are_what_its_own_scan_makes_of_unit_values(name, monkeypatch):
    model, ids = recurrent(name), tokens(2, 13)
    with torch.no_grad():
        plain = model(input_ids=ids)
    output, session = seen(model, 13, input_ids=ids)
    assert torch.equal(output.logits, plain.logits)
    assert [layer.mechanism for layer in session.layers] == LAYERS[name]
    want = iter(rows_of(name, model, ids, monkeypatch))
    for layer in session.layers:
        if layer.mechanism != "softmax":
            rows = next(want)
            torch.testing.assert_close(session["dense"][layer.index], rows, atol=1e-5 * float(rows.max()), rtol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation == recurrent(name).config._attn_implementation


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
def test_generate_is_followed_with_padding_before_the_text(name):
    model, ids, mask = recurrent(name), tokens(2, 11), torch.ones(2, 11, dtype=torch.int64)
    mask[1, :4] = 0
    given = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, **given)
    with regard.watch(model, [Dense(15), Entropy(), received := Received()]) as session, torch.no_grad():
        out = model.generate(ids, **given)
    assert torch.equal(out, plain)
    whole_mask = torch.cat([mask, mask.new_ones(2, 4)], dim=1)
    with regard.watch(model, [Dense(15), Entropy()]) as whole, torch.no_grad():
        model(input_ids=out[:, :15], attention_mask=whole_mask)
    for layer, dense in whole["dense"].items():
        torch.testing.assert_close(session["dense"][layer], dense, atol=1e-5 * float(dense.max()), rtol=1e-3)
        torch.testing.assert_close(session["entropy"][layer].value, whole["entropy"][layer].value, **ROWS)
    assert received.result()[0].value.shape[2] == 15


def ahead(model, ids: torch.Tensor, *parts: slice):
    """The text in parts, one after the other, with one cache."""
    cache = None
    for part in parts:
        cache = forth(model, ids, part, cache)


def forth(model, ids: torch.Tensor, part: slice, cache=None):
    """The cache after some more of a text's tokens."""
    names = inspect.signature(model.forward).parameters
    name = next(name for name in ("cache", "past_key_values", "cache_params") if name in names)
    given = {} if cache is None else {name: cache}
    if "position_ids" in names:  # without them some models count from zero in every call
        given["position_ids"] = torch.arange(part.start, part.stop)[None]
    with torch.no_grad():
        output = model(input_ids=ids[:, part], use_cache=True, **given)
    return next(value for value in output.values() if isinstance(value, transformers.Cache))


@pytest.mark.parametrize("name", [name for name in RECURRENT if name not in FORGETFUL])
def test_chunked_prefill_sees_the_rows_of_one_prefill(name):
    model, ids = recurrent(name), tokens(1, 19)
    with regard.watch(model, [Dense(19)]) as session:
        ahead(model, ids, slice(0, 7), slice(7, 8), slice(8, 19))
    _, whole = seen(model, 19, input_ids=ids)
    for layer, dense in whole["dense"].items():
        torch.testing.assert_close(session["dense"][layer], dense, atol=1e-5 * float(dense.max()), rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in RECURRENT if name in FORGETFUL])
def test_a_layer_that_drops_its_state_is_refused(name):
    """Transformers' Mamba begins its state anew at a second chunk of more than one token."""
    model, ids = recurrent(name), tokens(1, 19)
    with regard.watch(model), pytest.raises(RuntimeError, match=r"Mixer gave outputs .* off the rows of mamba"):
        ahead(model, ids, slice(0, 7), slice(7, 19))


@pytest.mark.parametrize("name", ["Mamba", "Bamba", "Qwen3Next", "MiniMax"])
def test_two_conversations_in_turn_are_apart(name):
    model, one, other = recurrent(name), tokens(1, 11), tokens(1, 13, seed=1)
    with regard.watch(model, [Dense(13)]) as session:
        first, second = forth(model, one, slice(0, 7)), forth(model, other, slice(0, 7))
        for t in range(7, 11):
            first = forth(model, one, slice(t, t + 1), first)
            second = forth(model, other, slice(t, t + 1), second)
        session.probes[:] = [Dense(13)]
        for t in (11, 12):
            second = forth(model, other, slice(t, t + 1), second)
    _, whole = seen(model, 13, input_ids=other)
    for layer, dense in whole["dense"].items():
        last = session["dense"][layer][:, :, 11:]
        torch.testing.assert_close(last, dense[:, :, 11:], atol=1e-5 * float(dense.max()), rtol=1e-3)


@pytest.mark.parametrize("name", ["Mamba", "Bamba", "Qwen3Next", "KimiLinear"])
def test_sequences_that_a_search_exchanges_are_followed(name):
    model, ids, order = recurrent(name), tokens(3, 13), torch.tensor([2, 0, 0])
    with regard.watch(model, [Dense(13)]) as session:
        cache = forth(model, ids, slice(0, 9))
        cache.reorder_cache(order)
        session.probes[:] = [Dense(13)]
        for t in range(9, 13):
            cache = forth(model, ids[order], slice(t, t + 1), cache)
    _, whole = seen(model, 13, input_ids=ids[order])
    for layer, dense in whole["dense"].items():
        last = session["dense"][layer][:, :, 9:]
        torch.testing.assert_close(last, dense[:, :, 9:], atol=1e-5 * float(dense.max()), rtol=1e-3)
    with regard.watch(model):
        cache = forth(model, ids, slice(0, 9))
        cache.reorder_cache(order)
        for layer in cache.layers:
            for state in getattr(layer, "recurrent_states", {}).values():
                state.mul_(1.5)
        with pytest.raises(RuntimeError, match=r"past_key_values: got one whose state of .* is not what this watch"):
            forth(model, ids, slice(9, 10), cache)


@pytest.mark.parametrize("name", ["FalconMamba", "Zamba2", "Qwen3_5Text"])
def test_beam_search_is_followed(name):
    model, ids = recurrent(name), tokens(2, 11)
    given = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, **given)
    with regard.watch(model, [Entropy()]) as session:
        assert torch.equal(model.generate(ids, **given), plain)
    assert session["entropy"].keys() == set(range(len(LAYERS[name])))


def test_what_was_remembered_of_a_text_goes_with_its_cache():
    model, ids = recurrent("Qwen3Next"), tokens(1, 11)
    with regard.watch(model) as session:
        cache = forth(model, ids, slice(0, 7))
        assert len(session.follower.memories) == 1
        del cache
        gc.collect()
        assert len(session.follower.memories) == 0


@pytest.mark.parametrize("name", [name for name in RECURRENT if "mamba2" in LAYERS[name]])
def test_steps_are_limited_where_the_layer_limits_them(name):
    """A pass over several tokens limits the steps; over a single one that goes on from a state, it does not."""
    model, ids = recurrent(name), tokens(1, 13)
    layers = [module for module in model.modules() if hasattr(module, "dt_bias")]
    with regard.watch(model, keep=1e9) as free, torch.no_grad():
        model(input_ids=ids)
    steps = free.maps[0].signals["step"]
    least, most = steps.quantile(0.3).item(), steps.quantile(0.7).item()
    for layer in layers:
        layer.time_step_limit = (least, most)
    with regard.watch(model, keep=1e9) as limited, torch.no_grad():
        model(input_ids=ids)
    torch.testing.assert_close(limited.maps[0].signals["step"], steps.clamp(least, most), **CLOSE)
    with regard.watch(model, keep=1e9) as decoded:
        ahead(model, ids, slice(0, 12), slice(12, 13))
    want = torch.cat([steps[..., :12].clamp(least, most), steps[..., 12:]], dim=-1)
    torch.testing.assert_close(decoded.maps[0].signals["step"], want, **CLOSE)


def test_falcon_h1_is_read_with_a_norm_behind_the_scan_and_without():
    for norm in (True, False):
        model, ids = recurrent("FalconH1", mamba_rms_norm=norm), tokens(1, 13)
        _, session = seen(model, 13, input_ids=ids)
        assert [layer.mechanism for layer in session.layers] == LAYERS["FalconH1"]


def test_layers_are_known_by_what_they_are_made_of():
    model, ids = recurrent("Mamba2"), tokens(1, 13)

    class Mine(type(model.backbone.layers[1].mixer)):
        pass

    _, before = seen(model, 13, input_ids=ids)
    model.backbone.layers[1].mixer.__class__ = Mine
    _, after = seen(model, 13, input_ids=ids)
    assert [layer.mechanism for layer in after.layers] == ["mamba2", "mamba2"]
    torch.testing.assert_close(after["dense"][1], before["dense"][1], **CLOSE)

    class Louder(Mine):
        def forward(self, hidden_states, *args, **kwargs):
            return super().forward(2 * hidden_states, *args, **kwargs)

    model.backbone.layers[1].mixer.__class__ = Louder  # another input to the same scan: read all the same
    seen(model, 13, input_ids=ids)
    model.backbone.layers[1].mixer.__class__ = Mine
    model.backbone.layers[1].mixer.norm.register_forward_pre_hook(lambda module, args: (1.01 * args[0], *args[1:]))
    with regard.watch(model), pytest.raises(RuntimeError, match=r"whose Mine gave outputs .* off the rows"):
        model(input_ids=ids)


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


@pytest.mark.parametrize("name", CLASSES)
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


@pytest.mark.parametrize("name", ["Mamba", "Bamba", "Qwen3_5Text"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_what_checkpointing_computes_again_is_not_counted_again(name, reentrant):
    model, ids = recurrent(name), tokens(1, 13)
    _, whole = seen(model, 13, input_ids=ids)
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    counted = []
    with regard.watch(model, [Dense(13)], seen=counted.append) as session:
        model(input_ids=ids, labels=ids).loss.backward()
    assert counted == list(range(len(LAYERS[name])))
    assert [layer.mechanism for layer in session.layers] == LAYERS[name]
    for layer, dense in whole["dense"].items():
        torch.testing.assert_close(session["dense"][layer], dense, atol=1e-5 * float(dense.max()), rtol=1e-3)


@pytest.mark.parametrize("package", ["fla", "mamba_ssm"])
def test_gpu_kernels_on_a_cpu_are_named(package, monkeypatch):
    name = {"fla": "Qwen3_5Text", "mamba_ssm": "Bamba"}[package]
    label, scan = next(iter(scan_functions(name).items()))

    def installed(*args, **kwargs):
        raise RuntimeError("0 active drivers ([]). There should only be one.")

    def found(implementation):
        return functools.wraps(scan)(lambda *args, **kwargs: implementation(*args, **kwargs))

    installed.__module__ = f"{package}.ops.of_some_kind"
    monkeypatch.setattr(module_of(name), label, found(installed))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    model, ids = recurrent(name), tokens(1, 7)
    said = rf"layers.0.*runs its scan by {package.split('_')[0]}-.* GPU kernels, on a CPU, want it on a GPU, or an"
    with regard.watch(model), pytest.raises(RuntimeError, match=said):
        model(input_ids=ids)


def test_a_layer_of_the_same_parts_in_other_shapes_is_named():
    model, ids = recurrent("Qwen3_5Text"), tokens(1, 7)
    layer = model.model.layers[0].linear_attn
    layer.register_forward_hook(lambda *_: setattr(layer, "num_k_heads", 3))  # of ten channels; the layer is done
    said = r"model.layers.0.linear_attn, whose Qwen3_5GatedDeltaNet has the parts of a layer that can be read, but not"
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


def test_layers_that_cannot_be_read_are_named_and_can_be_left_out():
    sizes = {"hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = transformers.RecurrentGemmaConfig(**sizes, lru_width=24, vocab_size=VOCABULARY)
    model, ids = transformers.RecurrentGemmaForCausalLM(config).eval(), tokens(1, 7)
    said = (
        r"got RecurrentGemmaForCausalLM, of which model.layers.0.temporal_block, a RecurrentGemmaRecurrentBlock, "
        r"mixes tokens in its own code, and 1 more do, want layers=range\(1\), those that can be read"
    )
    with regard.watch(model), pytest.raises(RuntimeError, match=said), torch.no_grad():
        model(input_ids=ids)
    with regard.watch(model, [Dense(7)], layers=range(1)) as session, torch.no_grad():
        model(input_ids=ids)
    torch.testing.assert_close(session["dense"][0], eager(model, input_ids=ids).attentions[0], **CLOSE)
    assert [layer.name for layer in session.layers] == ["model.layers.2.temporal_block"]


@pytest.mark.parametrize("family", ["Lfm2", "Lfm3"])
def test_short_convolutions_are_no_layers_that_would_have_to_be_read(family):
    sizes = {"hidden_size": 24, "intermediate_size": 31, "num_attention_heads": 3, "num_key_value_heads": 3}
    kinds, ends = ["conv", "full_attention", "conv"], {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made, config = (getattr(transformers, f"{family}{part}", None) for part in ("ForCausalLM", "Config"))
    if made is None or config is None:
        pytest.skip(f"this release of Transformers has no {family}")
    model = made(config(**sizes, layer_types=kinds, num_hidden_layers=3, vocab_size=VOCABULARY, **ends)).eval()
    ids = tokens(1, 7)
    with regard.watch(model, [Dense(7)]) as session, torch.no_grad():
        model(input_ids=ids)
    assert [layer.name for layer in session.layers] == ["model.layers.1.self_attn"]
    own = [part for part in eager(model, input_ids=ids).attentions if part is not None]
    torch.testing.assert_close(session["dense"][0], own[-1], **CLOSE)
