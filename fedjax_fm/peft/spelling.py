"""Refuses keyword arguments in PEFT's spelling, and says how they are written here."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Made = TypeVar("Made")

# {PEFT's word: what to write}; {value!r} stands for the argument.
INSTEAD = {
    "r": "rank={value!r}",
    "lora_alpha": "alpha={value!r}",
    "lora_dropout": "dropout={value!r}",
    "target_modules": "targets={value!r}",
    "feedforward_modules": "feedforward={value!r}",
    "num_virtual_tokens": "n_tokens={value!r}",
    "encoder_hidden_size": "hidden={value!r}",
    "prefix_projection": "hidden=, the width of the projection's network",
    "use_dora": "peft.dora(...) in place of peft.lora(...)",
    "layers_to_transform": "peft.on_layers(method, {value!r})",
    "layers_pattern": "peft.on_layers(method, layers, at={value!r})",
    "bias": "peft.combine(method, peft.bitfit())",
    "init_lora_weights": "nothing: the factors start as PEFT's do with True",
    "init_ia3_weights": "nothing: the vectors start as ones",
    "task_type": "nothing: the model's class says it, and modules_to_save what is "
    "trained beside the adapter",
    "inference_mode": "nothing: what is trained is the delta that peft.apply gives",
    "fan_in_fan_out": "nothing: the model's class knows how its kernels lie",
    "ensure_weight_tying": "nothing: tied weights stay tied until peft.untie(model)",
}


def refuses_pefts_words(make: Callable[P, Made]) -> Callable[P, Made]:
    """Makes a function refuse PEFT's keywords and say what to write.

    Args:
      make: a function that makes a method.

    Returns:
      The function, which raises a TypeError for such a keyword.

    Example:
      >>> @refuses_pefts_words
      ... def method(rank):
      ...     return rank
      >>> method(r=4)
      Traceback (most recent call last):
      ...
      TypeError: method() takes no r=4, PEFT's word; write rank=4
    """
    own = inspect.signature(make).parameters

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Made:
        for word, value in kwargs.items():
            if word not in own and word in INSTEAD:
                instead = INSTEAD[word].format(value=value)
                name = getattr(make, "__name__", "this method")
                raise TypeError(
                    f"{name}() takes no {word}={value!r}, PEFT's word; write "
                    f"{instead}{_or_from_config(name)}"
                )
        return make(*args, **kwargs)

    return checked


def _or_from_config(name: str) -> str:
    """The other way to write it, of methods that have one."""
    return (
        ", or peft.lora_from_config(config) with PEFT's own words"
        if name in ("lora", "dora")
        else ""
    )
