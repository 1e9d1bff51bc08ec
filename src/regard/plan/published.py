"""Sizes of published models, as their configurations have them."""

from __future__ import annotations

from regard.plan.mixers import GroupedAttention, LatentAttention, Recurrence
from regard.plan.roofline import ModelShape, Network


def dense(
    layers: int, width: int, heads: int, kv_heads: int, head_dim: int, inner: int, vocabulary: int, tied: bool = False
) -> ModelShape:
    """Layers of grouped attention to all tokens and gated networks."""
    attention = GroupedAttention(width, heads, kv_heads, head_dim)
    return ModelShape(((layers, attention),), ((layers, Network(width, inner)),), vocabulary, tied)


def qwen3(layers: int, width: int, heads: int, inner: int, tied: bool = False) -> ModelShape:
    """One of the dense Qwen3 models: 8 kv heads of 128."""
    return dense(layers, width, heads, 8, 128, inner, 151_936, tied)


def qwen3_experts(layers: int, width: int, heads: int, inner: int) -> ModelShape:
    """One of the sparse Qwen3 models: 4 kv heads of 128, 8 of 128 experts."""
    attention = GroupedAttention(width, heads, 4, 128)
    return ModelShape(((layers, attention),), ((layers, Network(width, inner, 128, 8)),), 151_936)


def gemma3(full: int, local: int, window: int, attention: tuple[int, int, int, int], inner: int) -> ModelShape:
    """The text model of one of the Gemma 3: of six layers five see a window. ``attention`` as of `GroupedAttention`."""
    mixers = ((local, GroupedAttention(*attention, window=window)), (full, GroupedAttention(*attention)))
    return ModelShape(mixers, ((full + local, Network(attention[0], inner)),), 262_208, tied=True)


def gpt_oss(layers: int, experts: int) -> ModelShape:
    """One of the gpt-oss: every other layer sees a window of 128."""
    local, full = (GroupedAttention(2880, 64, 8, 64, window=window) for window in (128, None))
    mixers = ((layers // 2, local), (layers // 2, full))
    return ModelShape(mixers, ((layers, Network(2880, 2880, experts, 4)),), 201_088)


MODELS = {
    "qwen3-0.6b": qwen3(28, 1024, 16, 3072, tied=True),
    "qwen3-1.7b": qwen3(28, 2048, 16, 6144, tied=True),
    "qwen3-4b": qwen3(36, 2560, 32, 9728, tied=True),
    "qwen3-8b": qwen3(36, 4096, 32, 12288),
    "qwen3-14b": qwen3(40, 5120, 40, 17408),
    "qwen3-32b": qwen3(64, 5120, 64, 25600),
    "qwen3-30b-a3b": qwen3_experts(48, 2048, 32, 768),
    "qwen3-235b-a22b": qwen3_experts(94, 4096, 64, 1536),
    "qwen3-next-80b-a3b": ModelShape(
        (
            (36, Recurrence.delta(2048, key_heads=16, heads=32, key_dim=128, value_dim=128, kernel=4)),
            (12, GroupedAttention(2048, 16, 2, 256, gated=True)),
        ),
        ((48, Network(2048, 512, 512, 10, shared=512)),),
        151_936,
    ),
    "llama3-8b": dense(32, 4096, 32, 8, 128, 14336, 128_256),
    "llama3-70b": dense(80, 8192, 64, 8, 128, 28672, 128_256),
    "llama3.1-405b": dense(126, 16384, 128, 8, 128, 53248, 128_256),
    "qwen2.5-72b": dense(80, 8192, 64, 8, 128, 29568, 152_064),
    "mixtral-8x7b": ModelShape(
        ((32, GroupedAttention(4096, 32, 8, 128)),), ((32, Network(4096, 14336, 8, 2)),), 32_000
    ),
    "gemma3-4b": gemma3(5, 29, 1024, (2560, 8, 4, 256), 10240),
    "gemma3-12b": gemma3(8, 40, 1024, (3840, 16, 8, 256), 15360),
    "gemma3-27b": gemma3(10, 52, 1024, (5376, 32, 16, 128), 21504),
    "gpt-oss-20b": gpt_oss(24, 32),
    "gpt-oss-120b": gpt_oss(36, 128),
    "mamba2-2.7b": ModelShape(
        ((64, Recurrence.mamba2(2560, heads=80, head_dim=64, groups=1, state=128, kernel=4)),), (), 50_288, tied=True
    ),
    "deepseek-v3": ModelShape(
        ((61, LatentAttention(7168, 128, 1536, 512, 128, 64, 128)),),
        ((3, Network(7168, 18432)), (58, Network(7168, 2048, 256, 8, shared=2048))),
        129_280,
    ),
}
"""By name."""
