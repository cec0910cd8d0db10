"""Tiny random models of transformers, saved and read by us, with the inputs on which
both are compared.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

TEXT = {
    "vocab_size": 101,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TEXT |= {"intermediate_size": 24, "max_position_embeddings": 24}
LLAMA = {
    **TEXT,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LLAMA3 |= {"original_max_position_embeddings": 16}
GEMMA3 = {
    **LLAMA,
    "num_hidden_layers": 3,
    "head_dim": 6,
    "query_pre_attn_scalar": 10,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
T5 = {
    "vocab_size": 101,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
T5 |= {
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "decoder_start_token_id": 0,
}
GPT2 = {
    "vocab_size": 101,
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 32,
    "eos_token_id": 0,
}
GPT2 |= {"bos_token_id": 0, "pad_token_id": 0, "activation_function": "gelu_new"}
IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
IMAGE |= {"image_size": 12, "patch_size": 4}
DINOV2 = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 12,
    "patch_size": 4,
}
WHISPER = {
    "vocab_size": 101,
    "num_mel_bins": 6,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 20,
    "max_source_positions": 9,
    "max_target_positions": 24,
    "classifier_proj_size": 5,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
    "begin_suppress_tokens": None,
}
TOWERS = {
    "text_config": {**TEXT, "num_hidden_layers": 2, "eos_token_id": 100},
    "vision_config": {**IMAGE, "hidden_size": 24, "num_hidden_layers": 2},
    "projection_dim": 6,
}


class Case(NamedTuple):
    """One architecture."""

    model: str  # class of transformers
    config: dict[str, Any]
    inputs: Callable[[], dict[str, np.ndarray]]
    num_labels: int | None = None
    hidden: str | None = None  # module of both that gives hidden states


def text(
    length: int = 11, left: bool = False, pad: int | None = None, end: int | None = None
) -> dict[str, np.ndarray]:
    """Three rows, two of them padded; `pad` is put where there is none, `end` as each
    row's last real token.
    """
    rng = np.random.default_rng(0)
    ids, mask = (
        rng.integers(5, 99, (3, length)).astype(np.int32),
        np.ones((3, length), np.int32),
    )
    for row, n_real in enumerate((length, length - 4, 2)):
        mask[row, : length - n_real] = not left
        mask[row, n_real:] = left or n_real == length
        if left:
            mask[row, : length - n_real] = 0
        if end is not None:
            ids[row, -1 if left else n_real - 1] = end
    return {
        "input_ids": ids
        if pad is None
        else np.where(mask == 1, ids, pad).astype(np.int32),
        "attention_mask": mask,
    }


def pixels() -> dict[str, np.ndarray]:
    return {
        "pixel_values": np.random.default_rng(1)
        .normal(size=(2, 3, 12, 12))
        .astype(np.float32)
    }


def wide_pixels() -> dict[str, np.ndarray]:
    """Images of another size than the table of positions is for, not square."""
    random = np.random.default_rng(1)
    return {"pixel_values": random.normal(size=(2, 3, 12, 28)).astype(np.float32)}


def sound() -> dict[str, np.ndarray]:
    """Windows of the only length that transformers takes."""
    random = np.random.default_rng(1)
    shape = (3, WHISPER["num_mel_bins"], 2 * WHISPER["max_source_positions"])
    return {"input_features": random.normal(size=shape).astype(np.float32)}


def transcription() -> dict[str, np.ndarray]:
    """Sound and texts of different lengths, padded on the right."""
    texts = {f"decoder_{name}": array for name, array in text(pad=0).items()}
    return {**sound(), **texts}


def translation(**how: Any) -> dict[str, np.ndarray]:
    targets = np.random.default_rng(2).integers(5, 99, (3, 14)).astype(np.int32)
    targets[:, 0] = 0
    return {**text(**how), "decoder_input_ids": targets}


ENCODERS = {
    "roberta": Case(
        model="RobertaForSequenceClassification",
        config={**TEXT, "type_vocab_size": 1},
        inputs=lambda: text(pad=1),
        num_labels=3,
        hidden="roberta",
    ),
    "roberta-left": Case(
        model="RobertaModel",
        config={**TEXT, "type_vocab_size": 1},
        inputs=lambda: text(left=True, pad=1),
    ),
    "distilbert": Case(
        model="DistilBertForSequenceClassification",
        config={
            "vocab_size": 101,
            "dim": 16,
            "n_heads": 4,
            "n_layers": 3,
            "hidden_dim": 24,
            "max_position_embeddings": 24,
        },
        inputs=lambda: text(length=24),
        num_labels=3,
        hidden="distilbert",
    ),
    "albert": Case(
        model="AlbertForSequenceClassification",
        config={**TEXT, "embedding_size": 8},
        inputs=lambda: text(),
        num_labels=3,
        hidden="albert",
    ),
    "vit": Case(
        model="ViTForImageClassification",
        config=IMAGE,
        inputs=pixels,
        num_labels=3,
        hidden="vit",
    ),
    "dinov2": Case(
        model="Dinov2ForImageClassification",
        config=DINOV2,
        inputs=pixels,
        num_labels=3,
        hidden="dinov2",
    ),
    "dinov2-other-size": Case(
        model="Dinov2ForImageClassification",
        config={**DINOV2, "image_size": 20},
        inputs=wide_pixels,
        num_labels=3,
        hidden="dinov2",
    ),
    "whisper-classifier": Case(
        model="WhisperForAudioClassification",
        config=WHISPER,
        inputs=sound,
        num_labels=3,
        hidden="encoder",
    ),
    "clip": Case(
        model="CLIPModel", config=TOWERS, inputs=lambda: text(end=100) | pixels()
    ),
    "clip-classifier": Case(
        model="CLIPForImageClassification",
        config=TOWERS,
        inputs=pixels,
        num_labels=3,
        hidden="vision_model",
    ),
}
DECODERS = {
    "gemma3": Case(
        model="Gemma3ForCausalLM",
        config={**GEMMA3, "final_logit_softcapping": 5.0},
        inputs=lambda: text(length=40),
        num_labels=None,
        hidden="model",
    ),
    "gemma3-classifier": Case(
        model="Gemma3TextForSequenceClassification",
        config={**GEMMA3, "pad_token_id": 0},
        inputs=lambda: text(pad=0),
        num_labels=3,
        hidden="model",
    ),
    "gpt2": Case(
        model="GPT2LMHeadModel",
        config=GPT2,
        inputs=lambda: text(left=True),
        num_labels=None,
        hidden="transformer",
    ),
    "gpt2-classifier": Case(
        model="GPT2ForSequenceClassification",
        config=GPT2,
        inputs=lambda: text(pad=0),
        num_labels=3,
        hidden="transformer",
    ),
    "llama-3": Case(
        model="LlamaForCausalLM",
        config={**LLAMA, "rope_parameters": LLAMA3},
        inputs=lambda: text(length=40),
        num_labels=None,
        hidden="model",
    ),
    "llama-classifier": Case(
        model="LlamaForSequenceClassification",
        config={**LLAMA, "pad_token_id": 0},
        inputs=lambda: text(pad=0),
        num_labels=3,
        hidden="model",
    ),
    "mistral": Case(
        model="MistralForCausalLM",
        config={**LLAMA, "sliding_window": None},
        inputs=lambda: text(),
        num_labels=None,
        hidden="model",
    ),
    "qwen2": Case(
        model="Qwen2ForCausalLM",
        config=LLAMA,
        inputs=lambda: text(),
        num_labels=None,
        hidden="model",
    ),
    "qwen3": Case(
        model="Qwen3ForCausalLM",
        config={**LLAMA, "head_dim": 6},
        inputs=lambda: text(),
        num_labels=None,
        hidden="model",
    ),
    "t5": Case(
        model="T5ForConditionalGeneration",
        config=T5,
        inputs=lambda: translation(left=True),
    ),
    "t5-v1.1": Case(
        model="T5ForConditionalGeneration",
        # The factor, because scores, which T5 does not scale, and their gradients are
        # large without it.
        config={
            **T5,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "initializer_factor": 0.3,
        },
        inputs=lambda: translation(),
    ),
    "t5-classifier": Case(
        model="T5ForSequenceClassification",
        config=T5,
        inputs=lambda: text(end=1),
        num_labels=3,
    ),
    "whisper": Case(
        model="WhisperForConditionalGeneration",
        config=WHISPER,
        inputs=transcription,
        hidden="model",
    ),
}
CASES = ENCODERS | DECODERS
# Of the others the layers are the same.
GRADIENTS = (
    "roberta",
    "distilbert",
    "albert",
    "vit",
    "dinov2",
    "dinov2-other-size",
    "clip",
    "gemma3",
    "gpt2",
    "llama-3",
    "qwen3",
    "t5",
    "t5-v1.1",
    "whisper",
    "whisper-classifier",
)
# Programs that run once: LLVM's work on them costs more than it saves.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def make(case: Case) -> Any:
    """The model of transformers, every parameter noisy: norms of ones and biases of
    zeros would hide mistakes.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind = getattr(transformers, case.model)
    labels = {} if case.num_labels is None else {"num_labels": case.num_labels}
    config = kind.config_class(**{**case.config, **labels})
    model = kind(config).eval()
    if case.config.get("tie_word_embeddings") is False and case.model.startswith("T5"):
        # transformers 5 ties them at first, and unties them when it reads a file that has both.
        model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(101, 16))
        config.tie_word_embeddings = False
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            parameter.requires_grad_(True)  # Whisper's sinusoids have none at first
    return model


def run(model: Any, inputs: dict[str, np.ndarray], **more: Any) -> Any:
    """The reference's output; positions count real tokens where padding is on the left
    and the model numbers them.
    """
    import torch

    inputs = dict(inputs)
    mask = inputs.get("attention_mask")
    if (
        mask is not None
        and not mask[:, 0].all()
        and model.config.model_type in ("gpt2", "llama")
    ):
        inputs["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)
    tensors = {
        k: torch.tensor(v).long() if v.dtype == np.int32 else torch.tensor(v)
        for k, v in inputs.items()
    }
    return model(**tensors, **more)


@functools.cache
def folder_of(name: str) -> tuple[Any, Any]:
    """(the model of transformers, a folder that holds it), made once a process."""
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(prefix="reference-"))
    theirs = make(CASES[name])
    theirs.save_pretrained(folder)
    return theirs, folder


def logits_of(output: Any) -> Any:
    """Of a model of either side; similarities of images and texts for CLIP, hidden
    states where there is no head.
    """
    for name in ("logits_per_image", "logits", "last_hidden_state"):
        if hasattr(output, name):
            return getattr(output, name)
    return output
