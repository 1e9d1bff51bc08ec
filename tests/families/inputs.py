"""What a model's forward pass wants: inputs by the names of its arguments, tried in turn."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from families.shrink import TEXT

LENGTH, BATCH = 11, 2


def guesses(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """Inputs that the model may run on."""
    if model.config.model_type in GIVEN:
        yield GIVEN[model.config.model_type](model.config)
    accepted = list(inspect.signature(model.forward).parameters)
    main, config = model.main_input_name, model.config
    names = [name for name in SOURCES if name in accepted and (name == main or required(model, name))]
    names = names or [name for name in (main, *SOURCES) if name in accepted and name in SOURCES][:1]
    for choice in range(max((len(list(SOURCES[name](config))) for name in names), default=0)):
        given: dict[str, Tensor] = {}
        for name in names:
            options = list(SOURCES[name](config))
            given[name] = options[min(choice, len(options) - 1)]
        if "input_ids" in given and "attention_mask" in accepted:
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        decoding = config.is_encoder_decoder or "decoder_input_ids" in accepted
        if decoding and "decoder_input_ids" in accepted:
            given["decoder_input_ids"] = ids(LENGTH - 4, seed=5)
        yield given
        if "input_ids" in accepted and "input_ids" not in given:
            yield given | {"input_ids": ids(LENGTH)}
    several = [name for name in SOURCES if name in accepted and name not in ("inputs_embeds", "encoder_hidden_states")]
    for choice in range(4):
        options = {name: list(SOURCES[name](config)) for name in several}
        given = {name: found[min(choice, len(found) - 1)] for name, found in options.items()}
        yield given | ({"decoder_input_ids": ids(LENGTH - 4, seed=5)} if "decoder_input_ids" in accepted else {})


def required(model: PreTrainedModel, name: str) -> bool:
    """Whether the argument has no default."""
    return inspect.signature(model.forward).parameters[name].default is inspect.Parameter.empty


def ids(length: int, seed: int = 0, batch: int = BATCH) -> Tensor:
    """Token ids that are no special ones."""
    return torch.randint(3, TEXT, (batch, length), generator=torch.Generator().manual_seed(seed))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def named(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these fields that the configuration, or one inside it, has."""
    inside = [getattr(config, key, None) for key in config.sub_configs]
    for part in [config, *inside]:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def images(config: Any) -> Iterator[Tensor]:
    size = named(config, "image_size", "img_size", "input_size", default=64)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = named(config, "num_channels", "in_channels", "in_chans", default=3)
    for side in ((height, width), (64, 64), (224, 224)):
        yield noise(BATCH, channels, *side)


def videos(config: Any) -> Iterator[Tensor]:
    frames = named(config, "num_frames", "frames_per_clip", default=4)
    for image in images(config):
        yield image[:, None].expand(-1, frames, -1, -1, -1).contiguous()


def features(config: Any) -> Iterator[Tensor]:
    bins = named(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim", "mel_dim", default=80)
    frames = 2 * named(config, "max_source_positions", default=32)
    for shape in ((bins, frames), (frames, bins), (1, frames, bins), (frames, 160)):
        yield noise(BATCH, *shape)


def waves(config: Any) -> Iterator[Tensor]:
    channels = named(config, "audio_channels", default=1)
    for shape in ((6400,), (channels, 6400), (64, named(config, "num_mel_bins", default=80))):
        yield noise(BATCH, *shape)


def boxes(config: Any) -> Iterator[Tensor]:
    corners = torch.randint(0, 20, (BATCH, LENGTH, 4), generator=torch.Generator().manual_seed(2))
    yield torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:]], dim=2)


def series(config: Any) -> Iterator[Tensor]:
    length = named(config, "context_length", default=32)
    yield noise(BATCH, length, named(config, "num_input_channels", default=1))


def text(config: Any) -> Iterator[Tensor]:
    yield ids(LENGTH)


def hidden(config: Any) -> Iterator[Tensor]:
    yield noise(BATCH, LENGTH, named(config, "encoder_hidden_size", "hidden_size", "d_model", default=64))


def pictures(config: Any) -> Iterator[Tensor]:
    """Images, and for models of videos frames of them."""
    yield from images(config)
    yield from videos(config)


def timed(config: Any) -> dict[str, Tensor]:
    """A series with what is known of its times, past and future."""
    past, features = config.context_length + max(config.lags_sequence), config.num_time_features
    return {
        "past_values": noise(BATCH, past),
        "past_time_features": noise(BATCH, past, features),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": noise(BATCH, config.prediction_length),
        "future_time_features": noise(BATCH, config.prediction_length, features),
    }


def patches(config: Any) -> dict[str, Tensor]:
    """Texts, and images as rows of 2 × 2 patches."""
    width = 3 * config.vision_config.patch_size**2
    return {
        "input_ids": ids(LENGTH),
        "pixel_values": noise(BATCH, 4, width),
        "pixel_attention_mask": torch.ones(BATCH, 4, dtype=torch.long),
        "spatial_shapes": torch.full((BATCH, 2), 2),
    }


def grounded(config: Any) -> dict[str, Tensor]:
    """An image whose embeddings stand at the first tokens of the text."""
    place = torch.zeros(BATCH, LENGTH + config.latent_query_num, dtype=torch.long)
    place[:, 1 : 1 + config.latent_query_num] = 1
    return {
        "pixel_values": next(images(config)),
        "input_ids": ids(LENGTH + config.latent_query_num),
        "image_embeds_position_mask": place,
    }


SOURCES = {
    "input_ids": text,
    "pixel_values": pictures,
    "pixel_values_videos": videos,
    "input_features": features,
    "input_values": waves,
    "audio_values": waves,
    "bbox": boxes,
    "past_values": series,
    "context_values": series,
    "inputs": text,
    "query_embeds": hidden,
    "inputs_embeds": hidden,
    "encoder_hidden_states": hidden,
}
"""How each argument is made from a configuration."""
GIVEN = {
    "autoformer": timed,
    "informer": timed,
    "time_series_transformer": timed,
    "siglip2": patches,
    "kosmos-2": grounded,
    "xclip": lambda config: {"input_ids": ids(LENGTH), "pixel_values": next(videos(config.vision_config))},
    "idefics": lambda config: {
        "input_ids": ids(LENGTH),
        "pixel_values": next(images(config))[:, None],
        "image_attention_mask": torch.ones(BATCH, LENGTH, 1, dtype=torch.long),
    },
    "clap": lambda config: {
        "input_ids": ids(LENGTH),
        "input_features": noise(BATCH, 1, 60, config.audio_config.num_mel_bins),
    },
    "lxmert": lambda config: {
        "input_ids": ids(LENGTH),
        "visual_feats": noise(BATCH, 5, config.visual_feat_dim),
        "visual_pos": noise(BATCH, 5, config.visual_pos_dim),
    },
    "musicgen_decoder": lambda config: {"input_ids": ids(LENGTH, batch=BATCH * config.num_codebooks)},
    "musicgen_melody_decoder": lambda config: {"input_ids": ids(LENGTH, batch=BATCH * config.num_codebooks)},
    "audio-spectrogram-transformer": lambda config: {
        "input_values": noise(BATCH, config.max_length, config.num_mel_bins)
    },
}
"""Inputs of some model types that their arguments' names do not tell."""
