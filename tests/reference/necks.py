"""Writes necks.json: some numbers of what published necks and dense networks make of waves, with waves as weights,
numbered as their layers are called.

    python tests/reference/necks.py FOLDER        (PyTorch 2.13)

FOLDER holds clones of the authors' repositories by their names, and stands for what they import and do not use:

- ``Efficient-Computing`` of huawei-noah, in it Detection/Gold-YOLO; of mmcv its ConvModule and build_norm_layer
- ``DetectoRS`` of joe-siyuan-qiao
- ``CPDR`` of Att100, written for Paddle
- ``PIIP`` of OpenGVLab, in it mmdetection
- ``TriDet`` of sssste
- ``BGF-YOLO`` of mkang315, which needs einops
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.waves import wave, waved_in_use

STEP = 29


def stand_in(name: str, **contents) -> None:
    """A module of this name with these contents."""
    module = types.ModuleType(name)
    module.__dict__.update(contents, __path__=[])
    sys.modules[name] = module


def pyramid(channels, y: int, x: int):
    """Waves, the finest of y rows and x columns, each other half of the one before it."""
    maps = []
    for number, c in enumerate(channels):
        maps.append(wave((2, c, y, x), number))
        y, x = -(-y // 2), -(-x // 2)
    return maps


def numbers(maps) -> list[float]:
    """Some of what is in all maps, one after the other."""
    return [round(float(n), 8) for n in torch.cat([each.flatten() for each in maps])[::STEP]]


class Fields(dict):
    """A dictionary whose entries are attributes."""

    __getattr__ = dict.__getitem__


def gold_yolo(folder: Path):
    """Three of its necks: of folding blocks, of pairs of them with a way around, of other blocks."""

    class ConvModule(nn.Module):
        def __init__(self, inside, out, kernel_size, norm_cfg, act_cfg):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(inside, out, kernel_size, bias=False), nn.BatchNorm2d(out)

        def forward(self, x):
            return self.bn(self.conv(x))

    for name in ("mmcv", "mmdet", "there"):
        stand_in(name)
    stand_in("mmcv.cnn", ConvModule=ConvModule, build_norm_layer=lambda _, c: ("bn", nn.BatchNorm2d(c)))
    sys.path.insert(0, str(folder / "Efficient-Computing/Detection/Gold-YOLO"))
    necks, layers = importlib.import_module("gold_yolo.reppan"), importlib.import_module("yolov6.layers.common")
    given = (4, 8, 6, 10)
    channels = [0, *given, 8, 4, 4, 8, 8, 16]
    found = {}
    for name, more in {
        "N": (necks.RepGDNeck, layers.RepVGGBlock, {}, 2, 4),
        "M": (necks.GDNeck, layers.RepVGGBlock, {"csp_e": 0.5}, 2, 4),
        "L": (necks.GDNeck2, layers.ConvWrapper, {"csp_e": 0.5}, 1, 8),
    }.items():
        make, block, arguments, depths, heads = more
        sizes = {"fusion_in": sum(given), "fuse_block_num": 3, "embed_dim_p": 6, "embed_dim_n": 22}
        sizes |= {"depths": depths, "key_dim": 8, "num_heads": heads, "mlp_ratios": 1, "attn_ratios": 2}
        sizes |= {"c2t_stride": 2, "drop_path_rate": 0.0, "trans_channels": [8, 4, 8, 16], "pool_mode": "torch"}
        sizes["norm_cfg"] = None
        neck = make(channels, [4] * 9, block=block, extra_cfg=Fields(sizes), **arguments)
        for norm in (each for each in neck.modules() if isinstance(each, nn.BatchNorm2d)):
            norm.eps = 1e-3
        maps = pyramid(given, 27, 38)
        neck = waved_in_use(neck, maps)
        with torch.no_grad():
            found[f"gold_yolo_{name}"] = numbers(neck(maps))
    return found


class Registry:
    """Registers nothing."""

    def register_module(self, thing):
        return thing


class PlainConvolution(nn.Module):
    """What mmdet's ConvModule is without a norm and an activation."""

    def __init__(self, inside, out, kernel, padding=0, **_):
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, padding=padding)

    def forward(self, x):
        return self.conv(x)


def detectors(folder: Path):
    """Two and three passes of a backbone of one block a stage and an eighth of the channels, without deformable
    convolutions, under the name that the PyTorch of then had for what a convolution does."""
    nn.Conv2d.conv2d_forward = lambda own, x, weight: own._conv_forward(x, weight, own.bias)
    root, registry = folder / "DetectoRS/mmdet", Registry()
    weights = execute(root / "ops/conv_ws.py")
    stand_in("there.conv_ws", ConvAWS2d=weights.ConvAWS2d)
    stand_in("there.dcn", deform_conv=None)
    kinds = {"ConvAWS": weights.ConvAWS2d, "SAC": execute(root / "ops/saconv.py", "there").SAConv2d}

    def convolution(config, *given, **more):
        config = dict(config)
        return kinds[config.pop("type")](*given, **config, **more)

    def norm(_, width, postfix=""):
        return f"bn{postfix}", nn.BatchNorm2d(width)

    unused = dict.fromkeys(("constant_init", "kaiming_init", "xavier_init", "ContextBlock", "GeneralizedAttention"))
    ops = {"build_conv_layer": convolution, "build_norm_layer": norm, "ConvModule": PlainConvolution}
    for name in (
        "mmcv.cnn",
        "mmcv.runner",
        "mmdet.ops",
        "mmdet.utils",
        "mmdet.core",
        "there",
        "there.models",
        "there.models.htc",
    ):
        more = {"load_checkpoint": None, "get_root_logger": None, "auto_fp16": lambda: lambda function: function}
        stand_in(name, **unused, **ops, **more, builder=None, HybridTaskCascade=nn.Module)
    names = ("BACKBONES", "NECKS", "DETECTORS")
    stand_in("there.registry", **dict.fromkeys(names, registry))
    net = execute(root / "models/backbones/resnet.py", "there.models", _64="8")
    pyramids = execute(root / "models/necks/fpn.py", "there.models")
    passes = execute(root / "models/detectors/rfp.py", "there.models")
    net.ResNet.arch_settings = {50: (net.Bottleneck, (1, 1, 1, 1))}
    found = {}
    for steps in (2, 3):
        size = {"conv_cfg": {"type": "ConvAWS"}, "sac": {"type": "SAC", "use_deform": False}, "norm_eval": False}
        size |= {"stage_with_sac": (False, True, True, True), "frozen_stages": -1}

        class Both(nn.Module):
            forward = passes.RecursiveFeaturePyramid.extract_feat
            rfp_steps, rfp_sharing, stage_with_rfp = steps, False, (False, True, True, True)

        both = Both()
        both.backbone, both.neck = net.ResNet(50, **size), pyramids.FPN([32, 64, 128, 256], 16, 5)
        both.rfp_modules = nn.ModuleList(net.ResNet(50, **size, rfp=16) for _ in range(steps - 1))
        both.rfp_aspp, both.rfp_weight = passes.ASPP(16, 4), nn.Conv2d(16, 1, 1)
        images = wave((2, 3, 75, 70))
        both = waved_in_use(both, images)
        with torch.no_grad():
            found[f"detectors_{steps}"] = numbers(both(images))
    return found


def paddle() -> None:
    """Stand-ins for the layers and functions of Paddle that are named otherwise in PyTorch."""

    def convolution(inside, out, kernel, stride=1, padding=0, bias_attr=True):
        return nn.Conv2d(inside, out, kernel, stride, padding, bias=bias_attr)

    layers = {"Conv2D": convolution, "BatchNorm2D": nn.BatchNorm2d, "AdaptiveAvgPool2D": nn.AdaptiveAvgPool2d}
    functions = {name: getattr(torch, name) for name in ("relu", "sigmoid")}
    functional = {"interpolate": nn.functional.interpolate, "upsample": nn.functional.interpolate, **functions}
    layers |= {"Layer": nn.Module, "Sequential": nn.Sequential}
    stand_in("paddle.nn.functional", **functional)
    stand_in("paddle.nn", functional=sys.modules["paddle.nn.functional"], **layers)
    arithmetic = {
        "concat": lambda parts, axis: torch.cat(parts, axis),
        "mean": lambda x, axis, keepdim: x.mean(axis, keepdim),
        "max": lambda x, keepdim, axis: x.amax(axis, keepdim),
    }
    stand_in("paddle", nn=sys.modules["paddle.nn"], **arithmetic)
    for name in ("paddle.vision.models.mobilenetv2", "paddle.vision.models.resnet"):
        stand_in(name, InvertedResidual=None, BottleneckBlock=None)


def cpdr(folder: Path):
    """Both necks with the configurations of their networks, the finest map last there."""
    paddle()
    stand_in("models")
    blocks = execute(folder / "CPDR/models/blocks.py")
    stand_in("models.blocks", Block=blocks.Block)
    necks, found = execute(folder / "CPDR/models/necks.py"), {}
    for name, file, channels in (
        ("cpdr_a", "unet_cpdr_a_efficientnetb0_dice_iou", (16, 16, 32, 64)),
        ("cpdr_b", "fpn_cpdr_b_mobilenetv2lite_dice_iou", (16, 32, 64, 64)),
    ):
        config = execute(folder / f"CPDR/configs/{file}.py").config
        neck = necks.Neck.make(name, config["structure"]["neck"]["block_cfgs"])
        maps = pyramid(channels, 24, 16)
        neck = waved_in_use(neck, maps[::-1])
        with torch.no_grad():
            found[name] = numbers(neck(maps[::-1])[::-1])
    del sys.modules["paddle"]  # which is looked for elsewhere
    return found


def piip(folder: Path):
    """One exchange of tokens of 3 × 2 and 5 × 7 patches, by all of them and by a few places."""
    root = folder / "PIIP/mmdetection"
    stand_in("MultiScaleDeformableAttention")
    core = execute(root / "ops/deformable_attention/functions/ms_deform_attn_func.py")

    class InPyTorch:
        @staticmethod
        def apply(value, shapes, _, places, weights, __):
            return core.ms_deform_attn_core_pytorch(value, shapes, places, weights)

    stand_in("there.functions", MSDeformAttnFunction=InPyTorch, MSDeformAttnFunctionOptimized=None)
    stand_in("there.modules")
    attention = execute(root / "ops/deformable_attention/modules/ms_deform_attn.py", "there.modules").MSDeformAttn
    for name in ("ops", "ops.deformable_attention", "timm", "timm.models"):
        stand_in(name)
    stand_in("ops.deformable_attention.modules", MSDeformAttn=attention)
    stand_in("timm.models.layers", DropPath=nn.Identity)
    stand_in("there.modules.convnext_hf_wrapper", ConvNextLayerWrapper=None)
    parts, found = execute(root / "mmdet/models/backbones/piip_modules.py", "there.modules"), {}
    coarse, fine = (3, 2), (5, 7)
    tokens = wave((2, 6, 12)), wave((2, 35, 8), 0.3)
    inputs = [
        [parts.get_reference_points([own], "cpu").double(), torch.tensor([other]), torch.tensor([0])]
        for own, other in ((coarse, fine), (fine, coarse))
    ]
    for name in ("normal", "deform"):
        unit = parts.BidirectionalInteractionUnit(12, 8, 0, 0, 2, with_cffn=True, deform_ratio=0.5, attn_type=name)
        for each in (each for each in unit.modules() if type(each) is parts.Injector and name == "deform"):
            each.attn.float = each.attn.double
        given = (*tokens, *inputs, *coarse, *fine)
        torch.Tensor.float, kept = torch.Tensor.double, torch.Tensor.float
        unit = waved_in_use(unit, *given)
        with torch.no_grad():
            found[f"piip_{name}"] = numbers(unit(*given))
        torch.Tensor.float = kept
    return found


def tridet(folder: Path):
    """Two images of 32 moments, level by level: probabilities, starts and ends."""
    root = folder / "TriDet/libs/modeling"
    sys.path.insert(0, str(folder / "TriDet"))
    stand_in("libs")
    stand_in("libs.utils", batched_nms=None)
    stand_in("libs.modeling")
    sys.modules["libs.modeling"].__path__ = [str(root)]
    whole = importlib.import_module("libs.modeling.meta_archs")
    importlib.import_module("libs.modeling.backbones")
    importlib.import_module("libs.modeling.necks")
    importlib.import_module("libs.modeling.loc_generators")
    train = {"center_sample": "radius", "center_sample_radius": 1.5, "loss_weight": 1.0, "cls_prior_prob": 0.01}
    train |= {"dropout": 0.0, "droppath": 1e-9, "label_smoothing": 0.0, "head_empty_cls": [], "init_loss_norm": 100}
    names = ("pre_nms_thresh", "pre_nms_topk", "iou_threshold", "min_score", "max_seg_num", "duration_thresh")
    test = dict.fromkeys((*names, "multiclass_nms", "nms_sigma", "voting_thresh"), 0) | {"nms_method": "none"}
    sizes = {"embd_dim": 16, "fpn_dim": 16, "head_dim": 16, "sgp_mlp_dim": 7, "input_dim": 5, "num_classes": 3}
    kernels = {"embd_kernel_size": 3, "head_kernel_size": 3, "boudary_kernel_size": 3, "n_sgp_win_size": 3}
    norms = {"embd_with_ln": True, "fpn_with_ln": True, "head_with_ln": True, "use_abs_pe": False}
    net = whole.TriDet(
        **{"backbone_type": "SGP", "fpn_type": "identity", "backbone_arch": (2, 2, 2), "scale_factor": 2},
        **{"max_seq_len": 32, "max_buffer_len_factor": 1, "regression_range": [(0, 9)] * 3, "head_num_layers": 3},
        **{"num_bins": 4, "iou_weight_power": 1.0, "downsample_type": "max", "input_noise": 0, "k": 1.5},
        **{"init_conv_vars": 0, "use_trident_head": True, "train_cfg": train, "test_cfg": test},
        **sizes | kernels | norms,
    )
    for each in (each for each in net.modules() if hasattr(each, "drop_prob")):
        each.drop_prob = 0.0
    x, kept = wave((2, 5, 32)), torch.ones(2, 1, 32, dtype=torch.bool)

    class Steps(nn.Module):
        """What the network calls before it reads the events."""

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            maps, masks = net.neck(*net.backbone(x, kept))
            found = []
            for level in range(3):
                one = [maps[level]], [masks[level]]
                score, start, end = (head(*one)[0] for head in (net.cls_head, net.start_head, net.end_head))
                head = net.reg_head
                own = one[0][0]
                for convolution, norm in zip(head.head, head.norm, strict=True):
                    own = head.act(norm(convolution(own, one[1][0])[0]))
                own = torch.relu(head.scale[level](head.offset_head(own, one[1][0])[0])).mT
                for row in range(2):
                    before = nn.functional.pad(start[row], (4, 0)).unfold(1, 5, 1)
                    after = nn.functional.pad(end[row], (0, 4)).unfold(1, 5, 1)
                    net.training = False
                    offset = net.decode_offset(own[row], before, after.double())
                    net.training = True
                    found.append(torch.cat((torch.sigmoid(score[row])[..., None], 2**level * offset), -1))
            return found

    torch.float, kept_float = torch.double, torch.float
    steps = waved_in_use(Steps(), x)
    with torch.no_grad():
        values = {"tridet": numbers(steps(x))}
    torch.float = kept_float
    return values


def bgf_yolo(folder: Path):
    """The backbone and the neck of its configuration at a sixteenth of the channels, values, queries and keys made one
    after the other."""
    root = folder / "BGF-YOLO"
    stand_in("there.transformer", TransformerBlock=None)
    for name in ("conv", "bra_legacy", "block"):
        sys.modules[f"there.{name}"] = execute(root / f"nn/modules/{name}.py", "there")
    parts = sys.modules["there.block"]

    class InTurn(nn.Module):
        def __init__(self, width, _):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

        def forward(self, x):
            v = self.v(x)
            return self.q(x), torch.cat((self.k(x), v), -1)

    parts.QKVLinear = InTurn
    config = importlib.import_module("yaml").safe_load((root / "models/bgf/bgf-yolo.yaml").read_text())

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.sources, widths = nn.ModuleList(), [], []
            for source, count, kind, given in config["backbone"] + config["head"][:-1]:
                inside = [widths[n] for n in ([source] if isinstance(source, int) else source)] if widths else [3]
                width = inside[0]
                if kind in ("Conv", "C2f", "SPPF", "CSPStage"):
                    width = -(-given[0] // 16 // 8) * 8
                    repeats = [max(round(count * 0.33), 1)] if kind in ("C2f", "CSPStage") else []
                    layer = getattr(parts, kind)(inside[0], width, *repeats, *given[1:])
                elif kind == "BiLevelRoutingAttention":
                    layer = parts.BiLevelRoutingAttention(width, *given)
                elif kind == "Concat":
                    layer, width = None, sum(inside)
                else:
                    layer = nn.Upsample(None, 2, "nearest")
                self.layers.append(layer or nn.Identity())
                self.sources.append(source)
                widths.append(width)
            for each in (each for each in self.modules() if isinstance(each, nn.BatchNorm2d)):
                each.eps = 1e-3

        def forward(self, x):
            found = []
            for source, layer in zip(self.sources, self.layers, strict=True):
                given = [found[n] for n in source] if isinstance(source, list) else found[source] if found else x
                found.append(torch.cat(given, 1) if isinstance(source, list) else layer(given))
            return [found[n] for n in config["head"][-1][0]]

    steps, images = Steps(), wave((2, 3, 256, 256))
    steps = waved_in_use(steps, images)
    with torch.no_grad():
        return {"bgf_yolo": numbers(steps(images))}


def execute(file: Path, package: str = "", **changed: str):
    """A file as a module of a package, words of it changed."""
    module = types.ModuleType(file.stem)
    module.__package__ = package
    text = file.read_text()
    for old, new in changed.items():
        text = text.replace(old.strip("_"), new)
    exec(compile(text, str(file), "exec"), module.__dict__)
    return module


def main(folder: str) -> None:
    values = gold_yolo(Path(folder)) | detectors(Path(folder)) | cpdr(Path(folder)) | piip(Path(folder))
    values |= tridet(Path(folder)) | bgf_yolo(Path(folder))
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
