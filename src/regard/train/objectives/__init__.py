"""Objectives of training: losses about attention, and what is done to a model while it learns."""

from regard.train.objectives.context_indicator import ContextIndicator
from regard.train.objectives.distillation import Distillation
from regard.train.objectives.head_mask import HeadMask
from regard.train.objectives.preplan_anchor import PreplanAnchor
from regard.train.objectives.sink_decorrelation import SinkDecorrelation

__all__ = ["ContextIndicator", "Distillation", "HeadMask", "PreplanAnchor", "SinkDecorrelation"]
