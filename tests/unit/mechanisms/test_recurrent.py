"""Mechanisms whose past is a matrix: their forms are one, and their memories do what the papers say."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

import regard
from regard.claims.recurrent import CAUSAL, SIGNALS, D, E, draw, made, recurrence


@pytest.mark.parametrize("kind", SIGNALS)
def test_the_chunked_form_the_dense_form_and_the_papers_recurrence_are_one(kind):
    """The chunked form, the implied matrix and the paper's recurrence agree to 1e-9, gradients of q, k and v too."""
    q, k, v, s = draw()
    mechanism, leaves, found = made(kind), [x.requires_grad_() for x in (q, k, v)], []
    given = {name: s[source] for name, source in SIGNALS[kind].items()}
    for out in (
        mechanism(q, k, v, CAUSAL, **given),
        mechanism.weights(q, k, CAUSAL, **given) @ v,
        recurrence(kind, q, k, v, s, mechanism),
    ):
        weighting = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
        found.append([out, *torch.autograd.grad((out * weighting).sum(), leaves, retain_graph=True)])
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-7)


def test_transformers_mamba_is_this_scan():
    """The scan inside of Transformers' Mamba mixer, with its own projections around it, is this mechanism."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    config = MambaConfig(hidden_size=12, state_size=5, num_hidden_layers=1, conv_kernel=3, expand=2, time_step_rank=4)
    mixer, x = MambaMixer(config, 0).double().eval(), torch.randn(2, 33, 12, dtype=torch.float64)
    with torch.no_grad():
        hidden, gate = mixer.in_proj(x).mT.chunk(2, dim=1)
        hidden = torch.nn.functional.silu(mixer.conv1d(hidden)[..., :33])
        step, b, c = mixer.x_proj(hidden.mT).split([4, 5, 5], dim=-1)
        step = torch.nn.functional.softplus(mixer.dt_proj(step)).mT
        scan = regard.build("mamba", heads=24, head_dim=5).double()
        scan.log_rate.copy_(mixer.A_log)
        q, k = (part[:, None].expand(-1, 24, -1, -1) for part in (c, b))
        out = scan(q, k, hidden[..., None], CAUSAL, step=step)[..., 0] + hidden * mixer.D[:, None]
        got = mixer.out_proj((out * torch.nn.functional.silu(gate)).mT)
        torch.testing.assert_close(got, mixer(x), atol=1e-9, rtol=1e-7)


def test_the_delta_rule_replaces_what_linear_attention_adds_up():
    """A key written three times returns its last value under the delta rule, the sum of all under linear attention."""
    torch.manual_seed(0)
    keys = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0][:3]
    k = keys[[0, 1, 0, 2, 0]][None, None]
    v = torch.randn(1, 1, 5, E, dtype=torch.float64)
    q, beta = keys[0].expand(1, 1, 5, D) * D**0.5, torch.ones(1, 1, 5, dtype=torch.float64)
    last = regard.build("deltanet")(q, k, v, CAUSAL, beta=beta)[0, 0, -1]
    summed = regard.build("lightning", slopes=(0.0,))(q * D**-0.5, k, v, CAUSAL)[0, 0, -1]
    torch.testing.assert_close(last, v[0, 0, 4], atol=1e-9, rtol=0)
    torch.testing.assert_close(summed, v[0, 0, [0, 2, 4]].sum(0), atol=1e-9, rtol=0)


def test_the_gate_forgets_what_the_delta_rule_keeps():
    """One strong decay erases 16 pairs at once, which the delta rule alone still returns."""
    q, k, v, _ = draw(17, heads=1)
    decay, beta = torch.zeros(1, 1, 17, dtype=torch.float64), torch.ones(1, 1, 17, dtype=torch.float64)
    decay[..., 16], beta[..., 16] = -50, 0
    gated = regard.build("gated_deltanet")(q, k, v, CAUSAL, log_decay=decay, beta=beta)[0, 0, -1]
    kept = regard.build("deltanet")(q, k, v, CAUSAL, beta=beta)[0, 0, -1]
    assert gated.abs().max() < 1e-9 < 1e-2 < kept.abs().max()


def test_without_decay_the_gated_delta_rule_is_the_delta_rule():
    """With a decay of one the gated delta rule is the delta rule, to 1e-12."""
    q, k, v, s = draw()
    got = regard.build("gated_deltanet")(q, k, v, CAUSAL, log_decay=torch.zeros_like(s["beta"]), beta=s["beta"])
    torch.testing.assert_close(got, regard.build("deltanet")(q, k, v, CAUSAL, beta=s["beta"]), atol=1e-12, rtol=1e-12)


def test_channels_that_decay_alike_are_the_gated_delta_rule_and_others_forget_apart():
    """Kimi delta attention: with one decay for all channels the gated delta rule; a token may forget half of them."""
    q, k, v, s = draw()
    alike = s["log_decay"][..., None].expand_as(k)
    got = regard.build("kimi_delta")(q, k, v, CAUSAL, log_decay=alike, beta=s["beta"])
    want = regard.build("gated_deltanet")(q, k, v, CAUSAL, log_decay=s["log_decay"], beta=s["beta"])
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)

    k, v = torch.eye(D, dtype=torch.float64)[None, None], torch.randn(1, 1, D, E, dtype=torch.float64)
    k, v = torch.cat([k, 0 * k], dim=2), torch.cat([v, 0 * v], dim=2)
    decay, beta = torch.zeros(1, 1, 2 * D, D, dtype=torch.float64), torch.ones(1, 1, 2 * D, dtype=torch.float64)
    decay[:, :, D, : D // 2] = -50
    out = regard.build("kimi_delta")(k.roll(D, 2) * D**0.5, k, v, CAUSAL, log_decay=decay, beta=beta)[:, :, D:]
    assert out[:, :, : D // 2].abs().max() < 1e-9
    torch.testing.assert_close(out[:, :, D // 2 :], v[:, :, D // 2 : D], atol=1e-9, rtol=0)


def test_negative_eigenvalues_turn_round_what_a_key_recalls():
    """With a strength of two, a key written again with nothing returns its value's negative."""
    v = torch.randn(1, 1, 2, E, dtype=torch.float64)
    q = k = torch.eye(1, D, dtype=torch.float64).expand(1, 1, 2, D)
    v[:, :, 1], beta = 0, torch.tensor([[[0.5, 1.0]]], dtype=torch.float64)
    mechanism, decay = regard.build("gated_deltanet", negative=True), torch.zeros(1, 1, 2, dtype=torch.float64)
    out = mechanism(q * D**0.5, k, v, CAUSAL, log_decay=decay, beta=beta)
    torch.testing.assert_close(out[:, :, 1], -v[:, :, 0], atol=1e-9, rtol=0)


def test_strong_channel_decays_are_safe():
    """Gated linear attention in float32 at log decays of −30 a token, where exp of the negated sums overflows."""
    q, k, v, s = draw(331)
    strong = s["channels"] * 30 / s["channels"].abs().mean()
    assert torch.isinf((-strong).float().cumsum(2).exp()).any()
    wanted = regard.build("gla")(q, k, v, CAUSAL, log_decay=strong)
    got = regard.build("gla")(*(x.float() for x in (q, k, v)), CAUSAL, log_decay=strong.float())
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    assert error < 1e-4


def test_capacity_falls_when_pairs_exceed_the_state_and_less_with_the_delta_rule():
    """Random unit keys: read-out error grows with pairs over d; below d the delta rule is the better store."""
    d, generator = 32, torch.Generator().manual_seed(1)
    errors: dict[str, list[float]] = {"linear": [], "deltanet": []}
    counts = (4, 8, 16, 32, 64)
    for pairs in counts:
        k = normalize(torch.randn(50, 1, pairs, d, generator=generator), dim=-1)
        v = torch.randn(50, 1, pairs, 8, generator=generator)
        beta, n = torch.ones(50, 1, 2 * pairs), 2 * pairs
        beta[:, :, pairs:] = 0
        keys, values = torch.cat([k, torch.zeros_like(k)], 2), torch.cat([v, torch.zeros_like(v)], 2)
        queries = torch.cat([torch.zeros_like(k), k], 2)
        plain = regard.build("lightning", slopes=(0.0,))(queries, keys, values, CAUSAL)
        delta = regard.build("deltanet")(queries * d**0.5, keys, values, CAUSAL, beta=beta)
        for name, out in (("linear", plain), ("deltanet", delta)):
            errors[name].append(((out[:, :, pairs:n] - v).square().sum() / v.square().sum()).item())
    assert errors["linear"] == sorted(errors["linear"])
    assert errors["deltanet"] == sorted(errors["deltanet"])
    assert all(errors["deltanet"][i] < errors["linear"][i] for i in range(4))


def test_rwkv7_with_the_write_key_removed_is_the_gated_delta_rule():
    """RWKV-7: with κ = k, one decay α for all channels and rates α β, it is the gated delta rule of values v / α."""
    q, k, v, s = draw()
    kept = s["log_decay"].clamp(min=-0.6)
    rate = (kept.exp() * s["beta"])[..., None].expand_as(k)
    signals = {"log_decay": kept[..., None].expand_as(k), "removed": 3 * k, "rate": rate}
    got = made("rwkv7")(q * D**-0.5, k, v / kept.exp()[..., None], CAUSAL, **signals)
    want = made("gated_deltanet")(q, k, v, CAUSAL, log_decay=kept, beta=s["beta"])
    torch.testing.assert_close(got, want, atol=1e-9, rtol=0)
