"""Published models by their cards: parameters, active parameters and caches, each with its derivation."""

import pytest
import transformers

from regard.plan.config import from_config, matrices_of
from regard.plan.published import MODELS

CARDS = {
    # model: billions of parameters, of those without embedding and head, of those that one token passes
    "llama3-8b": (8.03, None, None),  # 8,030,261,248 numbers in the checkpoint
    "llama3-70b": (70.55, None, None),
    "llama3.1-405b": (405.85, None, None),
    "qwen2.5-72b": (72.7, 70.0, None),
    "qwen3-0.6b": (0.6, 0.44, None),
    "qwen3-1.7b": (1.72, 1.4, None),
    "qwen3-4b": (4.02, 3.6, None),
    "qwen3-8b": (8.2, 6.95, None),
    "qwen3-14b": (14.8, 13.2, None),
    "qwen3-32b": (32.8, 31.2, None),
    "qwen3-30b-a3b": (30.5, 29.9, 3.05),  # the card's 3.3 counts the embedding (0.31) too
    "qwen3-235b-a22b": (235, 234, 21.6),  # the card's 22 counts the embedding (0.62) too
    "qwen3-next-80b-a3b": (79.7, 79.0, None),
    "mixtral-8x7b": (46.7, None, 12.75),  # the paper's 12.9 counts the embedding (0.13) too
    "gemma3-4b": (3.88, 3.209, None),  # table 1 of the report (arXiv 2503.19786): 675 M of embedding
    "gemma3-12b": (11.77, 10.759, None),
    "gemma3-27b": (27.0, 25.6, None),
    "gpt-oss-20b": (20.91, None, 3.61),  # table 1 of the card (arXiv 2508.10925); the embedding is not active there
    "gpt-oss-120b": (116.83, None, 5.13),
    "mamba2-2.7b": (2.70, None, None),
    "deepseek-v3": (671, None, 36.7),  # the report's 37 counts the embedding (0.93) too
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_cards(name):
    total, inner, active = CARDS[name]
    shape = MODELS[name]
    assert shape.parameters / 1e9 == pytest.approx(total, rel=0.01)
    if inner is not None:
        assert (shape.parameters - shape.head * (2 - shape.tied)) / 1e9 == pytest.approx(inner, rel=0.02)
    if active is not None:
        assert shape.active / 1e9 == pytest.approx(active, rel=0.01)


def test_llama_by_hand():
    """128,256 · 4,096 twice, and in each of 32 layers 2 · 4,096² + 2 · 4,096 · 1,024 and 3 · 4,096 · 14,336."""
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert layer == 218_103_808
    assert MODELS["llama3-8b"].parameters == 2 * 525_336_576 + 32 * layer == 8_029_995_008


TOKEN_BYTES = {
    # Zhao et al., arXiv 2505.09343, table 1, in bfloat16
    "deepseek-v3": 70_272,  # 61 layers · (512 + 64) · 2
    "qwen2.5-72b": 327_680,  # 80 · 2 · 8 · 128 · 2
    "llama3.1-405b": 516_096,  # 126 · 2 · 8 · 128 · 2
    # by hand
    "gemma3-27b": 81_920,  # 10 of 62 layers see all: 10 · 2 · 16 · 128 · 2
    "qwen3-next-80b-a3b": 24_576,  # 12 of 48 layers have keys: 12 · 2 · 2 · 256 · 2
    "gpt-oss-120b": 36_864,  # 18 of 36 layers see all: 18 · 2 · 8 · 64 · 2
    "mamba2-2.7b": 0,
}


@pytest.mark.parametrize("name", TOKEN_BYTES)
def test_bytes_of_a_token(name):
    assert MODELS[name].token_bytes == TOKEN_BYTES[name]


def test_windows_bound_the_cache():
    """Of Gemma 3's 62 layers 52 keep 1,024 tokens: at 128k its cache is 5.96 times smaller than without windows."""
    full, local, token = 10, 52, 2 * 16 * 128 * 2
    want = token * (full * 131_072 + local * 1024)
    assert MODELS["gemma3-27b"].cache_bytes(131_072) == want == 11_173_625_856
    assert MODELS["gemma3-27b"].bounded_bytes == token * local * 1024
    assert MODELS["gemma3-27b"].cache_bytes(1000) == token * 62 * 1000
    assert 62 * token * 131_072 / want == pytest.approx(5.96, abs=0.005)


def test_states_do_not_grow():
    """Qwen3-Next keeps 32 · 128 · 128 numbers and 4 columns of 2 · 2,048 + 4,096 channels in each of 36 layers."""
    state = 36 * (32 * 128 * 128 + 4 * (2 * 16 * 128 + 32 * 128)) * 2
    assert MODELS["qwen3-next-80b-a3b"].bounded_bytes == state == 40_108_032
    assert MODELS["qwen3-next-80b-a3b"].cache_bytes(100_003) == state + 100_003 * 24_576
    assert MODELS["mamba2-2.7b"].cache_bytes(7) == 64 * (5120 * 128 + 4 * (5120 + 2 * 128)) * 2


QWEN3 = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936}
GEMMA3 = {"sliding_window": 1024, "vocab_size": 262_208}
CONFIGURATIONS = {
    "llama3-8b": (
        "LlamaConfig",
        {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128_256},
        (32, 4096, 32),
    ),
    "llama3-70b": (
        "LlamaConfig",
        {"intermediate_size": 28672, "num_key_value_heads": 8, "vocab_size": 128_256},
        (80, 8192, 64),
    ),
    "llama3.1-405b": (
        "LlamaConfig",
        {"intermediate_size": 53248, "num_key_value_heads": 8, "vocab_size": 128_256},
        (126, 16384, 128),
    ),
    "qwen2.5-72b": (
        "Qwen2Config",
        {"intermediate_size": 29568, "num_key_value_heads": 8, "vocab_size": 152_064},
        (80, 8192, 64),
    ),
    "qwen3-0.6b": ("Qwen3Config", QWEN3 | {"intermediate_size": 3072, "tie_word_embeddings": True}, (28, 1024, 16)),
    "qwen3-1.7b": ("Qwen3Config", QWEN3 | {"intermediate_size": 6144, "tie_word_embeddings": True}, (28, 2048, 16)),
    "qwen3-4b": ("Qwen3Config", QWEN3 | {"intermediate_size": 9728, "tie_word_embeddings": True}, (36, 2560, 32)),
    "qwen3-8b": ("Qwen3Config", QWEN3 | {"intermediate_size": 12288}, (36, 4096, 32)),
    "qwen3-14b": ("Qwen3Config", QWEN3 | {"intermediate_size": 17408}, (40, 5120, 40)),
    "qwen3-32b": ("Qwen3Config", QWEN3 | {"intermediate_size": 25600}, (64, 5120, 64)),
    "qwen3-30b-a3b": (
        "Qwen3MoeConfig",
        {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "head_dim": 128},
        (48, 2048, 32),
    ),
    "qwen3-235b-a22b": (
        "Qwen3MoeConfig",
        {"moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8, "head_dim": 128},
        (94, 4096, 64),
    ),
    "qwen3-next-80b-a3b": ("Qwen3NextConfig", {}, ()),
    "mixtral-8x7b": ("MixtralConfig", {}, ()),
    "gemma3-4b": (
        "Gemma3TextConfig",
        GEMMA3 | {"intermediate_size": 10240, "num_key_value_heads": 4, "head_dim": 256},
        (34, 2560, 8),
    ),
    "gemma3-12b": (
        "Gemma3TextConfig",
        GEMMA3 | {"intermediate_size": 15360, "num_key_value_heads": 8, "head_dim": 256},
        (48, 3840, 16),
    ),
    "gemma3-27b": (
        "Gemma3TextConfig",
        GEMMA3 | {"intermediate_size": 21504, "num_key_value_heads": 16, "head_dim": 128},
        (62, 5376, 32),
    ),
    "gpt-oss-20b": ("GptOssConfig", {"num_local_experts": 32}, (24, 2880, 64)),
    "gpt-oss-120b": ("GptOssConfig", {}, ()),
    "mamba2-2.7b": (
        "Mamba2Config",
        {"num_heads": 80, "hidden_size": 2560, "n_groups": 1, "vocab_size": 50_288, "tie_word_embeddings": True},
        (),
    ),
    "deepseek-v3": ("DeepseekV3Config", {}, ()),
}
"""The configurations as they were published; what is left out is Transformers' default. Last: layers, width, heads."""


def configuration(name):
    kind, sizes, shape = CONFIGURATIONS[name]
    named = dict(zip(("num_hidden_layers", "hidden_size", "num_attention_heads"), shape, strict=False))
    return getattr(transformers, kind)(**sizes, **named)


@pytest.mark.parametrize("name", MODELS)
def test_presets_are_their_configurations(name):
    """The preset and the shape that is read from the configuration agree, and their parameters are the model's."""
    config = configuration(name)
    read, preset = from_config(config), MODELS[name]
    for field in ("networks", "vocabulary", "tied", "parameters", "active", "token_bytes", "bounded_bytes"):
        assert getattr(read, field) == getattr(preset, field), field
    assert {mixer: count for count, mixer in read.mixers} == {mixer: count for count, mixer in preset.mixers}
    assert 0 <= matrices_of(config) - preset.parameters <= 1e-4 * preset.parameters
