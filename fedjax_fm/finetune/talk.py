"""`fedjax-fm chat` and `fedjax-fm predict`: the model of a run that is done."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fedjax_fm as ffm
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune import examples as of_rows
from fedjax_fm.finetune import files
from fedjax_fm.finetune.answers import answers
from fedjax_fm.finetune.command import check_weights, reopened
from fedjax_fm.finetune.data import Subject
from fedjax_fm.finetune.outputs import DELTA, folder_of, restored
from fedjax_fm.finetune.report import FACTS
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.templates import Asked, folded
from fedjax_fm.finetune.turns import context, each_answer
from fedjax_fm.models.chat import Chat
from fedjax_fm.peft import Adapted
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.types import Tree


class Opened(NamedTuple):
    """A trained model.

    Attributes:
      settings: of its run.
      subject: what it was trained for.
      adapted: its structure, and its values before training.
      parts: (delta, backbone) after training.
    """

    settings: Settings
    subject: Subject
    adapted: Adapted
    parts: tuple[Tree, Tree]


def opened(place: Path, seed: int | None = None) -> Opened:
    """Opens the model that a run has trained.

    Args:
      place: of the run's folder.
      seed: of the run; None: its first.

    Returns:
      The model.

    Raises:
      UsageError: the run is not done, has no such seed, or has changed frozen weights.
    """
    folder, settings = reopened(place)
    seed = settings.seeds[0] if seed is None else seed
    if seed not in settings.seeds:
        raise UsageError(f"{place} has the seeds {settings.seeds}, got seed={seed}")
    model = folder.inner(folder_of(settings, seed))
    if not model.has("saved.json"):
        raise UsageError(
            f"{place} has no model yet: go on with fedjax-fm finetune --resume {place}"
        )
    facts = folder.read_json(FACTS)
    if "subject" not in facts:
        raise UsageError(f"{place} was written by another version: run it again")
    fields = dict(facts["subject"])
    subject = Subject(**{**fields, "classes": tuple(fields["classes"])})
    saved = model.read_json("saved.json")
    check_weights(settings, facts)
    if saved["changes_weights"]:
        raise UsageError(
            f"this method changed frozen weights; load {model.path / saved['merged'][0]} "
            "with models.from_pretrained"
        )
    adapted = of_data.adapted_model(settings, subject, seed)
    where = model.path / DELTA
    delta = restored(adapted.delta, model.read_arrays(DELTA), where)
    return Opened(
        settings=settings,
        subject=subject,
        adapted=adapted,
        parts=(delta, adapted.backbone),
    )


def chat(
    place: Path, ask: Callable[[], str | None], tell: Callable[[str], None]
) -> None:
    """Talks until there is no more to answer.

    Args:
      place: of the run's folder.
      ask: returns what the person says; None ends the talk.
      tell: shows an answer.

    Raises:
      UsageError: the model does not write text.
    """
    model = opened(place)
    template = of_data.chat_for(model.settings, model.subject)
    if template is None:
        raise UsageError("this run trained a classifier; try fedjax-fm predict")
    messages: list[dict[str, Any]] = []
    for said in iter(ask, None):
        messages.append({"role": "user", "content": said})
        is_text = model.subject.kind == "text"
        has_turns = isinstance(template, Chat) and model.settings.template == "chat"
        if is_text or not has_turns:
            messages = messages[-1:]  # these have one prompt
        (text,) = _answered(model, template, [messages])
        messages.append({"role": "assistant", "content": text})
        tell(text)


def _answered(model: Opened, chat: Asked, questions: list[Any]) -> list[str]:
    new_tokens = max(model.settings.new_tokens, 1)
    if model.settings.turns == "each" and isinstance(
        chat, Chat
    ):  # as in training, the oldest messages are cut
        most = model.settings.max_length
        questions = [context(chat, one, most) or one for one in questions]
    return answers(model.adapted, model.parts, chat, questions, new_tokens)


def predict(place: Path, file: Path, out: Path | None) -> tuple[Path, dict[str, float]]:
    """Scores a file of the same columns: a class or an answer for each row.

    Args:
      place: of the run's folder.
      file: the data.
      out: where a JSON object a row is written; default FILE.predictions.jsonl.

    Returns:
      (the path, {score: mean}; no scores where the file has no labels or answers).

    Raises:
      UsageError: the file lacks a column, or holds a class that was not trained.
    """
    model = opened(place)
    source = files.read(str(file))
    roles = of_rows.Roles(columns=_roles(model, source), guessed=False)
    target = out or file.with_suffix(".predictions.jsonl")
    if model.subject.kind == "classes":
        rows, scores = _classes(model, source, roles)
    elif model.subject.kind == "pairs":
        rows, scores = _pairs(model, source, roles)
    else:
        rows, scores = _texts(model, source, roles)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    RunFolder(target.parent).write_text(target.name, text)
    return target, scores


def _roles(model: Opened, source: files.Source) -> dict[str, str]:
    """The roles of the run, of which those of what is predicted may be missing."""
    columns = dict(model.subject.columns)
    lacking = [
        name
        for role, name in columns.items()
        if name not in source.columns and role not in ("label", "response")
    ]
    if lacking:
        raise UsageError(
            f"{source.name} lacks the column {lacking[0]!r} that the run was trained "
            f"on; it has {', '.join(source.columns)}"
        )
    return columns


def _classes(
    model: Opened, source: files.Source, roles: of_rows.Roles
) -> tuple[Iterator[dict[str, Any]], dict[str, float]]:
    """Rows with the most likely class and its probability."""
    import jax

    names = model.subject.classes
    found = of_rows.make(source, roles, model.subject)
    arrays = encoded_like(model, found)
    known = arrays["label"] >= 0
    scores = {}
    if known.any():
        task = of_data.task_of(model.subject, model.adapted)
        labelled = {name: rows[known] for name, rows in arrays.items()}
        scores = means(ffm.evaluate(task, *model.parts, labelled, batch_size=16))
    inputs = {name: rows for name, rows in arrays.items() if name != "label"}

    @jax.jit
    def probabilities(parts, batch):
        logits = model.adapted.model(*parts)(**batch)
        return jax.nn.softmax(logits.astype("float32"), axis=-1)

    chances = np.concatenate(
        [
            np.asarray(probabilities(model.parts, _batch(inputs, start)))
            for start in range(0, len(found.rows), 16)
        ]
    )[: len(found.rows)]

    def rows() -> Iterator[dict[str, Any]]:
        for place, chance in enumerate(chances):
            best = int(chance.argmax())
            yield {
                "row": int(found.rows[place]),
                "label": names[best],
                "probability": round(float(chance[best]), 6),
            }

    return rows(), scores


def _pairs(
    model: Opened, source: files.Source, roles: of_rows.Roles
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows with the answer that the model prefers, against the model before training."""
    found = of_rows.make(source, roles, model.subject)
    _, encoded = of_data.encoded(model.settings, found, model.subject.model_type)
    usable = np.flatnonzero(encoded.usable)
    if not len(usable):
        raise UsageError(f"{source.name} has no pair of which both answers fit")
    arrays = {name: rows[usable] for name, rows in encoded.arrays.items()}
    task = of_data.task_of(model.subject, model.adapted)
    each = ffm.evaluate(task, *model.parts, arrays, batch_size=16)
    rows = [
        {
            "row": int(found.rows[place]),
            "prefers": "chosen" if margin > 0 else "rejected",
            "margin": round(float(margin), 6),
        }
        for place, margin in zip(usable, each["margin"], strict=True)
    ]
    return rows, means(each)


def _batch(arrays: dict[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
    """Sixteen rows from `start`; the last one is repeated to fill up."""
    n = len(next(iter(arrays.values())))
    rows = np.minimum(np.arange(start, start + 16), n - 1)
    return {name: array[rows] for name, array in arrays.items()}


def encoded_like(model: Opened, found: of_rows.Examples) -> dict[str, np.ndarray]:
    """Arrays of other examples, made as those of the run.

    Args:
      model: of the run.
      found: examples of the same kind.

    Returns:
      {column: [n, ...]}.
    """
    _, encoded = of_data.encoded(model.settings, found, model.subject.model_type)
    return encoded.arrays


def _texts(
    model: Opened, source: files.Source, roles: of_rows.Roles
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows with an answer; the scores are loss and perplexity of the file's answers."""
    found = of_rows.make(source, roles, model.subject)
    if model.settings.turns == "each":
        found = each_answer(found, with_open=True)
    rows: list[dict[str, Any]] = [{"row": int(row)} for row in found.rows]
    if model.settings.turns == "each":
        for line, turn in zip(rows, _turns(found.rows), strict=True):
            line["turn"] = turn
    is_scored = _ends_answered if model.settings.turns == "each" else _is_scored
    known = np.array([is_scored(value) for value in found.values])
    scores = {}
    if known.any():
        arrays = encoded_like(model, found.select(np.flatnonzero(known)))
        task = of_data.task_of(model.subject, model.adapted)
        each = ffm.evaluate(task, *model.parts, arrays, batch_size=16)
        scores = means(each)
        scores["perplexity"] = float(np.exp(scores["loss"]))
        for place, loss in zip(np.flatnonzero(known), each["loss"], strict=True):
            rows[place]["loss"] = round(float(loss), 6)
    template = of_data.chat_for(model.settings, model.subject)
    if template is None or found.kind == "text":
        return rows, scores
    asked = []
    for value in found.values:
        messages = folded(value, model.settings.template)
        asked.append(messages[:-1] if _ends_answered(messages) else messages)
    written = _answered(model, template, asked)
    return [
        {**row, "answer": text} for row, text in zip(rows, written, strict=True)
    ], scores


def _turns(rows: np.ndarray) -> list[int]:
    """Which answer of its row each example has, from 0."""
    seen: dict[int, int] = {}
    found = []
    for row in rows.tolist():
        found.append(seen.get(row, 0))
        seen[row] = found[-1] + 1
    return found


def _is_scored(value: Any) -> bool:
    """Whether there is a text, or an answer in a conversation."""
    if isinstance(value, str):
        return True
    return any(message["role"] == "assistant" for message in value)


def _ends_answered(messages: list[dict[str, Any]]) -> bool:
    return messages[-1]["role"] == "assistant"
