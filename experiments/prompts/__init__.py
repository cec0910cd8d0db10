"""Does the gap between prompts and LoRA shrink with the size of the model?

SmolLM2-135M-Instruct, and the same with half of its middle layers left out, evenly: the
two sizes that the packages here allow (the smaller one is no model that was trained at
its size, and starts from a higher loss). Speeches of Shakespeare's plays, answers to the
speech before, which passed the gate; four clients with texts dealt alike, all in every
round. A prompt of 16 vectors, a prefix of 16, P-tuning's LSTM before 16 tokens, and LoRA
of rank 8 on q and v; two learning rates each.

Score: nats a token on speeches of other plays. The shrinking of the gap, (prompt - LoRA
at half the size) - (prompt - LoRA at the whole), is for
`python -m fedjax_fm.experiments.prompts.shrinking FOLDER`. What a prompt does against
poisoned clients is another study, `prompt_backdoor`.

Controls: LoRA on shuffled tokens of answers; the models as they are.
"""

import dataclasses
import functools
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.prompts.arms import tuned, untuned
from fedjax_fm.experiments.prompts.texts import Speeches, speeches


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    clients: int = 4
    texts: int = 16  # of a client
    test: int = 24
    max_length: int = 64  # tokens; longer texts are cut
    answer_room: int = 24  # tokens that must be left for the answer
    row_length: int = 128  # tokens of a training row, into which texts are packed
    rounds: int = 4
    tuning_rounds: int = 2
    local_steps: int = 2
    batch_size: int = 1  # rows
    lora_rates: tuple[float, ...] = (1e-3, 3e-3)  # Adam's learning rate
    prompt_rates: tuple[float, ...] = (3e-3, 3e-2)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"clients": 2, "texts": 2, "test": 2, "row_length": 64}
        walk = {"rounds": 1, "tuning_rounds": 1, "local_steps": 1, "seeds": (0,)}
        rates = {"lora_rates": (1e-3,), "prompt_rates": (3e-3,)}
        return dataclasses.replace(self, **small, **walk, **rates)


def data(config: Config, seed: int, split: str) -> Speeches:
    """Speeches of the split, in tokens."""
    return speeches(config, seed, split)


def arm(kind: str, size: str, label: str) -> study.Arm:
    """One part of one size, with its own learning rates."""
    rates = "lora_rates" if kind == "lora" else "prompt_rates"
    go = functools.partial(tuned, kind=kind, size=size)
    return study.Arm(f"{kind}_{size}", go, label, {"learning_rate": rates})


ARMS = (
    arm("lora", "whole", "LoRA"),
    arm("prompt", "whole", "prompt"),
    arm("prefix", "whole", "prefix"),
    arm("p_tuning", "whole", "P-tuning"),
    arm("lora", "half", "LoRA, half of the layers"),
    arm("prompt", "half", "prompt, half of the layers"),
)
SHUFFLED = functools.partial(tuned, kind="lora", size="whole", shuffle=True)
UNTUNED = functools.partial(untuned, size="whole")
STUDY = study.Study(
    question="Does the gap between prompts and LoRA shrink with the size of the model?",
    expected="LoRA ahead of every prompt at both sizes, prefix and P-tuning ahead of the "
    "plain prompt; a smaller gap at the whole size than at half of it",
    config=Config,
    data=data,
    primary=study.LOSS,
    arms=(
        *ARMS,
        study.Arm("shuffled", SHUFFLED, "LoRA, shuffled tokens", like="lora_whole"),
        study.Arm("zero_shot", UNTUNED, "the model as it is"),
        study.Arm("zero_shot_half", functools.partial(untuned, size="half"), "half, as it is"),
    ),
    comparisons=[
        *study.against("lora_whole", ARMS[:4]),
        ("prompt_half", "lora_half"),
        ("prefix_whole", "prompt_whole"),
        ("p_tuning_whole", "prompt_whole"),
    ],
    controls=(
        study.Control("shuffled", "lora_whole"),
        study.Control("zero_shot", "lora_whole"),
        study.Control("zero_shot_half", "lora_half"),
    ),
)  # fmt: skip
