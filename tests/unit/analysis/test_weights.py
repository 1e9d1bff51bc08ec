"""The weights that analyses read are those that a model computes with."""

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from regard.analysis.weights import gain_of, unembedding
from unit.hosts.models import causal, tokens

NORMS = {
    "RMS": (LlamaRMSNorm, lambda norm: norm.weight),
    "one more than the weight": (Gemma3RMSNorm, lambda norm: 1 + norm.weight),
    "layer": (nn.LayerNorm, lambda norm: norm.weight),
    "nothing learned": (lambda width: nn.LayerNorm(width, elementwise_affine=False), lambda norm: torch.ones(())),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("width", [24, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gain_of_a_norm_is_what_it_multiplies_with(name, width, dtype):
    made, known = NORMS[name]
    torch.manual_seed(0)
    norm = made(width).to(dtype)
    for parameter in norm.parameters():
        parameter.data.copy_(torch.randn(width))
    close = 1e-4 if dtype == torch.float32 else 3e-2
    found = gain_of(norm, width)
    torch.testing.assert_close(found.float(), known(norm).detach().float().expand(width), atol=close, rtol=close)


@pytest.mark.parametrize("name", ["Llama", "Gemma3Text"])
@torch.no_grad()
def test_logits_are_the_unembedding_of_the_normalised_state(name):
    model = causal(name)
    model.model.norm.weight.copy_(torch.rand_like(model.model.norm.weight))
    kept = {}
    model.model.norm.register_forward_hook(lambda module, given, out: kept.update(state=given[0]))
    logits = model(tokens(2, 9)).logits
    state = kept["state"] / (kept["state"].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(state @ unembedding(model).T, logits, atol=1e-4, rtol=1e-3)
