"""Small random models in two forms, transformers' and ours, with equal weights, and
their logits side by side.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import models

IDS = np.random.default_rng(0).integers(0, 31, (2, 7))

_LLAMA = dict(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32,
)  # fmt: skip
_BERT = dict(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=32, num_labels=3,
)  # fmt: skip
_GEMMA3 = dict(
    **_LLAMA, head_dim=6, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)  # fmt: skip
_GPT2 = dict(vocab_size=31, n_embd=16, n_layer=2, n_head=4, n_positions=32)
_DISTILBERT = dict(
    vocab_size=31, dim=16, hidden_dim=24, n_layers=2, n_heads=4, max_position_embeddings=32, num_labels=3
)  # fmt: skip
_VIT = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8, patch_size=4,
    num_labels=3,
)  # fmt: skip
_T5 = dict(vocab_size=31, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
# family: (name of transformers' model, of its configuration, fields)
FAMILIES = {
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_LLAMA, "tie_word_embeddings": False},
    ),
    "tied": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_LLAMA, "tie_word_embeddings": True},
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", _BERT),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _BERT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _DISTILBERT,
    ),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA3),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "vit": ("ViTForImageClassification", "ViTConfig", _VIT),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
}


class Pair(NamedTuple):
    """One model in both forms.

    Attributes:
      reference: () -> a new copy of transformers' model, ready for evaluation.
      model: ours.
      folder: where its checkpoint lies.
    """

    reference: Callable[[], Any]
    model: Any
    folder: Path


def make_pair(family: str, folder: Path) -> Pair:
    """A random model whose parameters are all moved away from ones and zeros."""
    import torch
    import transformers

    kind, config, fields = FAMILIES[family]
    make = getattr(transformers, kind)
    torch.manual_seed(0)
    model = make(getattr(transformers, config)(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    labels = {"num_labels": 3} if "num_labels" in fields else {}
    return Pair(
        reference=lambda: make.from_pretrained(folder).eval(),
        model=models.from_pretrained(folder, **labels),
        folder=folder,
    )


def theirs(model: Any) -> np.ndarray:
    """Logits of transformers' model, adapted or not."""
    import torch

    with torch.no_grad():
        mask = torch.ones(IDS.shape, dtype=torch.long)
        return model(input_ids=torch.tensor(IDS), attention_mask=mask).logits.numpy()


def ours(parts: tuple | nnx.Module) -> np.ndarray:
    """Logits of ours, of (graphdef, delta, backbone) or of a model."""
    graphdef, *state = nnx.split(parts) if isinstance(parts, nnx.Module) else parts

    @jax.jit
    def forward(state):
        return nnx.merge(graphdef, *state)(
            jnp.asarray(IDS), jnp.ones(IDS.shape, jnp.int32)
        )

    return np.asarray(forward(state))


def peft_adapter(pair: Pair, config: Any, folder: Path, seed: int = 1) -> Any:
    """An adapter that PEFT has made, moved away from its start and saved: its model, as
    PEFT reads it again.
    """
    import peft
    import torch

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(pair.reference(), config).eval()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(folder)
    return adapted


def opened_by_peft(pair: Pair, folder: Path) -> Any:
    """The adapter of a folder in PEFT."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(pair.reference(), folder).eval()
