"""Tasks in FLAN's format from data that comes with the package, a client each.

Rated sentences of four domains, asked for both ways round, and made questions: those
that train, and two kinds that no client has.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_fm import datasets, peft
from fedjax_fm.datasets import Example, Pattern, TextTask
from fedjax_fm.experiments.shared.conversations import Rows, pretrained
from fedjax_fm.models.chat import load_chat
from fedjax_fm.population.splits import split_by_group

SPLIT_SEED = 2026  # of rows that train, tune and test, the same for all seeds
RATINGS = (
    Pattern("{text}\n\nIs this sentence positive or negative?", "{rating}"),
    Pattern("What is the mood of: {text}\nAnswer positive or negative.", "{rating}"),
    Pattern("Sentence: {text}\nRating:", "{rating}"),
)
WRITING = (  # the same rows, turned round
    Pattern("Write a {rating} sentence about a film.", "{text}"),
    Pattern("Give an example of a {rating} film review.", "{text}"),
)
QUESTIONS = (
    Pattern("{prompt}", "{answer}"),
    Pattern("Question: {prompt}\nAnswer:", "{answer}"),
    Pattern("{prompt}\nGive the answer alone.", "{answer}"),
)
RATED = ("tweets", "amazon", "editorials")
MADE = ("arithmetic", "weekday", "syllogism", "comparison")
ANSWER_ROOM = 8  # tokens
UNSEEN = ("editorials", "comparison")  # tasks that no client has
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}  # of the documents


class Mixture(NamedTuple):
    """Tokens of all tasks, and the model that reads them.

    Attributes:
      adapted: the model with LoRA.
      train: by task, each a client.
      shuffled: the same with answers of other examples.
      tests: by task, those that train and those that do not.
      unseen: names of the tasks that no client has.
    """

    adapted: peft.Adapted
    train: dict[str, Rows]
    shuffled: dict[str, Rows]
    tests: dict[str, Rows]
    unseen: tuple[str, ...]


def mixture(config: Any, seed: int, split: str) -> Mixture:
    """The tasks of a split, as many examples as the config says, capped by task.

    Args:
      config: sizes.
      seed: of patterns, examples and the adapter.
      split: "tuning" or "final".
    """
    part = "validation" if split == "tuning" else "train"
    trained, tested = text_tasks(part), text_tasks("test")
    own = [trained[name] for name in trained if name not in UNSEEN]
    how = {"maximum": config.maximum, "few_shot": config.few_shot, "seed": seed}
    mixed = datasets.flan_mixture(own, config.examples, **how)
    chat = load_chat(config.model)

    def encoded(examples: Sequence[Example]) -> Rows:
        """Those whose questions leave room for an answer."""
        said = []
        for one in examples:
            asked = {"role": "user", "content": one.inputs}
            if len(chat.prompt_ids([asked])) + ANSWER_ROOM <= config.max_length:
                said.append([asked, {"role": "assistant", "content": one.targets}])
        return chat.encode(said, config.max_length, truncate=True)

    tests = {
        name: encoded(datasets.flan_examples(task, config.test, seed=0))
        for name, task in tested.items()
    }
    method = peft.lora(config.rank, 2.0 * config.rank, targets="q_proj|v_proj")
    model = pretrained(config.model, "float32", "dense")
    return Mixture(
        adapted=peft.apply(model, method, jax.random.key(seed)),
        train={name: encoded(found) for name, found in mixed.items()},
        shuffled={name: encoded(_turned(found, seed)) for name, found in mixed.items()},
        tests=tests,
        unseen=UNSEEN,
    )


@functools.cache
def text_tasks(part: str) -> dict[str, TextTask]:
    """All tasks, with the rows of a part of the data.

    Args:
      part: "train", "validation" or "test"; documents and questions are in one of them.
    """
    found, rated = {}, datasets.load_sentiment()
    own = split_by_group(rated["group"], SHARES, SPLIT_SEED)[part]
    domains = {name: name for name in RATED} | {"writing": "movies"}
    for task, domain in domains.items():
        fields = [
            {
                "text": str(rated["text"][row]),
                "rating": ("negative", "positive")[int(rated["label"][row])],
            }
            for row in own[rated["domain"][own] == domain]
        ]
        patterns = WRITING if task == "writing" else RATINGS
        found[task] = TextTask(task, fields, patterns)
    made = datasets.make_reasoning(120, MADE, seed=SPLIT_SEED)
    for task in MADE:
        rows = np.flatnonzero((made["task"] == task) & (made["split"] == part))
        fields = [
            {"prompt": str(made["prompt"][row]), "answer": str(made["answer"][row])}
            for row in rows
        ]
        found[task] = TextTask(task, fields, QUESTIONS)
    return found


def _turned(examples: Sequence[Example], seed: int) -> list[Example]:
    """Every example with the answer of another one of its task."""
    order = np.random.default_rng(seed).permutation(len(examples))
    moved = dict(zip(order, np.roll(order, 1), strict=True))
    return [
        one._replace(targets=examples[moved[row]].targets)
        for row, one in enumerate(examples)
    ]
