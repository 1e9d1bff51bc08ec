"""timm where there is no torchvision: stand-ins for the few names that it imports from there.

`timm` is installed with ``pip install --no-deps timm`` into the environment, or into the folder that the environment
variable ``REGARD_PEERS`` names.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from enum import Enum
from types import ModuleType

import pytest
from torch import nn


class Standing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves empty modules for torchvision and everything below it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: nothing(name)  # pyright: ignore[reportAttributeAccessIssue]
        return module

    def exec_module(self, module):
        module.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})
        module.InterpolationMode = Enum(
            "InterpolationMode", "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS"
        )


def nothing(name: str):
    """A class of this name, which is never used; private names are not there."""
    if name.startswith("_"):
        raise AttributeError(name)
    return type(name, (), {})


def timm() -> ModuleType:
    """timm, or the test is skipped."""
    folder = os.environ.get("REGARD_PEERS")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(Standing())
    return importlib.import_module("timm")
