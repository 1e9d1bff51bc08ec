"""Writes boundary.json: what the authors' network of boundary attention makes of waves, with waves as weights.

    python tests/reference/boundary.py FOLDER        (JAX 0.10.2, Flax 0.12.8, ml_collections, einops)

FOLDER holds scenic/projects/boundary_attention of google-research/scenic. It is run with 64 bits.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference.waves import wave

SHAPE = (2, 3, 14, 17)


def weight(place: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight of this name in Flax's layout, so large that the image still shows in what comes out."""
    if len(shape) == 1:
        return 0.3 * wave(shape, 1 + place) + name.endswith("scale")
    return 2 * wave(shape, 1 + place) / (math.prod(shape) / shape[-1]) ** 0.5


def main() -> None:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import ml_collections
    from flax.traverse_util import flatten_dict, unflatten_dict

    sys.path.insert(0, sys.argv[1])
    from scenic.projects.boundary_attention.configs import boundary_attention_model_config as configs
    from scenic.projects.boundary_attention.helpers import get_input_opts, params2maps
    from scenic.projects.boundary_attention.loss_lib.boundary_attention_loss import BoundaryAttentionLoss
    from scenic.projects.boundary_attention.models.model_lib import boundary_attention_model_base as base

    model = configs.get_boundary_attention_model_config()
    model.opts.patchsize, model.opts.patch_scales = 5, [1, 3, 5]
    model.model_opts.init_opts.update(hidden_dim=8, token_conv_dim=7, channels_conv_dim=6, num_junction_mixer_blocks=2)
    refine = {"hidden_dim": 8, "niters": 2, "encoding_dim": 11, "num_transformer_layers": 2, "ps_token_dim": 4}
    model.model_opts.refine_opts.update(**refine, attention_patch_size=3, num_attention_heads=2)
    model.input_opts = get_input_opts.get_input_opts((*SHAPE[2:], 3), model.opts)
    config = ml_collections.ConfigDict({"model_name": "boundary_attention", "model": model})
    maps = params2maps.Params2Maps(model.opts, model.input_opts)
    unfold = maps.unfold
    maps.unfold = lambda image, side=5, stride=1: unfold(image, side, stride)  # theirs forgets the side in the loss
    network = base.BoundaryAttentionModelBase(config=config, params2maps=maps)
    image = jnp.asarray(wave(SHAPE).numpy())
    shapes = flatten_dict(network.init(jax.random.PRNGKey(0), image, train=False)["params"], sep=".")
    about = {name: tuple(each.shape) for name, each in shapes.items()}
    params = {name: jnp.asarray(weight(n, name, shape).numpy()) for n, (name, shape) in enumerate(about.items())}
    outputs = network.apply({"params": unflatten_dict(params, sep=".")}, image, train=False)
    keys = ("global_features", "global_distances", "global_boundaries")
    found = [
        [round(float(x), 9) for x in jnp.concatenate([each[key] for key in keys], 1).ravel()[::7]] for each in outputs
    ]
    distances = jnp.asarray(3 * wave((SHAPE[0], 1, *SHAPE[2:]), 0.4).abs().numpy())
    inside = jnp.asarray((wave((SHAPE[0], *SHAPE[2:], 1), 0.7) > 0).double().numpy())
    given = {"distances": distances, "iv_mask": inside, "clean_image": jnp.asarray(wave(SHAPE, 0.2).numpy())}
    loss = BoundaryAttentionLoss(config, maps).get_loss(outputs, given)
    told = {"state": about, "out": found, "loss": float(loss.sum(0).mean())}
    Path(__file__).with_suffix(".json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
