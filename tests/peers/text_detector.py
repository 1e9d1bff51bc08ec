"""A trained network of the ONNX format, run node by node: the text detector that `rapidocr-onnxruntime` ships.

The wheel holds the weights, ``onnx`` reads them: ``pip install --no-deps --target FOLDER rapidocr-onnxruntime==1.4.4
onnx ml_dtypes protobuf``, and the environment variable ``REGARD_PEERS`` names the folder.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

MODEL = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
LATERALS = ("conv2d_135", "conv2d_141", "conv2d_147", "conv2d_153")
SMOOTH = ("conv2d_138", "conv2d_144", "conv2d_150", "conv2d_156")
"""The convolutions of its pyramid, fine to coarse; the two matrices of the gate behind each have the next numbers."""


class Detector:
    """Its nodes in order, and its weights by their names."""

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(path)).graph
        self.weights: dict[str, Tensor] = {}
        self.nodes = []
        for node in graph.node:
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                array = numpy_helper.to_array(given["value"]).copy()
                self.weights[node.output[0]] = torch.from_numpy(array)
            else:
                self.nodes.append((node.op_type, list(node.input), node.output[0], given))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Every map of the network, by its name; ``sigmoid_0.tmp_0`` is the probability of text."""
        found = {**self.weights, "x": images}
        for kind, inputs, output, given in self.nodes:
            found[output] = RUN[kind](given, *(found[name] for name in inputs))
        return found

    def reads(self, weight: str) -> str:
        """The map that a convolution reads."""
        return next(inputs[0] for kind, inputs, _, _ in self.nodes if kind == "Conv" and inputs[1] == weight)

    def behind(self, weight: str) -> str:
        """The map that comes of a convolution and the gate behind it: the sum with what it weighs."""
        output = next(out for kind, inputs, out, _ in self.nodes if kind == "Conv" and inputs[1] == weight)
        return next(out for kind, inputs, out, _ in self.nodes if kind == "Add" and inputs[0] == output)


def convolved(given: dict, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, given["strides"], given["pads"][:2], groups=given["group"])


def normed(given: dict, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, eps=given["epsilon"])


def grown(given: dict, x: Tensor, *rest: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=tuple(rest[-1][2:].tolist()), mode="nearest")


RUN = {
    "Add": lambda given, a, b: a + b,
    "Mul": lambda given, a, b: a * b,
    "Div": lambda given, a, b: a / b,
    "Clip": lambda given, x, low, high: x.clamp(low, high),
    "Relu": lambda given, x: x.relu(),
    "Sigmoid": lambda given, x: x.sigmoid(),
    "HardSigmoid": lambda given, x: (given["alpha"] * x + given["beta"]).clamp(0, 1),
    "GlobalAveragePool": lambda given, x: x.mean((2, 3), keepdim=True),
    "Concat": lambda given, *parts: torch.cat(parts, given["axis"]),
    "Conv": convolved,
    "ConvTranspose": lambda given, x, weight: F.conv_transpose2d(x, weight, stride=given["strides"]),
    "BatchNormalization": normed,
    "Resize": grown,
}
"""What each of its operations does."""


@cache
def detector() -> Detector:
    """The trained network, or the test is skipped."""
    folder = Path(os.environ.get("REGARD_PEERS", "."))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    if not (folder / MODEL).is_file():
        pytest.skip("rapidocr-onnxruntime is not in the folder that REGARD_PEERS names")
    pytest.importorskip("onnx")
    return Detector(folder / MODEL)
