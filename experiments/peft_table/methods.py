"""The parts of a model that the table compares, and how many numbers they have."""

from collections.abc import Callable

from fedjax_fm import peft

TARGETS = "query|value"


def lora(rank: int) -> peft.Method:
    """LoRA on query and value."""
    return peft.lora(rank, 2.0 * rank, targets=TARGETS)


def dora(rank: int) -> peft.Method:
    """DoRA on the same layers."""
    return peft.dora(rank, 2.0 * rank, targets=TARGETS)


# Of texts, and of pictures, where prompts are visual ones.
METHODS: dict[str, Callable[[int], peft.Method]] = {
    "full": lambda rank: peft.full(),
    "lora": lora,
    "dora": dora,
    "adapter": lambda rank: peft.houlsby(2 * rank),
    "ia3": lambda rank: peft.ia3(),
    "bitfit": lambda rank: peft.bitfit(),
    "prefix": lambda rank: peft.prefix_tuning(16),
    "prompt": lambda rank: peft.prompt_tuning(16),
    "head": lambda rank: peft.head(),
}
OF_PICTURES = METHODS | {
    "prefix": lambda rank: peft.vpt(8, "deep"),
    "prompt": lambda rank: peft.vpt(8, "shallow"),
}
LABELS = {
    "full": "full tuning",
    "lora": "LoRA",
    "dora": "DoRA",
    "adapter": "adapters",
    "ia3": "(IA)³",
    "bitfit": "BitFit",
    "prefix": "prefix, deep prompts",
    "prompt": "prompt, shallow prompts",
    "head": "head",
}
