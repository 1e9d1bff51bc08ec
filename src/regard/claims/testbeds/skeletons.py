"""Human poses by forward kinematics, and how a camera that is known sees them."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from regard.networks.pose_lifting import PARENTS

BONES = torch.tensor(
    [
        *([0.0, 0.0, 0.0], [0.13, 0.0, 0.0], [0.0, -0.45, 0.0], [0.0, -0.44, 0.0], [-0.13, 0.0, 0.0]),
        *([0.0, -0.45, 0.0], [0.0, -0.44, 0.0], [0.0, 0.23, 0.0], [0.0, 0.25, 0.0], [0.0, 0.12, 0.0]),
        *([0.0, 0.12, 0.0], [-0.15, 0.0, 0.0], [0.0, -0.28, 0.0], [0.0, -0.25, 0.0], [0.15, 0.0, 0.0]),
        *([0.0, -0.28, 0.0], [0.0, -0.25, 0.0]),
    ]
)
"""From its parent to each joint of a body that stands still, in metres."""
BEND = torch.tensor([0.0, 0.6, 0.8, 0.4, 0.6, 0.8, 0.4, 0.2, 0.2, 0.2, 0.3, 0.3, 1.0, 0.9, 0.3, 1.0, 0.9])
"""How far each joint's bone turns, standard deviation in radians about each axis."""
AWAY = 4.0


def turns(angles: Tensor) -> Tensor:
    """Rotations ``(…, 3, 3)`` about x, y and z, one after the other."""
    zero, one = torch.zeros_like(angles[..., 0]), torch.ones_like(angles[..., 0])
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    x = torch.stack([one, zero, zero, zero, cx, -sx, zero, sx, cx], -1)
    y = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], -1)
    z = torch.stack([cz, -sz, zero, sz, cz, zero, zero, zero, one], -1)
    rx, ry, rz = (part.unflatten(-1, (3, 3)) for part in (x, y, z))
    return rz @ ry @ rx


def poses(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """What a camera four metres away sees ``(b, 17, 2)``, focal length one, and joints about the pelvis ``(b, 17, 3)``.

    All bones turn with the bone that they hang from; bodies are larger or smaller by a tenth and turn about themselves.
    """
    angles = BEND[:, None] * torch.randn(count, len(PARENTS), 3, generator=generator)
    angles[:, 0] = torch.tensor([0.1, math.pi, 0.1]) * (2 * torch.rand(count, 3, generator=generator) - 1)
    local, size = turns(angles), 1 + 0.1 * torch.randn(count, 1, generator=generator)
    frames, joints = [local[:, 0]], [torch.zeros(count, 3)]
    for joint, parent in enumerate(PARENTS[1:], 1):
        frames.append(frames[parent] @ local[:, joint])
        joints.append(joints[parent] + size * (frames[joint] @ BONES[joint]))
    body = torch.stack(joints, 1)
    seen = body[..., :2] / (body[..., 2:] + AWAY)
    return seen, body
