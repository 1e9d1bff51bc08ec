"""Attention over depth: its limit, decoding, and what a small character model does with it."""

import pytest
import torch
import torch.nn.functional as F

from regard.networks.layerwise_shortcuts.depth_attention import DepthAttention
from regard.networks.layerwise_shortcuts.lm import ShortcutLM
from regard.networks.lm import LM, Config

SMALL = Config(29, 24, "softmax*3", heads=2)


def test_all_weight_on_the_last_layer_is_the_model_without():
    """Forcing weight 1 on the last layer gives the baseline's logits (1e-6); the learned weights give others."""
    model, ids = ShortcutLM(SMALL, 0), torch.randint(29, (2, 13))
    base = LM(SMALL, 0)
    hidden = model.hidden(ids)
    forced = F.one_hot(torch.tensor(2), 3).float().expand(2, 13, 2, 3)
    apart = (model.read(model.shortcut.mix(hidden, forced)) - base(ids)).abs().max().item()
    assert apart < 1e-6
    assert (model(ids) - base(ids)).abs().max() > 1e-2


@torch.no_grad()
def test_weights_over_depth_by_hand():
    """Softmax over the layers of one token, head by head, and the sum that it weighs."""
    torch.manual_seed(0)
    depth = DepthAttention(12, 3, 4).double()
    hidden = list(torch.randn(4, 2, 5, 12, dtype=torch.float64))
    unit = [x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in hidden]
    out = hidden[-1].clone()
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        q = unit[-1] @ depth.q.weight[part].T
        scores = torch.stack([(q * (x @ k[part].T)).sum(-1) / 2 for x, k in zip(unit, depth.k, strict=True)], -1)
        a = scores.softmax(-1)
        torch.testing.assert_close(depth.weights(hidden)[:, :, h], a, atol=1e-12, rtol=0)
        mixed = sum(a[..., i, None] * (unit[i] @ depth.v[i, part].T) for i in range(3))
        out += mixed @ depth.out.weight[:, part].T
    torch.testing.assert_close(depth(hidden), out, atol=1e-12, rtol=0)


@torch.no_grad()
def test_decoding_and_saving_give_the_same(tmp_path):
    """Token by token, with padding, equals one call; a saved model is the model; FLOPs are those that are counted."""
    from torch.utils.flop_counter import FlopCounterMode

    model, ids = ShortcutLM(SMALL, 0).double(), torch.randint(29, (2, 13))
    keys = torch.ones(2, 13, dtype=torch.bool)
    keys[1, :4] = False
    state, parts = model.start(2), []
    for part in torch.arange(13).split([5, 1, 1, 6]):
        out, state = model.extend(ids[:, part], state, keys[:, part])
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1)[keys], model(ids, keys)[keys], atol=1e-10, rtol=0)
    model.float().save_pretrained(tmp_path)
    torch.testing.assert_close(ShortcutLM.from_pretrained(tmp_path)(ids), model(ids))
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(29, (2, 64)))
    assert model.flops(64, 2) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="heads"):
        DepthAttention(10, 4, 3)
    with pytest.raises(ValueError, match="depth"):
        ShortcutLM(Config(29, 24, "softmax", heads=2))
    with pytest.raises(ValueError, match="hidden"):
        DepthAttention(12, 4, 3)([torch.zeros(1, 2, 12)] * 2)
