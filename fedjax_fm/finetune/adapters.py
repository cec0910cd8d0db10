"""PEFT methods of the library, by their names."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fedjax_fm import peft
from fedjax_fm.finetune.expressions import build, names_in
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.models.architectures import DEFAULT_TARGETS
from fedjax_fm.peft.targets import named_modules
from fedjax_fm.runs.errors import UsageError

PEFT: dict[str, Callable[..., peft.Method]] = {
    name: getattr(peft, name)
    for name in (
        "bitfit", "combine", "dora", "full", "head", "houlsby", "ia3", "lora",
        "lora_xs", "on_layers", "p_tuning", "p_tuning_v2", "parallel_adapter", "prefix_tuning",
        "prompt_tuning", "ravan", "vpt",
    )
}  # fmt: skip
LORA_LIKE = ("lora", "dora", "lora_xs", "ravan")


def adapter_of(settings: Settings, model_type: str) -> peft.Method:
    """The PEFT method that the settings name.

    Args:
      settings: have its name, and rank, alpha and targets.
      model_type: of the model, for the layers that are usually adapted.

    Returns:
      A method for `peft.apply`.

    Raises:
      UsageError: an unknown name, or arguments that it does not take.
    """
    targets = None
    if settings.targets is not None:
        targets = [part.strip() for part in settings.targets.split(",") if part.strip()]
        if not targets:
            raise UsageError(f"--targets names no layer: {settings.targets!r}")
    usual = list(DEFAULT_TARGETS.get(model_type, ("query", "value")))
    given: dict[str, Any] = {
        "rank": settings.rank,
        "bottleneck": 64,
        "n_tokens": 20,
    }
    if settings.alpha is not None:
        given["alpha"] = settings.alpha
    factories = PEFT | {name: _of_twice_the_rank(PEFT[name]) for name in LORA_LIKE}
    if targets is None:
        usual_ones = {
            name: functools.partial(factories[name], targets=usual)
            for name in LORA_LIKE
        }
        return build(settings.peft, factories | usual_ones, "PEFT method", given=given)
    names = names_in(settings.peft)
    if not any(_takes(PEFT, name, "targets") for name in names):
        raise UsageError(f"--targets: {settings.peft} adapts no layers of choice")
    given["targets"] = targets
    return build(settings.peft, factories, "PEFT method", given=given)


def _of_twice_the_rank(factory: Callable[..., peft.Method]) -> Callable[..., Any]:
    """The same factory, whose alpha is twice the rank where none is given."""

    @functools.wraps(factory)
    def made(rank: int, alpha: float | None = None, **more: Any) -> peft.Method:
        return factory(rank, 2.0 * rank if alpha is None else alpha, **more)

    return made


def _takes(factories: dict[str, Callable[..., Any]], name: str, parameter: str) -> bool:
    """Whether the factory of that name has that parameter."""
    factory = factories.get(name)
    return factory is not None and parameter in inspect.signature(factory).parameters


def scalings_of(adapted: peft.Adapted) -> set[float]:
    """The scales s = alpha / r of all LoRA layers.

    Args:
      adapted: the model.
    """
    modules = [module for _, module in named_modules(adapted.model())]
    return {one.scaling for one in modules if isinstance(one, peft.LoRALinear)}
