"""Writes latents.json: what published latents make of waves, with waves as weights.

    python tests/reference/latents.py FOLDER        (PyTorch 2.13, Transformers 5.24, slot-attention 1.5.2, einops)

FOLDER holds ``ep.py`` (poolings/ep.py of billpsomas/efficient-probing), ``slot_attention.py`` of
lucidrains/slot-attention and ``flare.py`` (pdebench/models/flare.py of vpuri3/FLARE.py). Biases of q, k and v in
slot-attention, which its paper has not, are zero. ``tempr_h.py`` is network/tempr_h.py of
alexandrosstergiou/progressive-action-prediction, ``attention.py`` Vision/object_recognition/attention.py of
ARIA-Funded-TREND/IHMS, ``torch_modules.py`` Reinforcement Learning/AttentionNeuron/solutions/torch_modules.py of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.waves import wave, waved


def rounded(x):
    return torch.round(x.detach().double(), decimals=7).tolist()


@torch.no_grad()
def control() -> dict:
    """Co4's policy of CartPole over three steps, and its scores of CarRacing: `solutions/torch_modules.py` of IHMS."""
    import torch_modules

    torch.set_default_dtype(torch.float64)  # of the states that it makes
    layer = torch_modules.CMIAttentionNeuronLayerForCartPole(2, 16, 7, 4).double()
    layer.pos_embedding = layer.pos_embedding.double()
    policy = waved(nn.Sequential(layer, nn.Linear(16, 2)).double())
    acts, x = [torch.zeros(1, 2, dtype=torch.float64)], wave((3, 5))
    for observed in x:
        acts.append(torch.tanh(policy[1](layer(observed, acts[-1]).T)))
    paired = waved(torch_modules.CMIAttentionMatrixForCarRacing(4, 3, 7).double())
    return {
        "co4_policy": {"names": list(dict(policy.named_parameters())), "out": rounded(torch.cat(acts[1:]))},
        "co4_paired": {
            "names": list(dict(paired.named_parameters())),
            "out": rounded(paired(wave((6, 4)), wave((2, 3), 0.5))),
        },
    }


def videos() -> dict:
    """Two stages of the residual network that TemPr reads, and its towers on maps with positions: `network/` of it."""
    from resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet
    from tempr_h import TemPr_h

    net = VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 2, 1, 1], BasicStem)
    net.layer3 = net.layer4 = net.fc = nn.Identity()
    net = waved(net)
    parts = {"num_latents": 3, "latent_dim": 8, "latent_heads": 2, "cross_dim_head": 4, "latent_dim_head": 4}
    positions = {"max_freq": 10.0, "num_freq_bands": 3}
    towers = waved(TemPr_h(depth=2, input_channels=5, num_classes=4, **positions, **parts))
    return {
        "video_resnet": {
            "names": list(dict(net.named_parameters())),
            "running": [name for name, _ in net.named_buffers()],
            "out": rounded(net(wave((1, 3, 5, 18, 21)))[1][:, ::16]),
        },
        "tempr_places": {
            "names": list(dict(towers.named_parameters())),
            "out": rounded(towers(wave((2, 5, 2, 3, 2, 4)))),
        },
    }


def main():
    sys.path.insert(0, sys.argv[1])
    from attention import ModulatedMultiHeadAttention
    from ep import EfficientProbing
    from flare import FLARE
    from slot_attention import SlotAttention
    from tempr_h import TemPr_h
    from transformers import PerceiverConfig
    from transformers.models.perceiver.modeling_perceiver import PerceiverEncoder

    found = {}
    pool = waved(EfficientProbing(12, num_queries=3, d_out=2).double())
    found["ep"] = {"names": list(dict(pool.named_parameters())), "out": rounded(pool(wave((2, 5, 12))))}

    mixer = waved(FLARE(12, num_heads=3, num_latents=5, num_layers_k_proj=1, num_layers_v_proj=1).double())
    found["flare"] = {"names": list(dict(mixer.named_parameters())), "out": rounded(mixer(wave((2, 7, 12)))[0])}

    slots = waved(SlotAttention(3, 6, iters=2, hidden_dim=8).double())
    for layer in (slots.to_q, slots.to_k, slots.to_v):
        layer.bias.zero_()
    torch.manual_seed(0)
    noise = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.manual_seed(0)
    found["slots"] = {
        "names": list(dict(slots.named_parameters())),
        "noise": rounded(noise),
        "out": rounded(slots(wave((2, 5, 6)))),
    }

    sizes = {
        "num_blocks": 2,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "attention_probs_dropout_prob": 0,
    }
    config = PerceiverConfig(d_latents=8, num_latents=3, num_cross_attention_heads=1, **sizes)
    encoder = waved(PerceiverEncoder(config, kv_dim=6).double().eval())
    out = encoder(wave((2, 3, 8)), inputs=wave((2, 7, 6))).last_hidden_state
    found["perceiver"] = {"names": list(dict(encoder.named_parameters())), "out": rounded(out)}

    sizes = {"num_latents": 3, "latent_dim": 8, "latent_heads": 2, "cross_dim_head": 4, "latent_dim_head": 4}
    towers = waved(TemPr_h(depth=2, input_channels=5, num_classes=4, fourier_encode_data=False, **sizes).double())
    features = wave((2, 2, 6, 5))
    out = towers(features.permute(0, 3, 1, 2)[:, :, :, :, None, None])
    found["tempr"] = {"names": list(dict(towers.named_parameters())), "out": rounded(out)}

    modulated = waved(ModulatedMultiHeadAttention(6, 1, num_heads=1).double())
    found["co4"] = {"names": list(dict(modulated.named_parameters())), "out": rounded(modulated(wave((2, 15, 6))))}

    found |= control() | videos()

    text = ",\n".join(f'"{name}": {json.dumps(case)}' for name, case in found.items())
    Path(__file__).with_name("latents.json").write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
