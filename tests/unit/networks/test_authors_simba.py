"""SiMBA's stages for images: with waves as weights, what its authors' code gives."""

import pytest

from regard.networks.stages.network import Stages
from regard.networks.vision import simba
from unit.networks.authors import VALUES, check

SIMBA = [
    (r"^stem\.convolutions\.(\d)", lambda m: f"patch_embed1.conv.{3 * int(m[1])}"),
    (r"^stem\.norms\.(\d)", lambda m: f"patch_embed1.conv.{3 * int(m[1]) + 1}"),
    (r"^stem\.last", "patch_embed1.proj"),
    (r"^stem\.norm", "patch_embed1.norm"),
    (r"^stages\.0\.blocks\.\d\.2\.norm", "norm1"),
    (r"^stages\.(\d)\.down\.convolution", lambda m: f"patch_embed{1 + int(m[1])}.proj"),
    (r"^stages\.(\d)\.down", lambda m: f"patch_embed{1 + int(m[1])}"),
    (r"^stages\.(\d)\.blocks\.", lambda m: f"block{1 + int(m[1])}."),
    (r"^head\.scan\.", "post_network.0.scan."),
    (r"^head\.mix_norm", "post_network.0.norm2"),
    (r"^head\.mix\.0", "post_network.0.mlp.fc1"),
    (r"^head\.mix\.2", "post_network.0.mlp.fc2"),
    (r"^head\.mix\.", "post_network.0.mlp."),
    (r"^head\.norm", "norm2"),
    (r"^head\.classes", "head"),
    (r"^head\.of_cells", "aux_head"),
    (r"(block\d\.\d)\.0\.step\.", r"\1.scan."),
    (r"(block\d\.\d)\.1\.step\.(mix\.)?", r"\1.mlp."),
    (r"(block\d\.\d)\.1\.norm", r"\1.norm2"),
    (r"mlp\.weights\.(\d)", lambda m: f"mlp.complex_weight_{1 + int(m[1])}"),
    (r"mlp\.biases\.(\d)", lambda m: f"mlp.complex_bias_{1 + int(m[1])}"),
    (r"mlp\.first", "mlp.fc1"),
    (r"mlp\.second", "mlp.fc2"),
    (r"mlp\.convolution", "mlp.dwconv.dwconv"),
    (r"scan\.norm", "attn.norm"),
    (r"scan\.attention\.", "attn.mamba."),
    (r"mamba\.mechanism\.log_rate", "mamba.A_log"),
    (r"mamba\.output\.skip", "mamba.D"),
    (r"mamba\.output\.gate", "mamba.gate"),
    (r"mamba\.projection\.out", "mamba.out_proj"),
    (r"mamba\.projection\.(\w)", r"mamba.into_\1"),
    (r"mamba\.signals\.maps\.step\.down", "mamba.into_step"),
    (r"mamba\.signals\.maps\.step", "mamba.dt_proj"),
    (r"mamba\.convolution", "mamba.conv1d"),
]


def scans(theirs):
    """The parts of their joint matrices by themselves, and taps with the token itself first."""
    found = {}
    for name, tensor in theirs.items():
        own = name.removesuffix(".weight")
        if name.endswith("in_proj.weight"):
            parts = dict(zip(("into_v", "gate"), tensor.chunk(2), strict=True))
        elif name.endswith("x_proj.weight"):
            parts = dict(zip(("into_step", "into_k", "into_q"), tensor.split([1, 64, 64]), strict=True))
        elif name.endswith("conv1d.weight"):
            parts = {"conv1d": tensor[:, 0].mT.flip(0)}
        else:
            found[name] = tensor
            continue
        found |= {f"{own.rpartition('.')[0]}.{part}.weight": value for part, value in parts.items()}
    return found


@pytest.mark.parametrize(("case", "ratios"), [("simba", None), ("simba_mlp", (2, 3))])
def test_simba(case, ratios):
    check(Stages(simba.design((1, 2), (8, 12), 5, ratios), 7), VALUES[case], SIMBA, before=scans)
