"""Does a language model need tuning on these texts, or does it know them already?

The gate of `gate` for next tokens: centralised full tuning or LoRA must win over the
model as it is by 0.1 nats a token of answers, with an interval above zero. One task a
run (`--set task=reasoning`), SmolLM2-135M-Instruct, three seeds; a seed draws the texts
that train and the adapter.

conversations: what people of chitchat write, whose words are nowhere in training.
prose: the next sentence of texts of 1961 that are held out whole; the Brown corpus.
reasoning: made questions of eleven kinds; also how many answers are exactly right, and
how many cannot be read. Much of what is gained in nats is the form of an answer.
roles: speeches of plays that are held out; the model has probably read them.

Control: LoRA on shuffled tokens of answers, or on the answers of other questions.
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import models, peft, study, tasks
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.gate.training import adapt, fixed_quarter, tuned
from fedjax_fm.experiments.gate_language.texts import MODEL, TASKS, Texts, read
from fedjax_fm.experiments.shared.conversations import Conversation, Rows, pretrained
from fedjax_fm.experiments.shared.language import without_meaning
from fedjax_fm.finetune.answers import answers as answers_of
from fedjax_fm.models.chat import Chat, load_chat

MARGIN = 0.1  # nats a token that tuning has to bring
TARGETS = "q_proj|v_proj"
HOW: dict[str, Any] = {"batch_size": 8, "bucket": 32}  # of evaluations


@dataclass(frozen=True)
class Config:
    """Settings of `fedjax-fm run gate_language`; change one by `--set name=value`."""

    task: Literal["conversations", "prose", "reasoning", "roles"] = "conversations"
    model: str = MODEL
    train: int = 96  # texts
    test: int = 48
    tuning_train: int = 48
    max_length: int = 64  # tokens; longer texts are cut
    answer_room: int = 24  # tokens that must be left for the first answer
    row_length: int = 128  # tokens of a training row, into which texts are packed
    epochs: int = 1
    batch_size: int = 2  # rows
    rank: int = 8
    answers: int = 48  # of the test's questions that are answered, where one is right
    # Adam's learning rates, along a cosine; as many for every arm.
    lora_rates: tuple[float, ...] = (1e-3, 3e-3)
    full_rates: tuple[float, ...] = (3e-5, 1e-4)
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        return dataclasses.replace(
            self,
            train=4,
            test=4,
            tuning_train=4,
            answers=4,
            lora_rates=(1e-3,),
            full_rates=(1e-4,),
            seeds=(0,),
        )


class Data(NamedTuple):
    """Tokens of one seed, and the model before any method."""

    chat: Chat
    whole: nnx.Module
    train: Rows  # packed
    shuffled: Rows  # packed; the same for the control
    test: Rows
    test_rows: list[int]  # numbers of `texts`
    texts: Texts


def data(config: Config, seed: int, split: str) -> Data:
    """Draws texts; those that tune are of a fixed quarter that no seed uses."""
    texts, chat = read(config.task), load_chat(config.model)
    tuning, own = fixed_quarter(texts.train)
    judged, wanted = texts.test, config.train
    if split == "tuning":
        own, judged, wanted = tuning, texts.validation, config.tuning_train
    order = np.random.default_rng(seed).permutation(own)
    train = first_fitting(chat, texts, order, wanted, config)
    order = np.random.default_rng(0).permutation(judged)
    test = first_fitting(chat, texts, order, config.test, config)

    def encoded(said: list[Conversation]) -> Rows:
        return chat.encode(said, config.max_length, truncate=True)

    said = [texts.say(row) for row in train]
    packed = models.pack(encoded(said), config.row_length)
    if TASKS[config.task].shuffles == "answers":
        mixed = models.pack(encoded(exchanged(said, seed)), config.row_length)
    else:
        mixed = without_meaning(packed, seed)
    return Data(
        chat=chat,
        whole=pretrained(config.model, "float32", "dense"),
        train=packed,
        shuffled=mixed,
        test=encoded([texts.say(row) for row in test]),
        test_rows=test,
        texts=texts,
    )


def first_fitting(
    chat: Chat, texts: Texts, order: np.ndarray, wanted: int, config: Config
) -> list[int]:
    """The first rows whose first answer has room, in an order.

    Args:
      chat: counts tokens.
      texts: of the task.
      order: row numbers.
      wanted: rows.
      config: has the length of a row and the room.

    Raises:
      ValueError: fewer fit.
    """

    def fit() -> Iterator[int]:
        for row in map(int, order):
            said = texts.say(row)
            speaks = [message["role"] == "assistant" for message in said]
            if not any(speaks):
                continue
            asked = chat.prompt_ids(said[: speaks.index(True)])
            if len(asked) + config.answer_room <= config.max_length:
                yield row

    found = [row for row, _ in zip(fit(), range(wanted), strict=False)]
    if len(found) < wanted:
        raise ValueError(
            f"{len(found)} texts of {len(order)} leave {config.answer_room} tokens for "
            f"an answer, {wanted} were asked for; raise max_length"
        )
    return found


def exchanged(said: list[Conversation], seed: int) -> list[Conversation]:
    """Each conversation with the last answer of another.

    Args:
      said: conversations, the last message the answer.
      seed: of their order; each takes the answer of the next one.
    """
    order = np.random.default_rng(seed).permutation(len(said))
    mixed = list(said)
    for row, other in zip(order, np.roll(order, 1), strict=True):
        mixed[row] = [*said[row][:-1], said[other][-1]]
    return mixed


def untuned(run: study.Run) -> dict[str, float]:
    """The model as it is: an adapter that was not trained changes nothing."""
    model = adapt(run, run.data.whole, "lora", TARGETS)
    task, parts = tasks.language_modeling(model), (model.delta, model.backbone)
    found = ffm.evaluate(task, *parts, run.data.test, **HOW)
    return {"loss": means(found)["loss"], **right(run, model, parts)}


def trained(run: study.Run, method: str, shuffle: bool = False) -> dict[str, float]:
    """One place has all texts; nats a token of those that test."""
    model = adapt(run, run.data.whole, method, TARGETS)
    task = tasks.language_modeling(model)
    train = run.data.shuffled if shuffle else run.data.train
    found = tuned(run, model, task, train, run.data.test, **HOW)
    return {"loss": found.scores["loss"], **right(run, model, found.model())}


def right(run: study.Run, model: peft.Adapted, parts: tuple) -> dict[str, float]:
    """How many greedy answers are exactly right, and how many cannot be read."""
    texts, config = run.data.texts, run.config
    if texts.check is None or run.is_tuning:
        return {}
    rows = run.data.test_rows[: config.answers]
    asked = [texts.say(row)[:-1] for row in rows]
    written = answers_of(model, parts, run.data.chat, asked, config.answer_room)
    found = [texts.check(*pair) for pair in zip(rows, written, strict=True)]
    return {
        "exact": float(np.mean([one.is_right for one in found])),
        "unparsable": float(np.mean([not one.is_parsed for one in found])),
    }


def _arm(name: str, label: str, **more: Any) -> study.Arm:
    """An arm that tunes its own learning rate."""
    grid = {} if "like" in more else {"learning_rate": f"{name}_rates"}
    method = more.get("like", name)
    run = functools.partial(trained, method=method, shuffle="like" in more)
    return study.Arm(name, run, label, grid, **more)


ARMS = (
    study.Arm("zero_shot", untuned, "zero-shot, the model as it is"),
    _arm("lora", "LoRA"),
    _arm("full", "full tuning"),
    _arm("shuffled", "LoRA, answers shuffled", like="lora"),
)
STUDY = study.Study(
    question="Does a language model need tuning on these texts?",
    expected=f"LoRA and full tuning win over zero-shot by {MARGIN} nats or more",
    config=Config,
    data=data,
    primary=study.LOSS,
    arms=ARMS,
    comparisons=[("lora", "zero_shot"), ("full", "zero_shot")],
    controls=[study.Control("shuffled", "lora")],
    scores=(
        study.Score("exact", "exactly right", unit="%", scale=100.0),
        study.Score("unparsable", unit="%", scale=100.0, highest=False),
    ),
)
