"""The fields of PEFT's configurations, and what each means for an adapter that is read.

A field is honoured; or it says nothing about a stored adapter; or it is refused where
its value would change the outputs. A field that is not listed is refused unless it is
empty.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Known(NamedTuple):
    """What is known about the fields of one configuration.

    Attributes:
      honoured: fields whose values decide what is built.
      inert: {field: why it says nothing about a stored adapter}.
      limited: {field: values that are supported}.
    """

    honoured: tuple[str, ...]
    inert: dict[str, str]
    limited: dict[str, tuple]


_NOTED = {
    "task_type": "names a class of transformers; the model given here has one",
    "peft_type": "says which of these configurations it is",
    "auto_mapping": "names classes of transformers",
    "peft_version": "names a version of PEFT",
    "base_model_name_or_path": "names the base model, which is given here",
    "revision": "names the base model's version",
    "inference_mode": "says whether PEFT freezes what it reads",
}
_INITIAL = "is of initial values, which training has changed"
_KERNELS = {"fan_in_fan_out": "how kernels lie follows from the model's class"}
_SHAPES = {
    "token_dim": "is in the tensor's shape, which must fit",
    "num_attention_heads": "is in the tensor's shape, which must fit",
    "num_layers": "is in the tensor's shape, which must fit",
}

KNOWN = {
    "LORA": Known(
        honoured=(
            *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
            *("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"),
            *("layers_to_transform", "layers_pattern", "modules_to_save"),
            *("trainable_token_indices", "ensure_weight_tying"),
        ),
        inert={
            **_NOTED,
            **_KERNELS,
            "megatron_core": "is read with megatron_config only",
            "qalora_group_size": "is read with use_qalora only",
            "loftq_config": "is read with init_lora_weights='loftq' only",
            "eva_config": _INITIAL,
            "corda_config": "is read with init_lora_weights='corda' only",
            "lora_ga_config": "is read with init_lora_weights='lora_ga' only",
            "runtime_config": "is not stored",
        },
        limited={
            # Others change the base weights at the start, or what is trained.
            "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
            "bias": (None, "none"),
            "megatron_config": (None,),
            "velora_config": (None,),
            "alora_invocation_tokens": (None, []),
            "use_qalora": (None, False),
            "monteclora_config": (None,),
            "layer_replication": (None, []),
            "lora_bias": (None, False),
            "target_parameters": (None, []),
            "use_bdlora": (None, False),
            "arrow_config": (None,),
            "kasa_config": (None,),
        },
    ),
    "IA3": Known(
        honoured=(
            "target_modules",
            "exclude_modules",
            "feedforward_modules",
            "modules_to_save",
        ),
        inert={
            **_NOTED,
            **_KERNELS,
            "init_ia3_weights": _INITIAL,
        },
        limited={},
    ),
    "PROMPT_TUNING": Known(
        honoured=("num_virtual_tokens", "modules_to_save"),
        inert={
            **_NOTED,
            **_SHAPES,
            "prompt_tuning_init": _INITIAL,
            "prompt_tuning_init_text": _INITIAL,
            "tokenizer_name_or_path": _INITIAL,
            "tokenizer_kwargs": _INITIAL,
        },
        limited={"num_transformer_submodules": (None, 1)},
    ),
    "PREFIX_TUNING": Known(
        honoured=("num_virtual_tokens", "modules_to_save"),
        inert={
            **_NOTED,
            **_SHAPES,
            "encoder_hidden_size": "is of a network whose output is stored",
            "prefix_projection": "is of a network whose output is stored",
            "init_weights": _INITIAL,
        },
        limited={"num_transformer_submodules": (None, 1)},
    ),
}


_NAMES = (
    *("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern"),
    "modules_to_save",
)
_PATTERNS = ("rank_pattern", "alpha_pattern")


def of_another_form(config: Mapping[str, Any]) -> str | None:
    """The first field whose value is not of the form that PEFT writes, in words.

    Args:
      config: a parsed `adapter_config.json`.

    Example:
      >>> of_another_form({"target_modules": 7})
      'target_modules: expected a name or a list of names, got 7'
      >>> of_another_form({"rank_pattern": {"q_proj": 4}})
    """
    for field in _NAMES:
        value = config.get(field)
        if not (value is None or isinstance(value, str) or _is_list(value, str)):
            return f"{field}: expected a name or a list of names, got {value!r:.60}"
    for field in _PATTERNS:
        value = config.get(field)
        if not (value is None or isinstance(value, dict)):
            return f"{field}: expected names with numbers, got {value!r:.60}"
    layers = config.get("layers_to_transform")
    if not (layers is None or type(layers) is int or _is_list(layers, int)):
        return f"layers_to_transform: expected numbers of layers, got {layers!r:.60}"
    tokens = config.get("trainable_token_indices")
    several = list(tokens.values()) if isinstance(tokens, dict) else [tokens]
    if tokens is not None and not all(_is_list(one, int) for one in several):
        return (
            f"trainable_token_indices: expected numbers of tokens, got {tokens!r:.60}"
        )
    return None


def _is_list(value: Any, kind: type) -> bool:
    """Whether this is a list of such values; True and False are no numbers."""
    is_sequence = isinstance(value, list | tuple)
    return is_sequence and all(type(one) is kind for one in value)


def unsupported(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lists what a configuration asks for and is not supported.

    Args:
      config: a parsed `adapter_config.json`.

    Returns:
      {field: value}.

    Raises:
      KeyError: a `peft_type` that is not in `KNOWN`.

    Example:
      >>> unsupported({"peft_type": "LORA", "r": 8, "bias": "all", "use_qalora": False})
      {'bias': 'all'}
    """
    known = KNOWN[config["peft_type"]]
    found = {}
    for field, value in config.items():
        if field in known.limited:
            refused = not _is_one_of(value, known.limited[field])
        else:
            listed = field in known.honoured or field in known.inert
            refused = not listed and bool(value)
        if refused:
            found[field] = value
    return found


def _is_one_of(value: Any, supported: tuple) -> bool:
    """Whether a value is among these; 0 is not False here, and 1 is not True."""
    return any(type(value) is type(one) and value == one for one in supported)
