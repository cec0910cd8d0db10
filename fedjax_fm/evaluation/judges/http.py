"""A judge that is an external model, asked over HTTP."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_fm import checks
from fedjax_fm.evaluation.judges.judge import Decision, Judge, Pair, Verdict

INSTRUCTION = (
    "You compare two answers to one question. Judge which answer is more helpful, "
    "correct and to the point. Neither the order nor the length of the answers counts. "
    "Write [[A]] if answer A is better, [[B]] if answer B is better, and [[C]] for a "
    "tie. Write nothing else."
)
MARKS: dict[str, Verdict] = {"[[A]]": "a", "[[B]]": "b", "[[C]]": "tie"}


class Unreachable(Exception):
    """The judge gave no answer; it can be asked later."""


def http_judge(
    model: str,
    url: str,
    folder: str | os.PathLike[str],
    *,
    key_variable: str | None = None,
    answers_as: str | None = None,
    temperature: float = 0.0,
    timeout: float = 60.0,
) -> Judge:
    """An external model behind an interface of chat completions.

    It is asked once a pair and an order: `POST url` with `model`, `messages` and
    `temperature`, as OpenAI's, vLLM's and llama.cpp's servers take them. Every request
    and every answer is a line of `folder/judges/NAME.jsonl`; the key is in no file.

    The judge is called what the server says that it is: an answer that comes from
    another model than was asked for is an error, not a verdict.

    Where the server cannot be reached, the remaining pairs wait and the run goes on;
    `compare_waiting` asks again.

    Args:
      model: the model's name, as the server knows it.
      url: of the endpoint, such as "http://localhost:8000/v1/chat/completions".
      folder: of the run.
      key_variable: of the environment, which holds the key; None: no key is sent. It is
        read at each call of the judge.
      answers_as: the name that the server's answers have where it is not `model`, such
        as a dated version; it is then the judge's name.
      temperature: of the judge.
      timeout: of one request, in seconds.

    Returns:
      A judge. Answers without one mark, or with several, are errors.

    Raises:
      TypeError, ValueError: no name, a URL that is not http or https, a number out of
        bounds, a key that is not in the environment.

    Warns:
      UserWarning: the server could not be reached.

    References:
      Zheng et al. 2023, arXiv 2306.05685, section 3.1 and figure 5 (pairs, [[A]]).

    Example:
      >>> url = "http://localhost:8000/v1/chat/completions"
      >>> http_judge("a-model", url, "runs/one").name
      'a-model at localhost:8000'
    """
    parts = urllib.parse.urlsplit(checks.text("url", url))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"expected url as http://... or https://..., got url={url!r}")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            "expected a url without user, password and query, which would be written "
            "down; put the key into the environment and name it: key_variable=..."
        )
    if not checks.text("model", model).strip():
        raise ValueError("expected the name of the judging model, got an empty text")
    if key_variable is not None:
        _key(checks.text("key_variable", key_variable))  # missing: now, not in an hour
    expected = model if answers_as is None else checks.text("answers_as", answers_as)
    checks.real("temperature", temperature, least=0)
    checks.real("timeout", timeout, above=0)
    name = f"{expected} at {parts.netloc}"
    plain = "".join(c if c.isalnum() else "-" for c in name)
    record = Path(folder) / "judges" / f"{plain}.jsonl"

    def ask(pair: Pair, key: str | None) -> Decision:
        body = _request(model, pair, temperature)
        row: dict[str, Any] = {"url": url, "request": body}
        try:
            answer = _post(url, body, key, timeout)
        except Unreachable as error:
            _append(record, {**row, "error": str(error)}, key)
            raise
        _append(record, {**row, "answer": answer}, key)
        return read_answer(answer, expected)

    def decide(pairs: Sequence[Pair]) -> list[Decision]:
        key = _key(key_variable)
        found: list[Decision] = []
        for pair in pairs:
            try:
                found.append(ask(pair, key))
            except Unreachable as error:
                why = _without(str(error), key)
                left = len(pairs) - len(found)
                warnings.warn(
                    f"the judge {name} cannot be reached: {why}; {left} pairs wait, see "
                    "judges.compare_waiting",
                    stacklevel=3,
                )
                return found + [Decision("waiting", why)] * left
        return found

    return Judge(name, decide)


def read_answer(answer: Any, expected: str) -> Decision:
    """The decision in a server's answer.

    Args:
      answer: of the server, decoded from JSON.
      expected: the model that is to have answered.

    Returns:
      A decision; an error where the answer is from another model, of another form, or
      has not exactly one mark.

    Example:
      >>> said = {"message": {"content": "[[B]]"}}
      >>> read_answer({"model": "m", "choices": [said]}, "m").verdict
      'b'
      >>> read_answer({"model": "n", "choices": [said]}, "m").why
      "the answer is from 'n', not from 'm'"
    """
    try:
        said, text = answer["model"], answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return Decision("error", "the answer is no chat completion")
    if said != expected:
        return Decision("error", f"the answer is from {said!r}, not from {expected!r}")
    marks = [mark for mark in MARKS if mark in str(text)]
    if len(marks) != 1:
        return Decision("error", f"the answer has {len(marks)} marks, expected one")
    return Decision(MARKS[marks[0]])


def _request(model: str, pair: Pair, temperature: float) -> dict[str, Any]:
    """The body of a request."""
    parts = [f"Question:\n{pair.prompt}"]
    if pair.reference:
        parts.append(f"A right answer:\n{pair.reference}")
    parts += [f"Answer A:\n{pair.a}", f"Answer B:\n{pair.b}"]
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": "\n\n".join(parts)},
        ],
        "temperature": float(temperature),
    }


def _post(url: str, body: dict[str, Any], key: str | None, timeout: float) -> Any:
    """The server's answer, decoded.

    Raises:
      Unreachable: none came, or one that says that none will.
    """
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read().decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        raise Unreachable(f"it says {error.code} {error.reason}") from error
    except (urllib.error.URLError, OSError) as error:
        raise Unreachable(f"{getattr(error, 'reason', error)}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _key(variable: str | None) -> str | None:
    """The key, from the environment.

    Raises:
      ValueError: the variable is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ValueError(
            f"expected the judge's key in the environment as {variable}, which is not "
            "set; key_variable=None sends no key"
        )
    return key


def _append(record: Path, row: dict[str, Any], key: str | None) -> None:
    """One more line of the record."""
    record.parent.mkdir(parents=True, exist_ok=True)
    line = _without(json.dumps(row, ensure_ascii=False), key)
    with record.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _without(text: str, key: str | None) -> str:
    """The text without the key, which a server may repeat."""
    return text if key is None else text.replace(key, "[key]")
