"""Modules under the names that they had in 0.1: importing one warns, and gives the module of today. Until 0.3."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "blocks.gates": "projections.gates",
    "blocks.implicit": "analysis.implicit_attention",
    "blocks.latent": "projections.latent",
    "blocks.layer_norm": "studies.layer_norm_expressivity",
    "blocks.mimetic": "studies.mimetic_init",
    "blocks.mixture": "projections.mixture",
    "blocks.nexus": "projections.nexus",
    "blocks.ode": "networks.neural_ode.solver",
    "blocks.planted": "studies.softmax_vs_linear",
    "blocks.projection": "projections.base",
    "blocks.projections": "projections.shared",
    "blocks.rank": "studies.head_rank",
    "blocks.relational": "projections.relational",
    "blocks.rotary": "projections.rotary",
    "blocks.short_long": "networks.lightning.chela_block",
    "blocks.shortcuts": "networks.layerwise_shortcuts.depth_attention",
    "blocks.skim": "networks.skimformer.attention",
    "blocks.transnormer": "networks.lightning.transnormer_block",
    "blocks.values": "projections.values_only",
    "compare.cell": "experiments.cell",
    "compare.clock": "experiments.timing",
    "compare.growth": "compare.scaling",
    "compare.query": "experiments.query",
    "compare.run": "experiments.run",
    "compare.store": "experiments.store",
    "compare.subjects": "compare.workloads",
    "compare.swapped": "compare.swap_report",
    "compare.text": "compare.parsing",
    "compare.trials": "compare.task_settings",
    "core.laws": "laws",
    "core.laws.calls": "laws.mechanism.calls",
    "core.laws.equation": "laws.mechanism.equation",
    "core.laws.order": "laws.mechanism.order",
    "core.laws.subject": "laws.mechanism.subject",
    "experiments.clock": "experiments.timing",
    "hosts.call": "hosts.softmax_call",
    "hosts.follow": "hosts.recurrent_hooks",
    "hosts.implied": "hosts.mechanism_call",
    "hosts.interface": "hosts.attention_interface",
    "hosts.kept": "hosts.state_cache",
    "hosts.lait": "hosts.bert.lait",
    "hosts.own": "hosts.lm_session",
    "hosts.passes": "hosts.forward_pass",
    "hosts.scans": "hosts.recurrent_layers",
    "hosts.skim": "hosts.bert.skim_mask",
    "kernels.alone": "kernels.packing",
    "mechanisms.linear.dynamics": "studies.linear_dynamics",
    "mechanisms.linear.series": "mechanisms.linear.taylor_features",
    "mechanisms.scored.biases": "mechanisms.scored.parts.biases",
    "mechanisms.scored.cache": "mechanisms.cached",
    "mechanisms.scored.normalisers": "mechanisms.scored.parts.normalisers",
    "mechanisms.scored.readings": "studies.softmax_interpretations",
    "mechanisms.scored.scores": "mechanisms.scored.parts.scores",
    "networks.algorithm": "studies.number_network",
    "networks.broadcast": "networks.vision.broadcast",
    "networks.chela": "networks.lightning.chela",
    "networks.l2vit": "networks.vision.l2vit",
    "networks.ode": "networks.neural_ode.vit",
    "networks.patterns": "networks.benchmark",
    "networks.shortcuts": "networks.layerwise_shortcuts.lm",
    "networks.skim": "networks.skimformer.network",
    "networks.transnormer": "networks.lightning.transnormer",
    "networks.twins": "networks.vision.twins",
    "networks.waves": "studies.wave_function",
    "plan.cascade": "studies.fusemax",
    "probes.folder": "records.format",
    "probes.means": "probes.head_statistics",
    "probes.record": "records.record",
    "probes.subject": "records.models",
    "probes.texts": "records.token_texts",
    "probes.tokens": "probes.token_statistics",
    "train.card": "train.tiny.card",
    "train.corpus": "train.tiny.corpus",
    "train.evaluate": "train.tiny.evaluate",
    "train.heads": "train.tiny.heads",
    "train.loop": "train.tiny.loop",
    "train.ngram": "train.tiny.ngram",
    "train.stages": "train.tiny.stages",
    "train.tokenizer": "train.tiny.tokenizer",
}
"""Former and present names, below ``regard``."""


class Renamed(MetaPathFinder, Loader):
    """Finds modules by their former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A specification that leads to the module of today, for former names alone."""
        known = fullname.removeprefix("regard.") in MODULES
        return ModuleSpec(fullname, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module of today in the place of the empty one, with a warning."""
        present = f"regard.{MODULES[module.__name__.removeprefix('regard.')]}"
        warnings.warn(f"{module.__name__} is now {present}; the old name goes in 0.3", DeprecationWarning, 2)
        sys.modules[module.__name__] = import_module(present)


def install() -> None:
    """Lets old names be imported."""
    if not any(isinstance(finder, Renamed) for finder in sys.meta_path):
        sys.meta_path.insert(0, Renamed())  # before a folder of the old name that holds nothing but caches
