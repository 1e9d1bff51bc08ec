"""The model families of the installed Transformers: its folders, and the class that stands for each."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HEADS = (
    "MODEL_FOR_CAUSAL_LM",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
    "MODEL_FOR_MULTIMODAL_LM",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ",
    "MODEL_FOR_TEXT_TO_WAVEFORM",
    "MODEL_FOR_TEXT_TO_SPECTROGRAM",
    "MODEL",
    "MODEL_FOR_BACKBONE",
    "MODEL_FOR_DEPTH_ESTIMATION",
    "MODEL_FOR_OBJECT_DETECTION",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION",
    "MODEL_FOR_INSTANCE_SEGMENTATION",
    "MODEL_FOR_MASK_GENERATION",
    "MODEL_FOR_TEXT_RECOGNITION",
    "MODEL_FOR_KEYPOINT_DETECTION",
    "MODEL_FOR_KEYPOINT_MATCHING",
    "MODEL_FOR_RETRIEVAL",
)
"""Which of its classes stands for a family: the first that it has of Transformers' own lists."""


@dataclass(frozen=True)
class Candidate:
    """One model type of a family: its configuration, and the class that is built from it."""

    config: type[transformers.PreTrainedConfig]
    model: str


def families() -> dict[str, list[Candidate]]:
    """By folder of Transformers, the model types to try in order: first the one that is called like the folder."""
    found: dict[str, list[Candidate]] = defaultdict(list)
    for kind in CONFIG_MAPPING:
        config = CONFIG_MAPPING[kind]
        folder = config.__module__.split(".")[2]
        model = class_of(kind)
        if model is not None:
            found[folder].append(Candidate(config, model))
    return {folder: sorted(found[folder], key=lambda one: rank(folder, one)) for folder in sorted(found)}


def class_of(kind: str) -> str | None:
    """The class that stands for a model type, None where Transformers lists none."""
    for head in HEADS:
        name = getattr(modeling_auto, f"{head}_MAPPING_NAMES").get(kind)
        if name is not None:
            return name if isinstance(name, str) else name[0]
    return None


def rank(folder: str, candidate: Candidate) -> tuple[bool, bool, str]:
    """The order of the candidates within a folder: what is called like it, the part that reads text, the others."""
    kind = candidate.config.model_type
    return kind.replace("-", "_") != folder, not kind.endswith("_text"), kind
