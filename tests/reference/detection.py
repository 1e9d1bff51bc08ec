"""Writes detection.json: what published code makes of waves as the scores and boxes of detectors: losses of boxes and
of events, which of them are chosen, and the loss of masked images.

    python tests/reference/detection.py FOLDER        (PyTorch 2.13)

FOLDER holds clones of the authors' repositories by their names, and stands for what they import and do not use:

- ``Efficient-Computing`` of huawei-noah, in it Detection/Gold-YOLO
- ``BGF-YOLO`` of mkang315
- ``TriDet`` of dingfengshi
- ``BMN-Boundary-Matching-Network`` of JJBOY, as of its commit 1a6a311, whose mask of 100 moments is made for fewer
- ``SparK`` of keyu-tian, in it pretrain, whose pools, norms and convolutions alone are sparse
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.necks import execute, stand_in
from reference.waves import wave, waved_in_use

SIDE, CLASSES = 96, 3
KINDS = ((0, 2, 1), (1, 0, -1))
BOXES = (((3, 5, 31, 41), (11, 13, 85, 77), (21, 3, 41, 21)), ((1, 1, 93, 95), (51, 43, 75, 67), (0, 0, 0, 0)))


def cells(steps) -> int:
    """Of maps with so many pixels a cell."""
    return sum((SIDE // step) ** 2 for step in steps)


def said(steps, bins: int, phase: float = 0.0):
    """Scores before the sigmoid, bins and distances of each cell of two images, and the maps that they come from."""
    count = cells(steps)
    told = 3 * wave((2, count, 4, bins), 5 + phase) if bins > 1 else None
    maps = [wave((2, 5, SIDE // step, SIDE // step), step + phase) for step in steps]
    sides = 1.5 + wave((2, count, 4), 9 + phase)
    return 2 * wave((2, count, CLASSES), phase), told, sides, maps


def narrow(scores, told, sides, maps):
    """The same in float32."""
    return scores.float(), None if told is None else told.float(), sides.float(), [each.float() for each in maps]


def boxes_there():
    """Rows of image, class, and middle, width and height in parts of the side."""
    rows = []
    for image, (kinds, boxes) in enumerate(zip(KINDS, BOXES, strict=True)):
        for kind, (left, top, right, bottom) in zip(kinds, boxes, strict=True):
            middle = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
            rows += [[image, kind, *(each / SIDE for each in middle)]] if kind >= 0 else []
    return torch.tensor(rows)


def gold_yolo(folder: Path):
    """Losses of boxes, bins and scores: plain, of the first epochs, and with a teacher, whose maps are read too."""
    sys.path.insert(0, str(folder / "Efficient-Computing/Detection/Gold-YOLO"))
    nn.Module.cuda = lambda self: self
    losses = {
        name: importlib.import_module(f"yolov6.models.losses.{name}").ComputeLoss
        for name in ("loss", "loss_distill", "loss_distill_ns")
    }
    steps, found = (8, 16, 32), {}
    given = {"num_classes": CLASSES, "ori_img_size": SIDE}

    def outputs(bins, phase=0.0, direct=False):
        scores, told, sides, maps = narrow(*said(steps, bins, phase))
        both = (torch.sigmoid(scores), sides if told is None else told.flatten(2))
        return (maps, *both, *((sides,) if direct else ())), maps

    plain, maps = outputs(17)
    for kind in ("giou", "siou", "ciou", "diou"):
        own = losses["loss"](**given, warmup_epoch=0, iou_type=kind)
        found[f"gold_{kind}"] = own(plain, boxes_there(), 1, 1)[1].tolist()
    own = losses["loss"](**given, warmup_epoch=0, iou_type="siou", use_dfl=False, reg_max=0)
    found["gold_sides"] = own(outputs(1)[0], boxes_there(), 1, 1)[1].tolist()
    found["gold_first"] = losses["loss"](**given, warmup_epoch=4)(plain, boxes_there(), 1, 1)[1].tolist()
    taught, others = outputs(17, 0.4)
    for name, direct in (("loss_distill", False), ("loss_distill_ns", True)):
        student, maps = outputs(17, direct=direct)
        own = losses[name](**given, distill_feat=True, distill_weight={"class": 0.8, "dfl": 1.3})
        found[f"gold_{name}"] = own(student, taught, maps, others, boxes_there(), 30, 100, 20, 1)[1].tolist()
    return found


def bgf_yolo(folder: Path):
    """Losses of four levels."""
    for name in ("there", "there.yolo", "there.yolo.utils"):
        stand_in(name)
    root = folder / "BGF-YOLO/yolo/utils"
    stand_in("there.yolo.utils.checks", check_version=lambda *_: True)
    stand_in("there.yolo.utils.ops", crop_mask=None, xywh2xyxy=xyxy, xyxy2xywh=None)
    stand_in("there.yolo.utils.wiou", IoU_Cal=None)
    text = (root / "metrics.py").read_text()
    start = text.index("def bbox_iou")
    iou = {}
    exec("import math\nimport torch\n" + text[start : text.index("def mask_iou")], iou)
    stand_in("there.yolo.utils.metrics", OKS_SIGMA=None, bbox_iou=iou["bbox_iou"])
    sys.modules["there.yolo.utils.tal"] = execute(root / "tal.py", "there.yolo.utils")
    loss = execute(root / "loss.py", "there.yolo.utils").v8DetectionLoss

    class Fields:
        def __init__(self, **contents):
            self.__dict__.update(contents)

    steps = (4, 8, 16, 32)
    scores, told, _, maps = narrow(*said(steps, 16))
    head = Fields(stride=torch.tensor(steps), nc=CLASSES, no=64 + CLASSES, reg_max=16)
    model = Fields(parameters=lambda: iter([torch.zeros(1)]), args=Fields(box=7.5, cls=0.5, dfl=1.5), model=[head])
    both = torch.cat((told.flatten(2), scores), 2).mT
    counts = [(SIDE // step) ** 2 for step in steps]
    given = [part.unflatten(2, each.shape[2:]) for part, each in zip(both.split(counts, 2), maps, strict=True)]
    rows = boxes_there()
    batch = {"batch_idx": rows[:, 0], "cls": rows[:, 1], "bboxes": rows[:, 2:]}
    total, parts = loss(model)(given, batch)
    return {"bgf": [*parts.tolist(), total.item()]}


TIMES, BINS = (16, 8, 4), 4
EVENTS = (((0, 1.5, 5.2), (2, 4.1, 13.7), (1, 1.5, 5.2)), ((1, 0.2, 2.6), (0, 3.3, 8.9), (2, 6.5, 7.6)))


def moments(levels=TIMES):
    """Scores, starts, ends and bins of each level's moments, as logits, and how many moments are kept."""
    found = []
    for number, count in enumerate(levels):
        scores = 2 * wave((2, count, CLASSES), number)
        ends = [2 * wave((2, CLASSES, count), 7 + number), 2 * wave((2, CLASSES, count), 8 + number)]
        found.append((scores, *ends, torch.relu(3 * wave((2, count, 2 * (BINS + 1)), 9 + number))))
    return found, (16, 11)


def tridet(folder: Path):
    """Losses of classes and of ends, from bins and as they are told; and the running mean that they are divided by."""
    root = folder / "TriDet/libs/modeling"
    losses = execute(root / "losses.py")
    for name in ("events", "events.modeling", "events.utils"):
        stand_in(name, batched_nms=None)
    stand_in(
        "events.modeling.models",
        **dict.fromkeys(("make_backbone", "make_neck", "make_generator")),
        register_meta_arch=lambda _: lambda own: own,
        register_generator=None,
    )
    stand_in("events.modeling.blocks", **dict.fromkeys(("MaskedConv1D", "Scale", "LayerNorm")))
    sys.modules["events.modeling.losses"] = losses
    there = execute(root / "meta_archs.py", "events.modeling").TriDet
    told, lengths = moments()
    found = {}
    for bins in (BINS, 0):
        own = there.__new__(there)
        nn.Module.__init__(own)
        own.num_classes, own.num_bins, own.use_trident_head = CLASSES, bins, bool(bins)
        own.train_center_sample, own.train_center_sample_radius = "radius", 1.5
        own.loss_normalizer, own.loss_normalizer_momentum, own.iou_weight_power = 100, 0.9, 0.2
        own.train_label_smoothing, own.train_loss_weight = 0.0, 1.0
        ranges, points = ((0, 4), (4, 8), (8, 10000)), []
        for level, (count, given) in enumerate(zip(TIMES, ranges, strict=True)):
            time = 2**level * torch.arange(count)[:, None]
            points.append(torch.cat((time, torch.tensor([[*given, 2**level]]).expand(count, -1)), 1).float())
        spans = [torch.tensor([each[1:] for each in events]) for events in EVENTS]
        kinds = [torch.tensor([each[0] for each in events]) for events in EVENTS]
        wanted, away = own.label_points(points, spans, kinds)
        kept = [
            torch.stack([torch.arange(count) < -(-length // 2**level) for length in lengths])
            for level, count in enumerate(TIMES)
        ]
        scores, starts, ends, sides = ([part.float() for part in each] for each in zip(*told, strict=True))
        sides = sides if bins else [each[..., :2] for each in sides]
        losses = own.losses(kept, scores, sides, wanted, away, starts, ends)
        found[f"events_{bins}"] = [losses["cls_loss"].item(), losses["reg_loss"].item(), own.loss_normalizer]
    return found


MOMENTS, SAMPLES = 9, 4


def proposals(folder: Path):
    """Starts and ends, and the map of spans, weights as waves; its mask reads places between −1 and 0 by a weight above
    one and another below zero, here by their distance to the first moment."""
    root, nn.Module.cuda = folder / "BMN-Boundary-Matching-Network", lambda self: self
    torch.Tensor.cuda = lambda self: self
    text = (root / "get_mask.py").read_text().replace("100", str(MOMENTS)).replace("99", str(MOMENTS - 1))
    text = (
        text.replace("32", str(SAMPLES))
        .replace("math.modf(point)", "(point % 1, point // 1)")
        .replace("np.save(", "print(None and (")
        .replace(".npy', mask)", ".npy', mask))")
    )
    given = {}
    exec(text, given)
    sizes = {"base_feat_dim": 5, "base_out_dim": 6, "tem_feat_dim": 6, "tem_hidden_dim": 7, "pem_feat_dim": 6}
    sizes |= {"pem_hidden_dim": 0, "pem_u_ratio_m": 1, "pem_u_ratio_l": 1, "pem_sample_num": SAMPLES}
    net = execute(root / "models.py").BMN(sizes | {"bm_mask": given["mask"]})
    net.pem_model.BMlayer.bm_mask = net.pem_model.BMlayer.bm_mask.double()
    x = wave((2, 5, MOMENTS))
    net = waved_in_use(net, x)
    with torch.no_grad():
        ends, spans = net(x)
    return {"proposals": [round(float(n), 8) for n in torch.cat((ends.flatten(), spans.flatten()))[::7]]}


class Backbone(nn.Module):
    """Four maps, each of half the rows and columns of the one before it, by convolutions, norms and a pool."""

    WIDTHS = (3, 4, 5, 6)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.BatchNorm2d(3))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(3, 1, 1))
            for a, b in zip((3, *self.WIDTHS), self.WIDTHS, strict=False)
        )

    def features(self, x):
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x, hierarchical=True):
        return self.features(x)

    def get_downsample_ratio(self):
        return 32

    def get_feature_map_channels(self):
        return list(self.WIDTHS)


def kept():
    """Which patches of two images of 96 × 96 are seen."""
    return torch.tensor([[1, 0, 0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 1, 0, 0]]).bool().view(2, 1, 3, 3)


def tokens():
    """What stands where patches are hidden, coarse to fine."""
    return [wave((1, width, 1, 1), width) for width in reversed(Backbone.WIDTHS)]


def masked(folder: Path):
    """What is drawn and its loss, weights as waves, as they are called."""
    stand_in("timm.models.layers", DropPath=None, trunc_normal_=lambda x, *_, **__: x)
    for name in ("timm", "timm.models", "utils"):
        stand_in(name)
    stand_in("utils.misc", is_pow2n=lambda _: True)
    root = folder / "SparK/pretrain"
    for name in ("encoder", "decoder", "spark"):
        sys.modules[name] = execute(root / f"{name}.py")
    encoder, parts = sys.modules["encoder"], sys.modules["spark"]
    decoder = sys.modules["decoder"].LightDecoder(32, 32, sbn=False)
    net = parts.SparK(encoder.SparseEncoder(Backbone(), 96), decoder)
    images = wave((2, 3, 96, 96))
    del net.mask_tokens
    net.mask_tokens = tokens()
    net = waved_in_use(net, images, kept())
    with torch.no_grad():
        return {"masked": net(images, kept()).item()}


def xyxy(x):
    """Sides of boxes by their middles, widths and heights."""
    half = x[..., 2:] / 2
    return torch.cat((x[..., :2] - half, x[..., :2] + half), -1)


def main(folder: str) -> None:
    values = gold_yolo(Path(folder)) | bgf_yolo(Path(folder))
    values |= tridet(Path(folder)) | proposals(Path(folder)) | masked(Path(folder))
    Path(__file__).with_suffix(".json").write_text(json.dumps(values) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
