"""All that the arms of a run are given: a model, a task, and the clients' arrays."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from fedjax_fm import models, peft, tasks
from fedjax_fm.finetune import clients as federation
from fedjax_fm.finetune import examples as of_rows
from fedjax_fm.finetune import files, preferred, tokens, turns
from fedjax_fm.finetune.adapters import adapter_of
from fedjax_fm.finetune.clients import Clients, Dealt
from fedjax_fm.finetune.examples import Examples, Kind, Roles
from fedjax_fm.finetune.expressions import names_in
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.planted import planted
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.templates import Asked, chat_of, folded, one_question
from fedjax_fm.finetune.tokens import Arrays, Encoded
from fedjax_fm.models.chat import Chat
from fedjax_fm.models.families import config_of
from fedjax_fm.models.locate import locate
from fedjax_fm.models.weights import read_config
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import replace
from fedjax_fm.types import Task

Conversation = list[dict[str, Any]]


class Subject(NamedTuple):
    """What a model is trained for; enough to use it without the data.

    Attributes:
      kind: of the examples.
      classes: their names, in order of their numbers.
      columns: {role: column}.
      model_type: of config.json.
      preferences: the loss, of pairs; "" of other kinds.
    """

    kind: Kind
    classes: tuple[str, ...]
    columns: dict[str, str]
    model_type: str
    preferences: str = ""


class Prepared(NamedTuple):
    """What does not depend on the seed.

    Attributes:
      source: the table.
      roles: which column is what.
      examples: of the table.
      clients: who has which.
      encoded: the examples as arrays.
      chat: how a language model is asked; None for others.
      subject: what the model is trained for.
      counts: {what was counted, cut or left out: how many}.
    """

    source: Source
    roles: Roles
    examples: Examples
    clients: Clients
    encoded: Encoded
    chat: Asked | None
    subject: Subject
    counts: dict[str, int]


class Data(NamedTuple):
    """What an arm is given.

    Attributes:
      prepared: what does not depend on the seed.
      adapted: the model with its PEFT method.
      task: of one adapter.
      personal_task: of a shared and a private adapter; None without LoRA, and of pairs.
      train: arrays of each client that trains.
      own: scored arrays of the same clients; of no rows where there are none.
      unseen: scored arrays of clients that never train.
      prompts: held-out conversations, whose answers are shown.
      leaks: scored examples that were left out, as they are trained on.
    """

    prepared: Prepared
    adapted: peft.Adapted
    task: Task
    personal_task: Task | None
    train: list[Arrays]
    own: list[Arrays]
    unseen: list[Arrays]
    prompts: list[Conversation]
    leaks: int

    @property
    def agreements(self) -> tuple[str, ...]:
        """Scores of a benchmark's authors that are no means over examples."""
        return agreements_of(self.prepared)

    @property
    def judged(self) -> list[Arrays]:
        """What the server's model is scored on: unseen clients, else the own examples."""
        return self.unseen or [rows for rows in self.own if length(rows)]


def agreements_of(ready: Prepared) -> tuple[str, ...]:
    """Names of a benchmark's scores that are no means over examples.

    Args:
      ready: has the table and its examples.

    Returns:
      Of "MCC" and "F1", in the order of the benchmark's authors; F1 of two classes.
    """
    if ready.examples.kind != "classes":
        return ()
    taken = ("MCC", "F1") if len(ready.examples.classes) == 2 else ("MCC",)
    return tuple(name for name in ready.source.metrics if name in taken)


def length(arrays: Arrays) -> int:
    """Rows of a client.

    Args:
      arrays: {column: [n, ...]}.
    """
    return len(next(iter(arrays.values())))


@functools.lru_cache(maxsize=2)
def prepare(settings: Settings) -> Prepared:
    """Reads the data, decides who the clients are, and makes arrays of all examples.

    Args:
      settings: of the run.

    Returns:
      What does not depend on the seed.

    Raises:
      UsageError: data, columns, clients or a template that make no sense.
    """
    source = files.read(settings.data, settings.split, settings.stand_in)
    roles = of_rows.choose(settings, source)
    preferred.check(settings, roles.kind)
    kind = model_type_of(settings.model)
    examples = examples_of(settings, source, roles, kind)
    chat, rows = encoded(settings, examples, kind)
    usable = np.flatnonzero(rows.usable)
    if not len(usable):
        counted = "; ".join(f"{n} {why}" for why, n in (rows.lost or {}).items() if n)
        raise UsageError(
            f"no answer fits into max_length={settings.max_length} tokens"
            f"{f' ({counted})' if counted else ''}; give a larger --max-length"
        )
    examples = examples.select(usable)
    arrays = {name: array[usable] for name, array in rows.arrays.items()}
    clients = federation.find(settings, source, examples)
    counts = {f"rows with {reason}": n for reason, n in examples.dropped.items()}
    counts |= rows.counts | clients.counts
    return Prepared(
        source=source,
        roles=roles,
        examples=examples,
        clients=clients,
        encoded=rows._replace(arrays=arrays),
        chat=chat,
        subject=Subject(
            kind=examples.kind,
            classes=examples.classes,
            columns=roles.columns,
            model_type=kind,
            preferences=settings.preferences if examples.kind == "pairs" else "",
        ),
        counts={name: n for name, n in counts.items() if n},
    )


def examples_of(
    settings: Settings, source: Source, roles: Roles, model_type: str
) -> Examples:
    """Examples of the rows, one a row or one an answer.

    Args:
      settings: of the run.
      source: the table.
      roles: which column is what.
      model_type: of config.json.

    Raises:
      UsageError: rows that hold no such examples.
    """
    found = of_rows.make(source, roles)
    if settings.turns == "all":
        return found
    if model_type == "t5":
        raise UsageError(
            "--turns each reads the conversation before an answer; an encoder-decoder "
            "takes one prompt and one answer: leave it out"
        )
    return turns.each_answer(found)


def model_type_of(model: str) -> str:
    """The `model_type` of a model's config.json, or of its .gguf file.

    Args:
      model: a folder, a .gguf file or a hub id.
    """
    found = locate(model)
    if found.weights.suffix == ".gguf":
        return "llama"
    return str(read_config(found.folder)["model_type"])


def encoded(
    settings: Settings, examples: Examples, kind: str
) -> tuple[Asked | None, Encoded]:
    """Examples as arrays for the model.

    Args:
      settings: have the model, the template and the longest length.
      examples: of one kind.
      kind: `model_type` of the model.

    Returns:
      (how a language model is asked, arrays).

    Raises:
      UsageError: a model that does not take such examples.
    """
    name = settings.model
    if examples.kind == "classes":
        if examples.is_image:
            config = config_of(read_config(locate(name).folder))
            return None, tokens.pictures(examples, config, name)
        tokenizer = models.load_tokenizer(name)
        return None, tokens.classified(examples, tokenizer, settings)
    if examples.kind == "pairs":
        if kind == "t5":
            raise UsageError(
                "pairs are of decoders here; an encoder-decoder takes one answer"
            )
        chat = chat_of(settings)
        return chat, tokens.preferred(examples, chat, settings)
    if kind == "t5":
        if examples.kind == "text":
            raise UsageError("an encoder-decoder needs prompts and answers, not texts")
        asked = one_question(name)
        return asked, tokens.to_decoder(examples, asked.tokenizer, settings)
    if examples.kind == "text":
        chat = _of_texts(settings)
        return chat, tokens.texts(examples, chat, settings)
    chat = chat_of(settings)
    return chat, tokens.conversations(examples, chat, settings)


def chat_for(settings: Settings, subject: Subject) -> Asked | None:
    """How a model is asked that was trained; None for what writes no text.

    Args:
      settings: of the run.
      subject: what the model was trained for.
    """
    if subject.kind == "classes":
        return None
    if subject.model_type == "t5":
        return one_question(settings.model)
    return _of_texts(settings) if subject.kind == "text" else chat_of(settings)


def _of_texts(settings: Settings) -> Chat:
    """Texts have no turns; a base model's tokenizer is read without a template."""
    is_chat = settings.template == "chat"
    return chat_of(replace(settings, template="flan") if is_chat else settings)


def load(settings: Settings, seed: int, split: str) -> Data:
    """What the arms of one seed are given.

    Args:
      settings: of the run.
      seed: of the split, the head and the adapter.
      split: "tuning" or "final".

    Returns:
      Model, task and arrays.
    """
    ready = prepare(settings)
    dealt = federation.deal(ready.clients, ready.examples, settings, seed, split)
    own = federation.capped(dealt.own, settings.eval_examples, seed)
    unseen = federation.capped(dealt.unseen, settings.eval_examples, seed)
    subject = ready.subject
    adapted = adapted_model(settings, subject, seed)
    task = task_of(subject, adapted)
    # Pairs have one adapter: `preferred.check` refuses methods with two.
    has_two = "lora" in names_in(settings.peft) and subject.kind != "pairs"
    personal = task_of(subject, peft.beside(adapted)) if has_two else None
    rows = ready.encoded.arrays

    def arrays(places: np.ndarray) -> Arrays:
        return {name: array[places] for name, array in rows.items()}

    train = [arrays(places) for places in dealt.train]
    if settings.canaries and split == "final":
        train = planted(settings, ready.chat, train, seed)
    if settings.pack:
        if ready.subject.model_type == "t5":
            raise UsageError("--pack joins texts of decoders; leave it out here")
        train = [_packed(one, settings) for one in train]
    scored_unseen = [arrays(places) for places in unseen if len(places)]
    found = Data(
        prepared=ready,
        adapted=adapted,
        task=task,
        personal_task=personal,
        train=train,
        own=[arrays(places) for places in own],
        unseen=scored_unseen,
        prompts=_prompts(ready, dealt, settings, seed),
        leaks=dealt.leaks,
    )
    if not found.judged or (settings.holdout_clients and not found.unseen):
        also = ""
        if dealt.leaks:
            also = f" ({dealt.leaks} held-out examples equal ones that are trained on)"
        raise UsageError(
            f"nothing is held out to be scored{also}; raise --holdout-clients or "
            "--holdout-examples; --holdout-clients 0 scores own examples alone"
        )
    return found


def _packed(arrays: Arrays, settings: Settings) -> Arrays:
    if set(arrays) != {"input_ids", "attention_mask", "labels"}:
        raise UsageError("--pack joins texts of language models; leave it out here")
    return models.pack(arrays, settings.max_length)


def adapted_model(settings: Settings, subject: Subject, seed: int) -> peft.Adapted:
    """The model with its PEFT method, at its initial values.

    Args:
      settings: of the run.
      subject: has the classes and the kind of model.
      seed: of a new head and of the adapter.

    Returns:
      The adapted model.

    Raises:
      UsageError: a model or an adapter that does not fit the data.
    """
    n_classes = len(subject.classes) or None
    model = pretrained(settings, n_classes, seed if n_classes else 0)
    if n_classes is None and not hasattr(model, "head"):
        raise UsageError(
            f"{settings.model} is {type(model).__name__}, which writes no text; give a "
            "language model, or data with --label"
        )
    method = adapter_of(settings, subject.model_type)
    try:
        return peft.apply(model, method, jax.random.key(seed))
    except ValueError as error:
        raise UsageError(f"--peft {settings.peft}: {error}") from error


@functools.lru_cache(maxsize=4)
def pretrained(settings: Settings, n_classes: int | None, seed: int) -> nnx.Module:
    """The model, read once a seed of its head.

    Args:
      settings: of the run.
      n_classes: of a new head; None for a language model.
      seed: of the new head.
    """
    return models.from_pretrained(
        settings.model,
        num_labels=n_classes,
        pooling=settings.pooling,
        seed=seed,
        dtype=settings.dtype,
        frozen=settings.frozen,
    )


def task_of(subject: Subject, adapted: Any, predictions: bool = False) -> Task:
    """The task of these examples.

    Args:
      subject: has their kind.
      adapted: a model with one adapter, or with two beside each other.
      predictions: whether the class that is predicted is a metric, too.
    """
    if subject.kind == "classes":
        return tasks.classification(adapted, predictions=predictions)
    if subject.kind == "pairs":
        return preferred.objective(subject.preferences, adapted)
    return tasks.language_modeling(adapted)


def _prompts(
    ready: Prepared, dealt: Dealt, settings: Settings, seed: int
) -> list[Conversation]:
    """Held-out conversations, of as many clients as there are, one after the other.

    They end with the last answer whose prompt is as short as what was trained.
    """
    most = settings.max_length
    if ready.chat is None or ready.examples.kind != "conversation":
        return []
    groups = dealt.unseen or dealt.own
    places = federation.capped(groups, settings.answers, seed)
    found = []
    for place in np.concatenate(places) if places else ():
        messages = folded(ready.examples.values[int(place)], settings.template)
        if settings.turns == "each":
            assert isinstance(ready.chat, Chat)  # `examples_of` has seen to that
            asked = turns.context(ready.chat, messages[:-1], most)
            found += [[*asked, messages[-1]]] if asked else []
            continue
        answers = [k for k, one in enumerate(messages) if one["role"] == "assistant"]
        lengths = [len(ready.chat.prompt_ids(messages[:k])) for k in answers]
        within = [k for k, n in zip(answers, lengths, strict=True) if n <= most]
        if within:
            found.append(messages[: within[-1] + 1])
    return found


def sizes(parts: Sequence[Arrays]) -> np.ndarray:
    """Rows of each client.

    Args:
      parts: {column: [n, ...]} of each.

    Returns:
      i64[clients].
    """
    return np.array([length(one) for one in parts], np.int64)
