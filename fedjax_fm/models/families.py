"""From the fields of a `config.json` to a module.

Which architectures there are, and which settings each one refuses.

A key that a file lacks means what it means in transformers, which is not the same for
all families: Mistral has a window of 4096 tokens, Qwen3 has heads of 128. A key that
transformers does not read for a family is not read here.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.albert import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AlbertModel,
)
from fedjax_fm.models.bert import BertConfig, BertForSequenceClassification, BertModel
from fedjax_fm.models.clip import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from fedjax_fm.models.dinov2 import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
)
from fedjax_fm.models.distilbert import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
)
from fedjax_fm.models.dtypes import checked_dtype
from fedjax_fm.models.gemma3 import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForSequenceClassification,
    alternating,
)
from fedjax_fm.models.gpt2 import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)
from fedjax_fm.models.llama import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)
from fedjax_fm.models.roberta import (
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)
from fedjax_fm.models.rotary import FrequencyFactors, Llama3Scaling
from fedjax_fm.models.t5 import (
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)
from fedjax_fm.models.token_classification import BertForTokenClassification
from fedjax_fm.models.vit import ViTConfig, ViTForImageClassification, ViTModel
from fedjax_fm.models.weights import Naming
from fedjax_fm.models.whisper import (
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)
from fedjax_fm.models.whisper_layers import WhisperConfig


class Family(NamedTuple):
    """One value of `model_type`.

    Attributes:
      config: the configuration's dataclass.
      plain: the module without labels: an encoder, a language model, both towers.
      head: the module with a classifier.
      settle: from the fields of a config.json to those of `config`; refuses what cannot
        be computed.
      defaults: transformers' values of keys that a file may lack, where `config` has
        others.
    """

    config: type
    plain: Callable[..., nnx.Module]
    head: Callable[..., nnx.Module]
    settle: Callable[[dict[str, Any]], dict[str, Any]]
    defaults: Mapping[str, Any] = MappingProxyType({})


def family_of(fields: dict[str, Any]) -> Family:
    """The family that `model_type` names.

    Args:
      fields: of config.json.

    Raises:
      ValueError: there is no such family here.

    Example:
      >>> family_of({"model_type": "qwen2"}).config.__name__
      'LlamaConfig'
    """
    name = fields.get("model_type")
    if name not in _FAMILIES:
        raise ValueError(
            f"a model of type {name!r}; this version reads "
            f"{', '.join(sorted(_FAMILIES))}"
        )
    return _FAMILIES[name]


MOST_SIZE = 2**31 - 1  # that an index on the device can count


def config_of(fields: dict[str, Any]) -> Any:
    """The configuration that the fields of a `config.json` mean.

    Keys that it lacks mean what they mean in transformers.

    Args:
      fields: of config.json.

    Returns:
      A configuration of the family's kind, such as `LlamaConfig`.

    Raises:
      ValueError: a type or a setting that is not supported.

    Example:
      >>> config_of({"model_type": "mistral"}).sliding_window
      4096
    """
    family = family_of(fields)
    return _known(family.config, family.settle({**family.defaults, **fields}))


def from_config(
    fields: dict[str, Any],
    *,
    num_labels: int | None = None,
    pooling: str = "cls",
    dtype: Any = "float32",
    seed: int = 0,
) -> nnx.Module:
    """A model with random weights, as the fields of a `config.json` describe it.

    Under `nnx.eval_shape` it takes no memory:
    `nnx.eval_shape(lambda: from_config(fields))` has the shapes alone.

    Args:
      fields: of config.json; `model_type` says which family, and a key that is not
        there means what it means in transformers.
      num_labels: None gives the encoder (albert, bert, dinov2, distilbert, roberta,
        vit), the language model (gemma3_text, gpt2, llama, mistral, qwen2, qwen3, t5,
        whisper) or both towers (clip); a number gives the architecture's classifier.
      pooling: "cls", or for bert "mean", or "none" for a label of each token.
      dtype: of weights and activations, as in `from_pretrained`; classification heads
        stay f32.
      seed: of the random initial values.

    Returns:
      The model, such as a `LlamaForCausalLM`.

    Raises:
      ValueError: a type or a setting that is not supported.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> fields = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "vocab_size": 30}
      >>> model = nnx.eval_shape(lambda: models.from_config(fields, num_labels=2))
      >>> model.transformer.h.attn.c_attn.kernel.shape  # twelve layers, stacked
      (12, 8, 24)
    """
    family, wanted = family_of(fields), checked_dtype(dtype)
    if num_labels is not None:
        checks.whole("num_labels", num_labels, least=1)
    if pooling != "cls" and family.config is not BertConfig:
        raise ValueError(
            f"expected pooling 'cls' for a model of type {fields['model_type']!r}, got "
            f"{pooling!r}"
        )
    config, rngs = config_of(fields), nnx.Rngs(seed)
    if num_labels is None:
        return family.plain(config, rngs, wanted)
    settings: dict[str, Any] = {"rngs": rngs, "dtype": wanted}
    if pooling == "none":
        return BertForTokenClassification(config, num_labels, **settings)
    if family.config is BertConfig:
        settings["pooling"] = pooling
    return family.head(config, num_labels, **settings)


def naming_of(model: nnx.Module) -> Naming:
    """The names that Hugging Face gives the parameters of one of our models.

    Args:
      model: of this package.

    Raises:
      ValueError: a model of another kind.
    """
    naming = getattr(type(model), "hugging_face", None)
    if naming is None:
        raise ValueError(f"{type(model).__name__} has no counterpart at Hugging Face")
    return naming


def _known(kind: type, fields: dict[str, Any]) -> Any:
    """A configuration of that kind; fields that it does not know change nothing.

    Whole numbers are sizes, which no model has none of, or numbers of tokens.
    """
    hints, known = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name not in fields:
            continue
        value = fields[field.name]
        is_left_out = value is None and field.default is None
        is_size = hints[field.name] is int and not field.name.endswith("_id")
        if is_size and not is_left_out:
            checks.whole(field.name, value, least=1, most=MOST_SIZE)
        known[field.name] = value
    return kind(**known)


def _as_they_are(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as they are."""
    return fields


def _absolute(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, if positions are absolute."""
    kind = fields.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ValueError(f"expected absolute position embeddings, got {kind!r}")
    return fields


def _distilbert(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, if they are those of an encoder."""
    if fields.get("is_decoder"):
        raise ValueError(
            "is_decoder=True is not supported by DistilBERT, which is an encoder"
        )
    return fields


def _clip(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with both towers' configurations made.

    Old files say a tower twice; `text_config_dict`, where it is not null, is what
    counts.
    """
    kinds = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}
    towers = {}
    for name, kind in kinds.items():
        again = fields.get(f"{name}_dict")
        once = fields.get(name) or {}
        towers[name] = _known(kind, once if again is None else again)
    return {**fields, **towers}


# What transformers reads for one family of decoders and not for another, by our names.
_UNREAD = {
    "llama": ("attention_output_bias", "qk_norm", "sliding_window", "layer_types"),
    "mistral": (
        "attention_bias",
        "attention_output_bias",
        "qk_norm",
        "mlp_bias",
        "layer_types",
    ),
    "qwen": ("attention_output_bias", "qk_norm", "mlp_bias"),
}


def _decoder(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """The fields that transformers reads for this kind of decoder."""
    read = {name: value for name, value in fields.items() if name not in _UNREAD[kind]}
    return hugging_face_rope(read)


def _llama(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Llama as those of `LlamaConfig`."""
    return _decoder(fields, "llama")


def _mistral(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Mistral as those of `LlamaConfig`: all layers alike."""
    kind = (
        "full_attention"
        if fields.get("sliding_window") is None
        else "sliding_attention"
    )
    others = set(fields.get("layer_types") or ()) - {kind}
    if others:
        raise ValueError(
            f"layer_types with {sorted(others)} is not supported for a model of "
            "type 'mistral', where all layers have "
            f"sliding_window={fields.get('sliding_window')}"
        )
    return _decoder(fields, "mistral")


def _qwen2(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Qwen2 as those of `LlamaConfig`: q, k and v have biases."""
    return {**_qwen(fields), "attention_bias": True, "attention_output_bias": False}


def _qwen3(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Qwen3 as those of `LlamaConfig`: q and k are normalised."""
    return {**_qwen(fields), "qk_norm": True}


def _qwen(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of either Qwen, with the layers that have a window.

    `use_sliding_window` turns it on; layers from `max_window_layers` on have it.
    """
    window = fields["sliding_window"] if fields.get("use_sliding_window") else None
    kinds = fields.get("layer_types")
    n_layers = fields.get("num_hidden_layers", LlamaConfig.num_hidden_layers)
    if kinds is None:
        n_full = n_layers
        if window is not None:
            n_full = min(fields["max_window_layers"], n_layers)
        n_sliding = n_layers - n_full
        kinds = ["full_attention"] * n_full + ["sliding_attention"] * n_sliding
    return {
        **_decoder(fields, "qwen"),
        "sliding_window": window,
        "layer_types": tuple(kinds),
    }


def _gemma3(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Gemma 3 as those of `Gemma3Config`.

    Older files have a period in the place of the kinds of layers, and name the base of
    layers with a window by itself.
    """
    for name in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if fields.get(name):
            raise ValueError(f"{name}={fields[name]!r} is not supported")
    kinds = fields.get("layer_types")
    if kinds is None:
        n_layers = fields.get("num_hidden_layers", Gemma3Config.num_hidden_layers)
        kinds = alternating(n_layers, fields.get("sliding_window_pattern", 6))
    both = fields.get("rope_parameters") or {}
    full = {**(both.get("full_attention") or {}), **(fields.get("rope_scaling") or {})}
    theta = fields.get("rope_theta", Gemma3Config.rope_theta)
    local = fields.get("rope_local_base_freq", Gemma3Config.rope_local_base_freq)
    of_full = hugging_face_rope({"rope_parameters": full, "rope_theta": theta})
    near = both.get("sliding_attention")
    of_near = hugging_face_rope({"rope_parameters": near, "rope_theta": local})
    return {
        **fields,
        "layer_types": tuple(kinds),
        "rope_theta": of_full["rope_theta"],
        "rope_scaling": of_full["rope_scaling"],
        "rope_local_base_freq": of_near["rope_theta"],
        "rope_local_scaling": of_near["rope_scaling"],
    }


def hugging_face_rope(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config.json with its rotary settings in one form.

    They moved between versions of transformers. Of two places `rope_scaling` counts, as
    there.

    Args:
      fields: of config.json.

    Returns:
      The fields with `rope_theta` and `rope_scaling` (None, a `Llama3Scaling` or
      `FrequencyFactors`).

    Raises:
      ValueError: a rotary embedding that is scaled in another way, interleaved or
        partial.

    Example:
      >>> hugging_face_rope({"rope_parameters": {"rope_theta": 5e5}})["rope_theta"]
      500000.0
    """
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    if fields.get("rope_interleaved") or partial not in (None, 1.0):
        raise ValueError("interleaved or partial rotary embedding is not supported")
    scaling = None
    if kind == "llama3":
        scaling = Llama3Scaling(**_needed(rope, kind, Llama3Scaling._fields))
    elif kind == "linear":
        factor = _needed(rope, kind, ("factor",))["factor"]
        scaling = FrequencyFactors((float(factor),))
    elif kind != "default":
        raise ValueError(
            f"rope type {kind!r} is not supported; expected 'default', 'linear' or "
            "'llama3'"
        )
    theta = float(
        rope.get("rope_theta", fields.get("rope_theta", LlamaConfig.rope_theta))
    )
    return {**fields, "rope_theta": theta, "rope_scaling": scaling}


def _needed(rope: dict[str, Any], kind: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The named settings of a scaling."""
    missing = [name for name in names if name not in rope]
    if missing:
        raise ValueError(f"rope type {kind!r} needs {', '.join(missing)}")
    return {name: rope[name] for name in names}


# Values that transformers 5 puts where a config.json has none; our own configurations
# are of other sizes of the family.
_ALBERT = {"hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384}
_ROBERTA = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
_MISTRAL = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_MISTRAL |= {"sliding_window": 4096}
_QWEN2 = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_QWEN2 |= {"sliding_window": 4096, "max_window_layers": 28}
_QWEN3 = {**_QWEN2, "head_dim": 128}
_LM, _CLASSIFIER = LlamaForCausalLM, LlamaForSequenceClassification

_FAMILIES: dict[str, Family] = {
    "albert": Family(
        config=AlbertConfig,
        plain=AlbertModel,
        head=AlbertForSequenceClassification,
        settle=_absolute,
        defaults=_ALBERT,
    ),
    "bert": Family(
        config=BertConfig,
        plain=BertModel,
        head=BertForSequenceClassification,
        settle=_absolute,
    ),
    "clip": Family(
        config=CLIPConfig,
        plain=CLIPModel,
        head=CLIPForImageClassification,
        settle=_clip,
    ),
    "dinov2": Family(
        config=Dinov2Config,
        plain=Dinov2Model,
        head=Dinov2ForImageClassification,
        settle=_as_they_are,
    ),
    "distilbert": Family(
        config=DistilBertConfig,
        plain=DistilBertModel,
        head=DistilBertForSequenceClassification,
        settle=_distilbert,
    ),
    "gemma3_text": Family(
        config=Gemma3Config,
        plain=Gemma3ForCausalLM,
        head=Gemma3ForSequenceClassification,
        settle=_gemma3,
    ),
    "gpt2": Family(
        config=GPT2Config,
        plain=GPT2LMHeadModel,
        head=GPT2ForSequenceClassification,
        settle=_as_they_are,
    ),
    "llama": Family(config=LlamaConfig, plain=_LM, head=_CLASSIFIER, settle=_llama),
    "mistral": Family(
        config=LlamaConfig,
        plain=_LM,
        head=_CLASSIFIER,
        settle=_mistral,
        defaults=_MISTRAL,
    ),
    "qwen2": Family(
        config=LlamaConfig, plain=_LM, head=_CLASSIFIER, settle=_qwen2, defaults=_QWEN2
    ),
    "qwen3": Family(
        config=LlamaConfig, plain=_LM, head=_CLASSIFIER, settle=_qwen3, defaults=_QWEN3
    ),
    "roberta": Family(
        config=RobertaConfig,
        plain=RobertaModel,
        head=RobertaForSequenceClassification,
        settle=_absolute,
        defaults=_ROBERTA,
    ),
    "t5": Family(
        config=T5Config,
        plain=T5ForConditionalGeneration,
        head=T5ForSequenceClassification,
        settle=_as_they_are,
    ),
    "vit": Family(
        config=ViTConfig,
        plain=ViTModel,
        head=ViTForImageClassification,
        settle=_as_they_are,
    ),
    "whisper": Family(
        config=WhisperConfig,
        plain=WhisperForConditionalGeneration,
        head=WhisperForAudioClassification,
        settle=_as_they_are,
    ),
}
