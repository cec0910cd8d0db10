"""The parts of the last layer that arms train."""

from typing import Any

import jax

from fedjax_fm import peft, study

PARTS = {
    "full": "all of the last layer",
    "lora": "LoRA",
    "adapter": "adapters",
    "bitfit": "BitFit",
    "prompt": "prompts, as prefixes",
    "ia3": "(IA)³",
    "zero": "all of it, FedKSeed",
    "head": "head alone",
}
SCALING = 2.0


def rates_of(part: str) -> str:
    """The name of the configuration's grid for a part.

    Args:
      part: a key of `PARTS`.
    """
    return {"full": "full_rates", "zero": "zero_rates"}.get(part, "rates")


def adapted_by(run: study.Run, part: str, rank: int | None = None) -> peft.Adapted:
    """The last layer with what an arm trains of it.

    Args:
      run: of the arm.
      part: a key of `PARTS`.
      rank: of LoRA; None: the configuration's.
    """
    method = method_of(run, part, rank or run.config.rank)
    return peft.apply(run.data.model, method, jax.random.key(run.seed))


def method_of(run: study.Run, part: str, rank: int) -> peft.Method:
    """What trains a part.

    Args:
      run: of the arm.
      part: a key of `PARTS`.
      rank: of LoRA.
    """
    config, head = run.config, run.data.trains_head
    how: dict[str, Any] = {} if head else {"modules_to_save": ()}
    if part in ("full", "zero"):
        return peft.full()
    if part == "head":
        return peft.head()
    if part == "lora":
        return peft.lora(rank, SCALING * rank, targets=run.data.targets, **how)
    if part == "adapter":
        return peft.houlsby(config.bottleneck, norms=False, **how)
    if part == "bitfit":
        return peft.bitfit(**how)
    if part == "ia3":
        return peft.ia3(**how)
    return peft.prefix_tuning(config.prompt, **how)
