"""Does LoRA on Whisper's encoder pay for clients that each have one voice?

Numbers from 0 to 90 (28 words) in five languages. Ten clients, two for each language:
each has one voice of a synthesiser, espeak-ng, at two speeds, and nobody else's. The
encoder of Whisper base is given windows of 1.5 seconds, so that its first 75 positions of
1,500 are used: it was trained on whole windows of 30 seconds. All clients take part in
every round. A number has one label in all languages, said by different words.

Score: accuracy on voices of the same languages that no client has. **The voices are made
by rule; nothing here is about people's speech.** Beside it `people`, accuracy on 140
recordings of four people, one of each number and language, which nothing trains on: too
few to compare by. Of local training each client's own model is asked for its language
alone.

Controls: LoRA on shuffled numbers; the model before any round.

Needs `fedjax-fm fetch whisper_base`, `fedjax-fm fetch spoken` and espeak-ng.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.datasets.packaged.spoken import NUMBERS, VOICES
from fedjax_fm.experiments.speech.tuning import tuned
from fedjax_fm.experiments.speech.voices import Spoken, deal


@dataclass(frozen=True)
class Config:
    """Settings."""

    languages: tuple[str, ...] = tuple(VOICES)
    numbers: tuple[int, ...] = NUMBERS
    voices: int = 2  # of each language, one a client
    heard: int = 2  # voices of each language that test
    speeds: tuple[int, ...] = (140, 180)  # words a minute
    seconds: float = 1.5  # of a window
    rank: int = 8
    rounds: int = 10
    tuning_rounds: int = 5
    local_steps: int = 4
    batch_size: int = 8
    lora_rates: tuple[float, ...] = (1e-3, 3e-3)  # Adam's learning rate
    full_rates: tuple[float, ...] = (3e-5, 1e-4)
    head_rates: tuple[float, ...] = (1e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"languages": ("en", "it"), "numbers": (3, 7, 90), "voices": 1}
        walk = {"rounds": 1, "tuning_rounds": 1, "local_steps": 1, "batch_size": 2}
        one = {"lora_rates": (1e-3,), "full_rates": (3e-5,), "head_rates": (1e-3,)}
        rest = {"heard": 1, "speeds": (160,), "seconds": 0.5, "seeds": (0,)}
        return dataclasses.replace(self, **small, **walk, **one, **rest)


def data(config: Config, seed: int, split: str) -> Spoken:
    """Voices dealt to clients, and what tests."""
    names = ("languages", "numbers", "voices", "heard", "speeds", "seconds")
    return deal(seed, split, **{name: getattr(config, name) for name in names})


ARMS = (
    study.arm_of("lora", tuned, "LoRA", {"learning_rate": "lora_rates"}, method="lora"),
    study.arm_of(
        "full", tuned, "full tuning", {"learning_rate": "full_rates"}, method="full"
    ),
    study.arm_of(
        "head", tuned, "head alone", {"learning_rate": "head_rates"}, method="head"
    ),
    study.arm_of(
        "local",
        tuned,
        "local LoRA",
        {"learning_rate": "lora_rates"},
        method="lora",
        alone=True,
    ),
)
STUDY = study.Study(
    question="Does LoRA on Whisper's encoder pay for clients that each have one voice?",
    expected="LoRA above the head alone and above local LoRA; no difference from full "
    "tuning",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=(
        *ARMS,
        study.shuffled(ARMS[0]),
        study.arm_of("untrained", tuned, "untrained", method="lora", rounds=0),
    ),
    comparisons=study.against("lora", ARMS),
    controls=(
        study.Control("shuffled", "lora"),
        study.Control("untrained", "lora"),
    ),
    scores=(study.percent("people", "people's recordings"),),
)
