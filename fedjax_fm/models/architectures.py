"""The shapes of well-known pretrained models, as their `config.json` give them, for
counting without weights.
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
    kind: dict[str, Any], d_model: int, d_ff: int, num_layers: int, num_heads: int
) -> dict[str, Any]:
    return {
        **kind,
        "d_model": d_model,
        "d_ff": d_ff,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "d_kv": 64,
    }


def _bert(
    model_type: str, width: int, layers: int, heads: int, **more: Any
) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return {"model_type": model_type, **sizes, "intermediate_size": 4 * width, **more}


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads}


def _llama(
    vocabulary: int,
    width: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    **more: Any,
):
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


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert-base-v2": _bert(
        "albert", 768, 12, 12, embedding_size=128, vocab_size=30000
    ),
    "bert-base-uncased": _bert("bert", 768, 12, 12),
    "bert-large-uncased": _bert("bert", 1024, 24, 16),
    "clip-vit-b32": {"model_type": "clip"},
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "flan-t5-small": _t5(_FLAN, 512, 1024, 8, 6),
    "flan-t5-base": _t5(_FLAN, 768, 2048, 12, 12),
    "flan-t5-large": _t5(_FLAN, 1024, 2816, 24, 16),
    "flan-t5-xl": _t5(_FLAN, 2048, 5120, 24, 32),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "llama-7b": _llama(32000, 4096, 11008, 32, 32, 32),
    "llama-2-7b": _llama(32000, 4096, 11008, 32, 32, 32, max_position_embeddings=4096),
    "llama-3-8b": _llama(
        128256, 4096, 14336, 32, 32, 8, max_position_embeddings=8192, rope_theta=5e5
    ),
    "llama-3.2-1b": _llama(
        128256,
        2048,
        8192,
        16,
        32,
        8,
        tie_word_embeddings=True,
        rope_theta=5e5,
        rope_scaling=_LLAMA3,
    ),
    "minilm-l6": _bert("bert", 384, 6, 12),
    "mistral-7b": _llama(32000, 4096, 14336, 32, 32, 8)
    | {"model_type": "mistral", "max_position_embeddings": 32768},
    "mistral-7b-v0.3": _llama(
        32768, 4096, 14336, 32, 32, 8, rope_theta=1e6, sliding_window=None
    )
    | {"model_type": "mistral", "max_position_embeddings": 32768},
    "qwen2.5-0.5b": _llama(
        151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True, rope_theta=1e6
    )
    | {"model_type": "qwen2", "max_position_embeddings": 32768},
    "qwen3-0.6b": _llama(
        151936,
        1024,
        3072,
        28,
        16,
        8,
        head_dim=128,
        tie_word_embeddings=True,
        rope_theta=1e6,
    )
    | {"model_type": "qwen3", "max_position_embeddings": 40960},
    "roberta-base": _bert("roberta", 768, 12, 12, **_ROBERTA),
    "roberta-large": _bert("roberta", 1024, 24, 16, **_ROBERTA),
    "smollm2-135m": _llama(
        49152, 576, 1536, 30, 9, 3, tie_word_embeddings=True, rope_theta=1e5
    )
    | {"max_position_embeddings": 8192},
    "t5-small": _t5(_T5_OLD, 512, 2048, 6, 8),
    "t5-base": _t5(_T5_OLD, 768, 3072, 12, 12),
    "t5-large": _t5(_T5_OLD, 1024, 4096, 24, 16),
    "tinyllama": _llama(32000, 2048, 5632, 22, 32, 4),
    "vit-b16": {"model_type": "vit"},
}

# The last part of hub ids, in lower case, and other usual names.
ALIASES = {
    "all-minilm-l6-v2": "minilm-l6",
    "bert-base": "bert-base-uncased",
    "bert-large": "bert-large-uncased",
    "clip-vit-base-patch32": "clip-vit-b32",
    "clip-vit-b-32": "clip-vit-b32",
    "distilbert-base": "distilbert-base-uncased",
    "llama-2-7b-chat-hf": "llama-2-7b",
    "llama-2-7b-hf": "llama-2-7b",
    "llama-3.2-1b-instruct": "llama-3.2-1b",
    "meta-llama-3-8b": "llama-3-8b",
    "meta-llama-3-8b-instruct": "llama-3-8b",
    "mistral-7b-instruct-v0.3": "mistral-7b-v0.3",
    "mistral-7b-v0.1": "mistral-7b",
    "qwen2.5-0.5b-instruct": "qwen2.5-0.5b",
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
    "distilbert": ("q_lin", "v_lin"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "roberta": ("query", "value"),
    "t5": ("q", "v"),
    "vit": ("query", "value"),
}


def architecture(name: str) -> dict[str, Any] | None:
    """The fields of the architecture of that name, alias or hub id; None if there is none."""
    last = name.rsplit("/", 1)[-1].lower()
    return ARCHITECTURES.get(ALIASES.get(last, last))
