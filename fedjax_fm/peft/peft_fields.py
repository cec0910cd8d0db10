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
