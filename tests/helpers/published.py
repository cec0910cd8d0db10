"""Folders as people publish them: a tiny random model of transformers, its tensors and
its configuration changed.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import reference_models as reference

Tensors = dict[str, np.ndarray]

SMALL = {
    "vocab_size": 101,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 24}
DECODER = {
    **SMALL,
    "hidden_size": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TIED = {**DECODER, "tie_word_embeddings": True}
DISTILBERT = {
    "vocab_size": 101,
    "dim": 16,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 24,
}
DISTILBERT |= {"max_position_embeddings": 24}
# The smallest configuration of every family, by the beginning of its classes' names.
CONFIGS: dict[str, dict[str, Any]] = {
    "Albert": {**SMALL, "embedding_size": 8},
    "Bert": SMALL,
    "CLIP": reference.TOWERS,
    "Dinov2": {**reference.DINOV2, "num_hidden_layers": 2},
    "DistilBert": DISTILBERT,
    "Gemma3": {
        **TIED,
        "head_dim": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "GPT2": {**reference.GPT2, "n_layer": 2},
    "Llama": TIED,
    "Mistral": TIED,
    "Qwen2": TIED,
    "Qwen3": {**TIED, "head_dim": 6},
    "Roberta": {**SMALL, "type_vocab_size": 1},
    "T5": {**reference.T5, "num_decoder_layers": 2},
    "ViT": {**reference.IMAGE, "num_hidden_layers": 2},
    "Whisper": {**reference.WHISPER, "decoder_layers": 2},
}


def family_of(kind: str) -> str:
    """ "Llama" of "LlamaForCausalLM"."""
    return next(
        name for name in sorted(CONFIGS, key=len, reverse=True) if kind.startswith(name)
    )


def made(kind: str, **changes: Any) -> Any:
    """A noisy model of transformers of that class."""
    config = {**CONFIGS[family_of(kind)], **changes}
    return reference.make(reference.Case(kind, config, inputs))


def inputs() -> dict[str, np.ndarray]:
    """Two rows without padding: what published forms change does not depend on it."""
    return {
        "input_ids": np.random.default_rng(0).integers(5, 99, (2, 9)).astype(np.int32)
    }


def _three_rows() -> np.ndarray:
    """Texts for as many windows of sound."""
    return np.random.default_rng(0).integers(5, 99, (3, 4)).astype(np.int32)


def inputs_of(kind: str) -> dict[str, np.ndarray]:
    """What models of that class read."""
    if family_of(kind) in ("Dinov2", "ViT"):
        return reference.pixels()
    if family_of(kind) == "Whisper":
        return {**reference.sound(), "decoder_input_ids": _three_rows()}
    if family_of(kind) == "T5":
        return {**inputs(), "decoder_input_ids": inputs()["input_ids"][:, :5]}
    return inputs()


def saved(
    folder: Path,
    model: Any,
    *,
    tensors: Callable[[Tensors], Tensors] | None = None,
    config: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """The folder with `model`, its tensors changed by a function, keys of config.json
    set or left out.
    """
    from safetensors.numpy import load_file, save_file

    model.save_pretrained(folder)
    if tensors is not None:
        changed = tensors(load_file(folder / "model.safetensors"))
        save_file(
            {name: np.ascontiguousarray(array) for name, array in changed.items()},
            folder / "model.safetensors",
        )
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8")) | (
        config or {}
    )
    fields = {name: value for name, value in fields.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def theirs(folder: Path, kind: str, given: dict[str, np.ndarray]) -> np.ndarray:
    """Logits, or hidden states, of transformers' class that reads the folder."""
    import torch
    import transformers

    model = (
        getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    )
    with torch.no_grad():
        return reference.logits_of(reference.run(model, given)).numpy()


def ours(model: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    """Logits, or hidden states, of our model."""
    from flax import nnx

    graphdef, state = nnx.split(model)
    forward = reference.quick_jit(
        lambda state, given: reference.logits_of(nnx.merge(graphdef, state)(**given))
    )
    return np.asarray(jax.device_get(forward(state, given)))
