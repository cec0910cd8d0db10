"""From the fields of a `config.json` to a module: which architectures there are and what each one refuses."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.albert import AlbertConfig, AlbertForSequenceClassification, AlbertModel
from fedjax_fm.models.bert import BertConfig, BertForSequenceClassification, BertModel
from fedjax_fm.models.clip import CLIPConfig, CLIPForImageClassification, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from fedjax_fm.models.distilbert import DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel
from fedjax_fm.models.gpt2 import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel
from fedjax_fm.models.llama import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from fedjax_fm.models.roberta import RobertaConfig, RobertaForSequenceClassification, RobertaModel
from fedjax_fm.models.rotary import Llama3Scaling
from fedjax_fm.models.t5 import T5Config, T5ForConditionalGeneration, T5ForSequenceClassification
from fedjax_fm.models.vit import ViTConfig, ViTForImageClassification, ViTModel
from fedjax_fm.models.weights import Naming


class _Want(NamedTuple):
    """What of a family is built."""

    num_labels: int | None
    pooling: str
    dtype: Any
    rngs: nnx.Rngs


def from_config(
    fields: dict[str, Any],
    *,
    num_labels: int | None = None,
    pooling: str = "cls",
    dtype: Any = "float32",
    seed: int = 0,
) -> nnx.Module:
    """A model with random weights, as the fields of a `config.json` describe it; `model_type` says which family.

    Under `nnx.eval_shape` it takes no memory: `nnx.eval_shape(lambda: from_config(fields))` has the shapes alone.

    Args:
      num_labels: None gives the encoder (bert, roberta, distilbert, albert, vit), the language model (llama, mistral,
        qwen2, qwen3, gpt2, t5) or both towers (clip); a number gives the architecture's classifier.
      pooling: "cls", or for bert "mean".
      dtype: of weights and activations; classification heads stay f32.
      seed: names the random initial values.

    Raises:
      ValueError: a type or a setting that is not supported.
    """
    family = fields.get("model_type")
    if family not in _FAMILIES:
        raise ValueError(f"a model of type {family!r}; this version reads {', '.join(sorted(_FAMILIES))}")
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"expected num_labels >= 1, got {num_labels}")
    if pooling != "cls" and family != "bert":
        raise ValueError(f"expected pooling 'cls' for a model of type {family!r}, got {pooling!r}")
    return _FAMILIES[family](fields, _Want(num_labels, pooling, jnp.dtype(dtype), nnx.Rngs(seed)))


def naming_of(model: nnx.Module) -> Naming:
    """How Hugging Face names the parameters of one of our models.

    Raises:
      ValueError: a model of another kind.
    """
    naming = getattr(type(model), "hugging_face", None)
    if naming is None:
        raise ValueError(f"{type(model).__name__} has no counterpart at Hugging Face")
    return naming


def _read(kind: Any, fields: dict[str, Any]) -> Any:
    """A configuration of that kind; fields that it does not know do not change the computation."""
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in fields.items() if name in known})


def _choose(plain: Callable, head: Callable, config: Any, want: _Want) -> nnx.Module:
    if want.num_labels is None:
        return plain(config, want.rngs, want.dtype)
    return head(config, want.num_labels, want.rngs, want.dtype)


def _absolute(fields: dict[str, Any]) -> dict[str, Any]:
    kind = fields.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ValueError(f"expected absolute position embeddings, got {kind!r}")
    return fields


def _bert(fields: dict[str, Any], want: _Want) -> nnx.Module:
    config = _read(BertConfig, _absolute(fields))
    head = lambda config, n, rngs, dtype: BertForSequenceClassification(config, n, want.pooling, rngs, dtype)
    return _choose(BertModel, head, config, want)


def _roberta(fields: dict[str, Any], want: _Want) -> nnx.Module:
    config = _read(RobertaConfig, _absolute(fields))
    return _choose(RobertaModel, RobertaForSequenceClassification, config, want)


def _albert(fields: dict[str, Any], want: _Want) -> nnx.Module:
    return _choose(AlbertModel, AlbertForSequenceClassification, _read(AlbertConfig, _absolute(fields)), want)


def _distilbert(fields: dict[str, Any], want: _Want) -> nnx.Module:
    config = _read(DistilBertConfig, fields)
    return _choose(DistilBertModel, DistilBertForSequenceClassification, config, want)


def _gpt2(fields: dict[str, Any], want: _Want) -> nnx.Module:
    return _choose(GPT2LMHeadModel, GPT2ForSequenceClassification, _read(GPT2Config, fields), want)


def _vit(fields: dict[str, Any], want: _Want) -> nnx.Module:
    return _choose(ViTModel, ViTForImageClassification, _read(ViTConfig, fields), want)


def _t5(fields: dict[str, Any], want: _Want) -> nnx.Module:
    return _choose(T5ForConditionalGeneration, T5ForSequenceClassification, _read(T5Config, fields), want)


def _clip(fields: dict[str, Any], want: _Want) -> nnx.Module:
    towers = {
        "text_config": _read(CLIPTextConfig, fields.get("text_config", {})),
        "vision_config": _read(CLIPVisionConfig, fields.get("vision_config", {})),
    }
    return _choose(CLIPModel, CLIPForImageClassification, _read(CLIPConfig, {**fields, **towers}), want)


def _llama(fields: dict[str, Any], want: _Want) -> nnx.Module:
    config = _read(LlamaConfig, hugging_face_rope(fields))
    return _choose(LlamaForCausalLM, LlamaForSequenceClassification, config, want)


def _mistral(fields: dict[str, Any], want: _Want) -> nnx.Module:
    window, context = fields.get("sliding_window"), fields.get("max_position_embeddings", 131072)
    if window is not None and window < context:
        raise ValueError(
            f"sliding_window={window} is not supported; for texts of up to {window} tokens, which it does not change, "
            f"set it to null and max_position_embeddings to {window}"
        )
    return _llama(fields, want)


def _qwen2(fields: dict[str, Any], want: _Want) -> nnx.Module:
    return _llama({**_full_attention(fields), "attention_bias": True, "attention_output_bias": False}, want)


def _qwen3(fields: dict[str, Any], want: _Want) -> nnx.Module:
    return _llama({**_full_attention(fields), "qk_norm": True}, want)


def _full_attention(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("use_sliding_window") or set(fields.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError("use_sliding_window=True is not supported; expected full attention in all layers")
    return fields


def hugging_face_rope(fields: dict[str, Any]) -> dict[str, Any]:
    """config.json with its rotary settings, which moved between versions of transformers, as `rope_theta` and
    `rope_scaling` (None or a `Llama3Scaling`).

    Raises:
      ValueError: a rotary embedding that is scaled in another way, interleaved or partial.
    """
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope type {kind!r} is not supported; expected 'default' or 'llama3'")
    if fields.get("rope_interleaved") or fields.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("interleaved or partial rotary embedding is not supported")
    scaling = None
    if kind == "llama3":
        missing = [name for name in Llama3Scaling._fields if name not in rope]
        if missing:
            raise ValueError(f"rope type 'llama3' needs {', '.join(missing)}")
        scaling = Llama3Scaling(*(rope[name] for name in Llama3Scaling._fields))
    theta = float(rope.get("rope_theta", fields.get("rope_theta", LlamaConfig.rope_theta)))
    return {**fields, "rope_theta": theta, "rope_scaling": scaling}


_FAMILIES: dict[str, Callable[[dict[str, Any], _Want], nnx.Module]] = {
    "albert": _albert,
    "bert": _bert,
    "clip": _clip,
    "distilbert": _distilbert,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "roberta": _roberta,
    "t5": _t5,
    "vit": _vit,
}
