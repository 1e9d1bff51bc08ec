"""The TransNormer block: one function in three forms, as fast at any length."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from regard.core.layout import Layout
from regard.networks import Config
from regard.networks.lightning.transnormer import TransnormerLM
from regard.networks.lightning.transnormer_block import TransnormerBlock

CAUSAL = Layout(causal=True)


def norm(x):
    return x * x.shape[-1] ** 0.5 / (x.square().sum(-1, keepdim=True) + 1e-6 * x.shape[-1]).sqrt()


def by_definition(block: TransnormerBlock, x: torch.Tensor, form: str) -> torch.Tensor:
    """The paper's equations of the whole block, quadratic or one token at a time."""
    attention, heads, n = block.attention, block.attention.heads, x.shape[1]
    q, k, v, u = F.linear(norm(x), attention.qkvu.weight).chunk(4, -1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (F.silu(q), F.silu(k), v))
    apart = (torch.arange(n)[:, None] - torch.arange(n)).to(x.dtype)
    decay = torch.exp(-torch.tensor(attention.mechanism.slopes, dtype=x.dtype))
    angles = torch.zeros(heads, 1, q.shape[-1], dtype=x.dtype) if attention.angles is None else attention.angles
    if form == "quadratic":
        turned = torch.cos(apart[None, :, :, None] * angles[:, :, None])
        products = torch.einsum("bhic,bhjc,hijc->bhij", q, k, turned)
        out = (products * decay[:, None, None] ** apart.clamp(min=0)).tril() @ v
    else:
        places = torch.arange(n, dtype=x.dtype)[:, None] * angles
        q, k = (torch.cat([y * places.cos(), y * places.sin()], -1) for y in (q, k))
        state, outs = 0, []
        for t in range(n):
            state = decay[:, None, None] * state + k[:, :, t, :, None] * v[:, :, t, None]
            outs.append((q[:, :, t, :, None] * state).sum(-2))
        out = torch.stack(outs, 2)
    h = x + F.linear(norm(out.transpose(1, 2).flatten(2)) * u, attention.out.weight)
    network = block.network
    z = norm(h)
    return h + F.linear(F.linear(z, network.gate.weight) * F.linear(z, network.up.weight), network.down.weight)


@pytest.mark.parametrize("form", ["quadratic", "recurrent"])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_block_is_its_equations(form, layer):
    """Output and gradients of the block equal the quadratic and the recurrent form to 1e-9 in float64."""
    torch.manual_seed(0)
    block = TransnormerBlock(24, 3, 20, layer, 2).double()
    x = torch.randn(2, 131, 24, dtype=torch.float64, requires_grad=True)
    weights = [p for p in block.parameters() if p.requires_grad]
    found = []
    for out in (block(x, CAUSAL), by_definition(block, x, form)):
        found.append([out, *torch.autograd.grad((out * out.detach().sin()).sum(), [x, *weights])])
    worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True))
    assert worst < 1e-9


def test_the_language_model_continues_what_it_has_read():
    """Any split into chunks, padded too, gives the logits of one call; tokens generated are those of the full call."""
    model = TransnormerLM(Config(31, width=24, layers="lightning*2", heads=3), seed=0).double().eval()
    ids = torch.randint(31, (2, 67), generator=torch.Generator().manual_seed(1))
    whole, state, parts = model(ids), model.start(2), []
    for part in ids.split([1, 40, 26], dim=1):
        out, state = model.extend(part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-9, rtol=1e-9)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ids], 1)
    keys = torch.arange(70).expand(2, -1) >= 3
    torch.testing.assert_close(model(padded, keys)[:, 3:], whole, atol=1e-9, rtol=1e-9)
    out, _ = model.extend(padded, model.start(2), keys)
    torch.testing.assert_close(out[:, 3:], whole, atol=1e-9, rtol=1e-9)
    more = model.generate(ids, 3)
    again = ids
    for _ in range(3):
        again = torch.cat([again, model(again)[:, -1:].argmax(-1)], 1)
    assert torch.equal(more, again[:, 67:])


def test_layers_forget_slower_from_below_and_bad_sizes_are_refused():
    """Slopes shrink by 1 − l / (L − 1) + 1e-5; only the first layer turns; what does not fit is refused."""
    blocks = [TransnormerBlock(24, 3, 20, layer, 4) for layer in range(4)]
    slopes = torch.tensor([block.attention.mechanism.slopes for block in blocks])
    torch.testing.assert_close(
        slopes / slopes[:1], torch.tensor([[1.0], [2 / 3], [1 / 3], [0.0]]).expand(4, 3), rtol=0, atol=2e-5
    )
    assert [block.attention.angles is not None for block in blocks] == [True, False, False, False]
    with pytest.raises(ValueError, match="layer: got 4"):
        TransnormerBlock(24, 3, 20, 4, 4)
    with pytest.raises(ValueError, match="width: got 24, want a multiple of the 5 heads"):
        TransnormerBlock(24, 5, 20)
    with pytest.raises(ValueError, match="layers: got 'softmax\\*2'"):
        TransnormerLM(Config(31, width=24, layers="softmax*2", heads=3))
