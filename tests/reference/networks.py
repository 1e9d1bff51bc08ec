"""Writes networks.json: what networks of images by their authors make of waves, with waves as weights.

    python tests/reference/networks.py FOLDER        (PyTorch 2.13, timm 1.0.31, einops, easydict)

timm is found as in tests/peers/without_torchvision.py. FOLDER holds the repositories named in `AUTHORS`, each in a
folder of the repository's name.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers.without_torchvision import timm
from reference.stages import state
from reference.waves import wave

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def theirs(folder: str, module: str) -> ModuleType:
    """A module of a repository whose packages have common names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("models", "utils", "functions", "modules")]:
        del sys.modules[name]
    timm()
    layers = importlib.import_module("timm.layers")
    sys.modules["timm.models.layers"] = layers
    sys.path.insert(0, str(FOLDER / folder))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.pop(0)


def written(module: nn.Module, *shapes: tuple[int, ...], call: Callable[..., Tensor] | None = None) -> dict:
    """The shapes of the weights and of what goes in, and every third number that comes out."""
    module = module.double().eval()
    about = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    module.load_state_dict(state(about))
    with torch.no_grad():
        out = (call or module)(*(wave(shape, 0.3 * place) for place, shape in enumerate(shapes)))
    return {"inputs": shapes, "state": about, "out": [round(x, 8) for x in out.flatten()[::3].tolist()]}


def patnet() -> dict:
    """The deviation is taken of the population, as here: theirs is of a sample."""
    deviation = Tensor.std
    Tensor.std = lambda self, dim: deviation(self, dim, correction=0)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        kind = theirs("PartialNet", "models.partialnet").PartialNet
        net = kind(num_classes=5, embed_dim=16, depths=(1, 2, 1, 1), feature_dim=11, act_layer="GELU")
        return written(net, (2, 3, 96, 64))
    finally:
        Tensor.std = deviation


def resnet50(pretrained: bool = False) -> nn.Module:
    """A residual network of one block a stage with torchvision's names, which timm's has too."""
    timm()
    resnet = importlib.import_module("timm.models.resnet")
    net = resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), num_classes=0)
    net.relu = nn.ReLU()
    return net


def high_order(kind: str, **more: int) -> dict:
    module = theirs("MHN", "model")
    module.models = SimpleNamespace(resnet50=resnet50)  # pyright: ignore[reportAttributeAccessIssue]
    net = getattr(module, kind)(5, 3, **more)
    return written(net, (2, 3, 64, 32), call=lambda image: torch.stack(net(image)[0], 1))


def bevanet(whole: bool = False) -> dict:
    """The network of cells, or that of whole images."""
    sys.modules["utils"] = ModuleType("utils")
    sys.modules["utils.utils"] = ModuleType("utils.utils")
    sys.modules["utils.utils"].calculate_FPS = None  # pyright: ignore[reportAttributeAccessIssue]
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]
    sys.path.insert(0, str(FOLDER / "BEVANet"))
    made, pyramids, fusion = (importlib.import_module(f"models.{name}") for name in ("BEVANet", "PPM", "FB"))
    sys.path.pop(0)
    parts = {"mlp_expand": [4, 4, 4], "n_blocks": [2, 1, 2, 2, 2], "num_classes": 5, "planes": 4}
    spans = {"semantic_kernel_size": [0, 35, 35], "detail_kernel_size": [0, 23]}
    if whole:
        return written(made.BEVANet_CLS_32(**parts, **spans, last_planes=6), (2, 3, 128, 64))
    net = made.BEVANet_SEG(**parts, **spans, ppm=pyramids.DLKPPM, fb=fusion.BGAF, ppm_planes=6, head_planes=7)
    return written(net, (2, 3, 128, 64), call=lambda image: torch.cat([x.flatten() for x in net(image)]))


def gathered(query: Tensor, key: Tensor, index: Tensor) -> Tensor:
    """Their kernel of scores: of ``query (b, n, 4, h, d)`` and the keys ``(b, m, h, d)`` at ``index (b, n, K, h)``."""
    b, n, many, h = index.shape
    keys = key.gather(1, index.flatten(1, 2)[..., None].expand(-1, -1, -1, key.shape[3])).view(b, n, many, h, -1)
    return torch.einsum("bnfhd,bnkhd->bnfkh", query, keys)


def aggregated(score: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """Their kernel of sums: ``score (b, n, 4, K, h)`` of the values ``(b, m, h, d)`` at ``index``, of its shape."""
    b, n, four, many, h = index.shape
    values = value.gather(1, index.flatten(1, 3)[..., None].expand(-1, -1, -1, value.shape[3]))
    return torch.einsum("bnfkh,bnfkhd->bnfhd", score, values.view(b, n, four, many, h, -1))


def quadtree(kind: str) -> dict:
    """In float32, which one of their masks has."""
    names = ("QuadtreeAttention.functions", "QuadtreeAttention.functions.quadtree_attention")
    for name in names:
        sys.modules[name] = ModuleType(name)
    sys.modules[names[1]].score_computation_op = gathered  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[names[1]].value_aggregation_op = aggregated  # pyright: ignore[reportAttributeAccessIssue]
    sys.path.insert(0, str(FOLDER / "QuadTreeAttention"))
    timm()
    sys.modules["timm.models.layers"] = importlib.import_module("timm.layers")
    module = importlib.import_module("QuadtreeAttention.modules.quadtree_attention")
    sys.path.pop(0)
    net = getattr(module, kind)(2, 3, topks=[3, 2, 2], **({"scale": 3} if kind == "QTAttB" else {}))
    shapes = ((2, 6, 8, 12),) * 3

    def call(*maps: Tensor) -> Tensor:
        levels = [[x.float()] for x in maps]
        for level in levels:
            level += [F.avg_pool2d(level[0], 2), F.avg_pool2d(level[0], 4)]
        return net.float()(*levels)

    return written(net, *shapes, call=call)


def neighbours(attention: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """NATTEN's product: of ``attention (b, g, y, x, k k)`` and the values ``(b, g, y, x, c)`` of each cell's window."""
    rows, columns = attention.shape[2:4]
    starts = [(torch.arange(n) - kernel_size // 2).clamp(0, n - kernel_size) for n in (rows, columns)]
    y, x = (start[:, None] + torch.arange(kernel_size) for start in starts)
    windows = value[:, :, y[:, None, :, None], x[None, :, None, :]].flatten(4, 5)
    return torch.einsum("bgyxk,bgyxkc->bgyxc", attention, windows)


def overlock() -> dict:
    for name in ("natten", "natten.functional", "mmengine", "mmengine.runner"):
        sys.modules[name] = ModuleType(name)
    sys.modules["natten.functional"].na2d_av = neighbours  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["mmengine.runner"].load_checkpoint = None  # pyright: ignore[reportAttributeAccessIssue]
    sizes = {"depth": [1, 1, 1, 1], "sub_depth": [2, 1], "embed_dim": [8, 8, 16, 24], "kernel_size": [5, 5, 5, 7]}
    more = {"sub_num_heads": [1, 2], "sub_mlp_ratio": [3, 3], "projection": 11, "num_classes": 5, "use_gemm": False}
    net = theirs("OverLoCK", "models.overlock").OverLoCK(**sizes, **more)
    return written(net.train(False), (2, 3, 160, 96))


class Neighbourhood(nn.Module):
    """NATTEN 0.15's layer, cell by cell, its window smaller than RASM asks for so that small maps hold it."""

    def __init__(self, dim: int, num_heads: int, **sizes: float) -> None:
        super().__init__()
        self.heads, self.window, self.dilation = num_heads, 3, sizes["dilation"]
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rpb = nn.Parameter(torch.zeros(num_heads, 5, 5))

    def places(self, at: int, size: int) -> list[tuple[int, int]]:
        """Cells of the window on one axis, and their offsets in the table of biases."""
        step, group = self.dilation, range(at % self.dilation, size, self.dilation)
        start = min(max(at // step - self.window // 2, 0), len(group) - self.window)
        return [(group[start + n], start + n - at // step + self.window - 1) for n in range(self.window)]

    def forward(self, x: Tensor) -> Tensor:
        b, rows, columns, c = x.shape
        q, k, v = self.qkv(x.double()).view(b, rows, columns, 3, self.heads, -1).unbind(3)
        out = torch.zeros_like(q)
        for y in range(rows):
            for z in range(columns):
                seen = [(*i, *j) for i in self.places(y, rows) for j in self.places(z, columns)]
                own, bias = q[:, y, z] * (c // self.heads) ** -0.5, [self.rpb[:, i[1], i[3]] for i in seen]
                keys, values = (torch.stack([each[:, i[0], i[2]] for i in seen], 1) for each in (k, v))
                scores = torch.einsum("bhd,bkhd->bkh", own, keys) + torch.stack(bias)
                out[:, y, z] = torch.einsum("bkh,bkhd->bhd", scores.softmax(1), values)
        return self.proj(out.flatten(3))


def rasm() -> dict:
    """Their attention leaves double precision for single; the layer here goes back before it loses digits."""
    timm()
    sys.modules["timm.models.layers"] = importlib.import_module("timm.layers")
    for name in ("cv2", "scipy", "scipy.misc", "utils", "natten"):
        sys.modules[name] = ModuleType(name)
    sys.modules["natten"].NeighborhoodAttention2D = Neighbourhood  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules.pop("model", None)
    sys.path.insert(0, str(FOLDER / "RASM"))
    net = importlib.import_module("model").RASM(img_size=64, embed_dim=8, num_heads=[1, 1, 2, 1, 4, 1, 2, 1, 1])
    Tensor.float = Tensor.double  # pyright: ignore[reportAttributeAccessIssue]
    return written(net, (2, 3, 48, 64), (2, 1, 48, 64), call=lambda *given: net(*given)[:, :, ::3, ::2])


def vsa(rows: int, columns: int) -> dict:
    """Attention in varied windows of three cells; their layer is told the size of its map and wants a GPU."""
    Tensor.cuda = lambda self: self  # pyright: ignore[reportAttributeAccessIssue]
    kind = theirs("ViTAE-VSA/Image-Classification/vitaev2_vsa", "vsa").VSAWindowAttention
    torch.set_default_dtype(torch.float64)  # their places of cells are made once, in the default type
    layer = kind(12, 2, out_dim=12, window_size=3, img_size=(rows, columns))
    torch.set_default_dtype(torch.float32)
    index = layer._buffers.pop("relative_position_index")  # no weight: not to become a wave
    layer.relative_position_index = index
    return written(layer, (2, 12, rows, columns))


def agent_layer() -> dict:
    kind = theirs("Agent-Attention/agent_transformer/models", "agent_swin").AgentAttention
    return written(kind(12, (10, 10), 2, agent_num=9), (2, 100, 12))


def agent_net() -> dict:
    kind = theirs("Agent-Attention/agent_transformer/models", "agent_swin").AgentSwinTransformer
    sizes = {"img_size": 64, "window_size": 16, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4]}
    return written(kind(num_classes=5, agent_num=[4, 9], attn_type="AA", **sizes), (2, 3, 64, 64))


def simba(kind: str) -> dict:
    """Two stages of badripatro/simba, with the plain scan of its file, in double precision, which theirs is not in."""
    theirs("simba/classification", "timm")
    text = (FOLDER / "simba" / "classification" / "simba.py").read_text()
    text = (
        text.replace("from mamba_ssm import Mamba", "")
        .replace("@register_model", "")
        .replace("float32", "float64")
        .replace(".float()", ".double()")
    )
    text = text.replace("cm_type='mlp')", f"cm_type={kind!r})")
    module = ModuleType("simba")
    exec(text, vars(module))
    module.Mamba = module.MambaBlock  # pyright: ignore[reportAttributeAccessIssue]
    sizes = {"stem_hidden_dim": 5, "embed_dims": [8, 12], "depths": [1, 2], "mlp_ratios": [2, 3], "num_stages": 2}
    return written(module.SiMBA(num_classes=7, norm_layer=partial(nn.LayerNorm, eps=1e-6), **sizes), (2, 3, 21, 17))


AUTHORS: dict[str, Callable[[], dict]] = {
    "simba": partial(simba, "EinFFT"),
    "simba_mlp": partial(simba, "mlp"),
    "agent_layer": agent_layer,
    "agent_net": agent_net,
    "vsa": partial(vsa, 9, 12),
    "vsa_filled": partial(vsa, 8, 13),
    "rasm": rasm,
    "patnet": patnet,
    "bevanet": bevanet,
    "bevanet_classes": partial(bevanet, True),
    "overlock": overlock,
    "quadtree": partial(quadtree, "QTAttA"),
    "quadtree_levels": partial(quadtree, "QTAttB"),
    "mhn": partial(high_order, "MHN_IDE"),
    "mhn_stripes": partial(high_order, "MHN_smallPCB", part=2),
}


def main() -> None:
    """All of them, or those that are named behind the folder."""
    target = Path(__file__).with_suffix(".json")
    known = json.loads(target.read_text()) if sys.argv[2:] else {}
    values = known | {name: AUTHORS[name]() for name in sys.argv[2:] or AUTHORS}
    target.write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
