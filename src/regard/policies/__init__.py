"""Cache policies, one a file: which keys and values a model's cache keeps. `core.policy` has the contract."""

from regard.core.policy import Policy, Reader, View
from regard.policies.adakv import AdaKV
from regard.policies.attended import Attendre
from regard.policies.gui_kv import GUIKV
from regard.policies.h2o import H2O
from regard.policies.hylra import HyLRA
from regard.policies.knorm import KNorm
from regard.policies.lazy import LazyEviction
from regard.policies.pages import Delta, Quest
from regard.policies.pyramid import PyramidKV
from regard.policies.simple import Coded, Full, Observing, Random
from regard.policies.snapkv import SnapKV
from regard.policies.streaming import Streaming
from regard.policies.task_kv import TaskKV
from regard.policies.tova import TOVA

__all__ = [
    "GUIKV",
    "H2O",
    "TOVA",
    "AdaKV",
    "Attendre",
    "Coded",
    "Delta",
    "Full",
    "HyLRA",
    "KNorm",
    "LazyEviction",
    "Observing",
    "Policy",
    "PyramidKV",
    "Quest",
    "Random",
    "Reader",
    "SnapKV",
    "Streaming",
    "TaskKV",
    "View",
]
