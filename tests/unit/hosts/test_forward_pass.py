"""What a pass says of its own modules is its own, also behind a pass inside it."""

from __future__ import annotations

import torch

from regard.hosts.forward_pass import PassTracker
from unit.hosts.models import causal


def test_what_a_pass_inside_was_given_is_not_said_of_the_modules_behind_it():
    """Two passes, of five tokens and inside of it of three, without a cache: each says its own number of new ones."""
    model = causal("Llama")
    tracker, layer, states = PassTracker(model, lambda done: None), model.model.layers[0], torch.zeros(1, 5, 24)
    tracker.enter(model, (), {"inputs_embeds": states})
    (outer,) = tracker.stack
    tracker.hand("before", listed=False)(layer, (states,), {})
    tracker.enter(model.model, (), {"inputs_embeds": states[:, :3]})
    tracker.hand("inside", listed=False)(layer, (states[:, :3],), {})
    tracker.leave(model.model, (), states)
    tracker.hand("behind", listed=False)(layer, (states,), {})
    tracker.leave(model, (), states)
    tracker.remove()
    assert {name: held.new for name, held in outer.handed.items()} == {"before": 5, "inside": 3, "behind": 5}
