"""The shapes of well-known pretrained models, for counting without weights.

The fields are those of each model's `config.json`.
"""

from typing import Any

_ROBERTA = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
_T5_OLD = {
    "model_type": "t5",
    "vocab_size": 32128,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}
_FLAN = {
    "model_type": "t5",
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}


def _t5(
    kind: dict[str, Any], *, d_model: int, d_ff: int, num_layers: int, num_heads: int
) -> dict[str, Any]:
    """The fields of a T5 of that kind."""
    return {
        **kind,
        "d_model": d_model,
        "d_ff": d_ff,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "d_kv": 64,
    }


def _bert(
    model_type: str, *, width: int, layers: int, heads: int, **more: Any
) -> dict[str, Any]:
    """The fields of a BERT, an ALBERT or a RoBERTa."""
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return {"model_type": model_type, **sizes, "intermediate_size": 4 * width, **more}


def _gpt2(*, width: int, layers: int, heads: int) -> dict[str, Any]:
    """The fields of a GPT-2."""
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads}


def _llama(
    *,
    vocabulary: int,
    width: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    **more: Any,
):
    """The fields of a decoder of the Llama family."""
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


def _whisper(*, width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """The fields of a multilingual Whisper, its decoder like its encoder."""
    sizes = {}
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = layers
        sizes[f"{side}_attention_heads"] = heads
        sizes[f"{side}_ffn_dim"] = 4 * width
    return {
        "model_type": "whisper",
        "vocab_size": 51865,
        "d_model": width,
        **sizes,
        "pad_token_id": 50257,
        "decoder_start_token_id": 50258,
        **more,
    }


def _gemma3(*, width: int, inner: int, layers: int) -> dict[str, Any]:
    """The fields of a Gemma 3 without a tower for images."""
    return {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "max_position_embeddings": 32768,
    }


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert-base-v2": _bert(
        "albert", width=768, layers=12, heads=12, embedding_size=128, vocab_size=30000
    ),
    "bert-base-uncased": _bert("bert", width=768, layers=12, heads=12),
    "bert-large-uncased": _bert("bert", width=1024, layers=24, heads=16),
    "clip-vit-b32": {"model_type": "clip"},
    "dinov2-small": {
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_attention_heads": 6,
        "image_size": 518,
    },
    "dinov2-base": {"model_type": "dinov2", "image_size": 518},
    "dinov2-large": {
        "model_type": "dinov2",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 518,
    },
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "flan-t5-small": _t5(_FLAN, d_model=512, d_ff=1024, num_layers=8, num_heads=6),
    "flan-t5-base": _t5(_FLAN, d_model=768, d_ff=2048, num_layers=12, num_heads=12),
    "flan-t5-large": _t5(_FLAN, d_model=1024, d_ff=2816, num_layers=24, num_heads=16),
    "flan-t5-xl": _t5(_FLAN, d_model=2048, d_ff=5120, num_layers=24, num_heads=32),
    "gemma-3-270m": _gemma3(width=640, inner=2048, layers=18),
    "gemma-3-1b": _gemma3(width=1152, inner=6912, layers=26),
    "gpt2": _gpt2(width=768, layers=12, heads=12),
    "gpt2-medium": _gpt2(width=1024, layers=24, heads=16),
    "gpt2-large": _gpt2(width=1280, layers=36, heads=20),
    "gpt2-xl": _gpt2(width=1600, layers=48, heads=25),
    "llama-7b": _llama(
        vocabulary=32000, width=4096, inner=11008, layers=32, heads=32, kv_heads=32
    ),
    "llama-2-7b": _llama(
        vocabulary=32000,
        width=4096,
        inner=11008,
        layers=32,
        heads=32,
        kv_heads=32,
        max_position_embeddings=4096,
    ),
    "llama-3-8b": _llama(
        vocabulary=128256,
        width=4096,
        inner=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        max_position_embeddings=8192,
        rope_theta=5e5,
    ),
    "llama-3-70b": _llama(
        vocabulary=128256,
        width=8192,
        inner=28672,
        layers=80,
        heads=64,
        kv_heads=8,
        max_position_embeddings=8192,
        rope_theta=5e5,
    ),
    "llama-3.2-1b": _llama(
        vocabulary=128256,
        width=2048,
        inner=8192,
        layers=16,
        heads=32,
        kv_heads=8,
        tie_word_embeddings=True,
        rope_theta=5e5,
        rope_scaling=_LLAMA3,
    ),
    "minilm-l6": _bert("bert", width=384, layers=6, heads=12),
    "mistral-7b": _llama(
        vocabulary=32000, width=4096, inner=14336, layers=32, heads=32, kv_heads=8
    )
    | {"model_type": "mistral", "max_position_embeddings": 32768},
    "mistral-7b-v0.3": _llama(
        vocabulary=32768,
        width=4096,
        inner=14336,
        layers=32,
        heads=32,
        kv_heads=8,
        rope_theta=1e6,
        sliding_window=None,
    )
    | {"model_type": "mistral", "max_position_embeddings": 32768},
    "qwen2.5-0.5b": _llama(
        vocabulary=151936,
        width=896,
        inner=4864,
        layers=24,
        heads=14,
        kv_heads=2,
        tie_word_embeddings=True,
        rope_theta=1e6,
    )
    | {"model_type": "qwen2", "max_position_embeddings": 32768},
    "qwen2.5-1.5b": _llama(
        vocabulary=151936,
        width=1536,
        inner=8960,
        layers=28,
        heads=12,
        kv_heads=2,
        tie_word_embeddings=True,
        rope_theta=1e6,
    )
    | {"model_type": "qwen2", "max_position_embeddings": 32768},
    "qwen2.5-7b": _llama(
        vocabulary=152064,
        width=3584,
        inner=18944,
        layers=28,
        heads=28,
        kv_heads=4,
        rope_theta=1e6,
    )
    | {"model_type": "qwen2", "max_position_embeddings": 32768},
    "qwen3-0.6b": _llama(
        vocabulary=151936,
        width=1024,
        inner=3072,
        layers=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        rope_theta=1e6,
    )
    | {"model_type": "qwen3", "max_position_embeddings": 40960},
    "roberta-base": _bert("roberta", width=768, layers=12, heads=12, **_ROBERTA),
    "roberta-large": _bert("roberta", width=1024, layers=24, heads=16, **_ROBERTA),
    "smollm2-135m": _llama(
        vocabulary=49152,
        width=576,
        inner=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        tie_word_embeddings=True,
        rope_theta=1e5,
    )
    | {"max_position_embeddings": 8192},
    "t5-small": _t5(_T5_OLD, d_model=512, d_ff=2048, num_layers=6, num_heads=8),
    "t5-base": _t5(_T5_OLD, d_model=768, d_ff=3072, num_layers=12, num_heads=12),
    "t5-large": _t5(_T5_OLD, d_model=1024, d_ff=4096, num_layers=24, num_heads=16),
    "tinyllama": _llama(
        vocabulary=32000, width=2048, inner=5632, layers=22, heads=32, kv_heads=4
    ),
    "vit-b16": {"model_type": "vit"},
    "whisper-tiny": _whisper(width=384, layers=4, heads=6),
    "whisper-base": _whisper(width=512, layers=6, heads=8),
    "whisper-small": _whisper(width=768, layers=12, heads=12),
    "whisper-medium": _whisper(width=1024, layers=24, heads=16),
    "whisper-large-v3": _whisper(
        width=1280, layers=32, heads=20, num_mel_bins=128, vocab_size=51866
    ),
}

# The last part of hub ids, in lower case, and other usual names.
ALIASES = {
    "all-minilm-l6-v2": "minilm-l6",
    "bert-base": "bert-base-uncased",
    "bert-large": "bert-large-uncased",
    "clip-vit-base-patch32": "clip-vit-b32",
    "clip-vit-b-32": "clip-vit-b32",
    "distilbert-base": "distilbert-base-uncased",
    "gemma-3-1b-it": "gemma-3-1b",
    "gemma-3-1b-pt": "gemma-3-1b",
    "gemma-3-270m-it": "gemma-3-270m",
    "llama-2-7b-chat-hf": "llama-2-7b",
    "llama-2-7b-hf": "llama-2-7b",
    "llama-3.2-1b-instruct": "llama-3.2-1b",
    "meta-llama-3-8b": "llama-3-8b",
    "meta-llama-3-8b-instruct": "llama-3-8b",
    "mistral-7b-instruct-v0.3": "mistral-7b-v0.3",
    "mistral-7b-v0.1": "mistral-7b",
    "meta-llama-3-70b": "llama-3-70b",
    "meta-llama-3-70b-instruct": "llama-3-70b",
    "qwen2.5-0.5b-instruct": "qwen2.5-0.5b",
    "qwen2.5-1.5b-instruct": "qwen2.5-1.5b",
    "qwen2.5-7b-instruct": "qwen2.5-7b",
    "smollm2-135m-instruct": "smollm2-135m",
    "tinyllama-1.1b": "tinyllama",
    "tinyllama-1.1b-chat-v1.0": "tinyllama",
    "vit-base-patch16-224": "vit-b16",
    "vit-base-patch16-224-in21k": "vit-b16",
}

# What LoRA adapts where nothing else is said: query and value, as HF PEFT does.
DEFAULT_TARGETS = {
    "albert": ("query", "value"),
    "bert": ("query", "value"),
    "clip": ("q_proj", "v_proj"),
    "dinov2": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "gemma3_text": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "roberta": ("query", "value"),
    "t5": ("q", "v"),
    "vit": ("query", "value"),
    "whisper": ("q_proj", "v_proj"),
}


def architecture(name: str) -> dict[str, Any] | None:
    """The fields of a well-known architecture.

    Args:
      name: its name, an alias or a hub id; upper and lower case are the same.

    Returns:
      The fields of its config.json, or None if it is not known here.

    Example:
      >>> architecture("meta-llama/Meta-Llama-3-8B")["num_key_value_heads"]
      8
    """
    last = name.rsplit("/", 1)[-1].lower()
    return ARCHITECTURES.get(ALIASES.get(last, last))
