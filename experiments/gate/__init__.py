"""Does a task need tuning, or does a head on frozen features do as well?

Before methods are compared on a task, it has to tell them apart: centralised full
tuning or LoRA must win over a head on frozen features by five points of accuracy, with
an interval above zero. One task a run (`--set task=intents`), three seeds; a seed
draws the training examples, the head and the adapter.

word-senses: has a word one sense in both sentences? Pairs from WordNet, split by word,
MiniLM. reply-choice: is this the reply that a person gave? Conversations of chitchat,
split by conversation, MiniLM. intents: 42 intents in 65 languages, nine languages held
out whole, multilingual-e5-small.

Control: LoRA on shuffled labels.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import datasets, models, peft, study, tasks
from fedjax_fm.datasets import Table

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
E5 = "intfloat/multilingual-e5-small"
HELD_OUT = ("de", "ru", "zh-CN", "tr", "fi", "hu", "ar", "el", "sw")
MARGIN = 5.0  # points that tuning has to bring
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run gate`; change one by `--set name=value`."""

    task: Literal["word-senses", "reply-choice", "intents"] = "word-senses"
    train: int = 3000  # examples
    test: int = 1000
    tuning_train: int = 1000
    max_length: int = 48  # tokens
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


class Rows(NamedTuple):
    """A table's rows by what they are for."""

    table: Table
    model: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Data(NamedTuple):
    """Arrays of one seed, and the classifier before any method."""

    whole: nnx.Module
    train: Arrays
    test: Arrays


def data(config: Config, seed: int, split: str) -> Data:
    """Draws examples; those that tune are of a fixed quarter that no seed uses."""
    rows = read(config.task)
    fixed = np.random.default_rng(2026).permutation(rows.train)
    n = len(fixed) // 4
    own, judged, wanted = fixed[n:], rows.test, config.train
    if split == "tuning":
        own, judged, wanted = fixed[:n], rows.validation, config.tuning_train
    random = np.random.default_rng(seed)
    train = random.permutation(own)[:wanted]
    test = np.random.default_rng(0).permutation(judged)[: config.test]
    n_classes = int(rows.table["label"].max()) + 1
    whole = models.from_pretrained(
        rows.model, num_labels=n_classes, pooling="mean", seed=seed
    )
    return Data(
        whole=whole,
        train=encoded(rows, train, config.max_length),
        test=encoded(rows, test, config.max_length),
    )


@functools.cache
def read(task: str) -> Rows:
    """The rows of a task; labels are numbers from 0.

    Args:
      task: of the configuration.
    """
    if task == "word-senses":
        table = datasets.load_word_senses()
        return _by_split(table, MINILM)
    if task == "reply-choice":
        table = datasets.reply_choice(datasets.load_chitchat())
        pairs = {"text": table["context"], "text_pair": table["reply"]}
        columns = {**pairs, "label": table["label"], "split": table["split"]}
        return _by_split(Table(columns, table.provenance), MINILM)
    return _across_languages(datasets.load_intents())


def _by_split(table: Table, model: str) -> Rows:
    """The split that the table has."""

    def of(name: str) -> np.ndarray:
        return np.flatnonzero(table["split"] == name)

    return Rows(
        table=table,
        model=model,
        train=of("train"),
        validation=of("validation"),
        test=of("test"),
    )


def _across_languages(table: Table) -> Rows:
    """Languages that are held out whole; validation is of held-out templates."""
    names, numbers = np.unique(table["label"].astype(str), return_inverse=True)
    columns = {name: table[name] for name in table.columns}
    columns["label"] = numbers.astype(np.int32)
    numbered = Table(columns, {**table.provenance, "classes": len(names)})
    held_out = [name for name in HELD_OUT if (table["language"] == name).any()]
    rows = datasets.hold_out_languages(numbered, held_out)
    is_train = numbered["split"][rows["train"]] == "train"
    return Rows(
        table=numbered,
        model=E5,
        train=rows["train"][is_train],
        validation=rows["train"][~is_train],
        test=rows["test"],
    )


def encoded(rows: Rows, chosen: np.ndarray, max_length: int) -> Arrays:
    """Rows as a model reads them; e5 wants its prefix.

    Args:
      rows: of the task.
      chosen: row numbers.
      max_length: tokens.
    """
    part = rows.table.select(chosen)
    prefix = "query: " if rows.model == E5 else ""
    texts = [prefix + text for text in part["text"]]
    pairs = list(part["text_pair"]) if "text_pair" in part.columns else None
    tokenizer = models.load_tokenizer(rows.model)
    tokens = models.tokenize(tokenizer, texts, max_length, pairs=pairs)
    return {**tokens, "label": part["label"].astype(np.int32)}


def trained(run: study.Run, kind: str, shuffle: bool = False) -> dict[str, float]:
    """One place has all examples; a round is one step of Adam."""
    config, found = run.config, run.data
    method = {
        "head": peft.head(),
        "lora": peft.lora(config.rank, 2.0 * config.rank, targets=r"query|value"),
        "full": peft.full(),
    }[kind]
    adapted = peft.apply(found.whole, method, jax.random.key(run.seed))
    task = tasks.classification(adapted)
    train = dict(found.train)
    if shuffle:
        train["label"] = np.random.default_rng(run.seed).permutation(train["label"])
    steps = config.epochs * -(-len(train["label"]) // config.batch_size)
    schedule = optax.cosine_decay_schedule(run["learning_rate"], steps, alpha=0.1)
    server = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    algorithm = ffm.fedavg(
        task, optax.sgd(1.0), server, local_steps=1, batch_size=config.batch_size
    )
    simulated = run.simulate(
        algorithm,
        ffm.Population.from_clients([train]),
        adapted.delta,
        steps,
        backbone=adapted.backbone,
        cohort_size=1,
        task=task,
        test=found.test,
        every=steps,
        bucket=16,
        travels=False,
    )
    return {"accuracy": simulated.scores["accuracy"]}


def _arm(name: str, label: str, **more: Any) -> study.Arm:
    """An arm that tunes its own learning rate."""
    grid = {} if "like" in more else {"learning_rate": f"{name}_rates"}
    kind = more.get("like", name)
    run = functools.partial(trained, kind=kind, shuffle="like" in more)
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
