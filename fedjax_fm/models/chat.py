"""Conversations as text and as token ids, by the model's own chat template.

A template is a Jinja program that came with the weights: untrusted code. It runs, as in transformers, in
`ImmutableSandboxedEnvironment`, with `trim_blocks`, `lstrip_blocks` and `raise_exception`.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from fedjax_fm.models.gguf_file import GGUFFile
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.models.locate import locate
from fedjax_fm.models.tokens import load_tokenizer
from fedjax_fm.models.weights import WeightError

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant", "content": text}


class Segment(NamedTuple):
    """A stretch of a rendered conversation."""

    text: str
    response: bool  # written by the assistant, its end-of-turn marker included


def render(template: str, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any) -> str:
    """The text of a conversation, as transformers' `apply_chat_template(tokenize=False)` gives it.

    Args:
      messages: in order; what roles and keys are allowed is the template's business.
      add_generation_prompt: ends with the opening of the assistant's turn, for generation.
      variables: what else the template may read (`bos_token`, `eos_token`, `tools`).

    Raises:
      ValueError: no messages, or the template refuses them or is not valid; gives its words.
    """
    import jinja2

    if not messages:
        raise ValueError("expected at least one message, got none")
    try:
        return _compiled(template).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt, **variables
        )
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not valid Jinja (line {error.lineno}): {error.message}") from error
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from error


@functools.lru_cache(maxsize=16)
def _compiled(template: str):
    """Compiled once: a corpus renders it thousands of times. Jinja is imported late, as most uses need no template."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # Jinja's own tojson escapes HTML, which no model was trained on.
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


class Chat(NamedTuple):
    """A tokenizer with its chat template; see `load_chat`."""

    tokenizer: Tokenizer
    template: str
    variables: Mapping[str, str | None]  # what the template reads besides messages: bos_token, eos_token
    eos_token_id: int | None
    pad_token_id: int

    def text(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The whole conversation as text."""
        return render(self.template, messages, add_generation_prompt=add_generation_prompt, **self.variables)

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The conversation cut into prompts and the assistant's answers; their texts add up to `text(messages)`.

        Raises:
          ValueError: the template rewrites earlier turns when later ones follow, so that there is no such cut.
        """
        found, done = [], ""
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            if number == 0:
                raise ValueError("the first message is the assistant's: an answer needs a prompt before it")
            prompt = self.text(messages[:number], add_generation_prompt=True)
            answered = self.text(messages[: number + 1])
            if not prompt.startswith(done) or not answered.startswith(prompt):
                raise ValueError(
                    f"the chat template rewrites what comes before message {number}; answers have no fixed place"
                )
            found += [Segment(prompt[len(done) :], False), Segment(answered[len(prompt) :], True)]
            done = answered
        whole = self.text(messages)
        if not whole.startswith(done):
            raise ValueError("the chat template rewrites earlier answers; they have no fixed place")
        return [segment for segment in (*found, Segment(whole[len(done) :], False)) if segment.text]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation and the opening of the assistant's turn, for `pad_prompts`."""
        return self._encode(self.text(messages, add_generation_prompt=True)).ids

    def encode(
        self, conversations: Sequence[Sequence[Message]], max_length: int, truncate: bool = False
    ) -> dict[str, np.ndarray]:
        """{"input_ids", "attention_mask", "labels"}: int32[n, max_length], padded on the right, for training.

        The ids are those of the whole text, as transformers gives them. Labels are the ids where the assistant
        speaks (its end-of-turn marker included) and -100 elsewhere; a token that begins in the prompt is prompt.

        Args:
          truncate: cut longer conversations on the right instead of refusing them.

        Raises:
          ValueError: a conversation is longer than max_length, or nothing of an answer is left of it.
        """
        ids = np.full((len(conversations), max_length), self.pad_token_id, np.int32)
        mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for row, messages in enumerate(conversations):
            segments = self.segments(messages)
            encoding = self._encode("".join(segment.text for segment in segments))
            n = len(encoding.ids)
            if n > max_length and not truncate:
                raise ValueError(f"conversation {row} has {n} tokens, more than max_length={max_length}; see truncate")
            n = min(n, max_length)
            ends = np.cumsum([len(segment.text) for segment in segments])
            starts = np.array([start for start, _ in encoding.offsets[:n]])
            spoken = np.array([s.response for s in segments])[np.searchsorted(ends, starts, side="right")]
            if not spoken.any():
                raise ValueError(
                    f"conversation {row} has no answer within its first {max_length} tokens: nothing to train"
                )
            ids[row, :n], mask[row, :n] = encoding.ids[:n], 1
            labels[row, :n] = np.where(spoken, ids[row, :n], IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _encode(self, text: str):
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        return self.tokenizer.encode(text, add_special_tokens=False)  # the template writes them itself


def load_chat(folder_or_hub_id: str | os.PathLike[str]) -> Chat:
    """The tokenizer and the chat template of a model, wherever `locate` finds it.

    Raises:
      FileNotFoundError, WeightError: say what is missing; a base model has no chat template.
    """
    files = locate(folder_or_hub_id)
    if files.weights.suffix == ".gguf":
        opened = GGUFFile(files.weights)
        tokenizer, (bos, eos, pad) = opened.tokenizer(), opened.special_tokens()
        named = {"bos_token": bos, "eos_token": eos}
        variables = {name: tokenizer.id_to_token(i) for name, i in named.items() if i is not None}
        return Chat(tokenizer, opened.chat_template(), variables, eos, _padding(pad, eos, files.weights))
    tokenizer = load_tokenizer(files.folder)
    fields = _read_json(files.folder / "tokenizer_config.json")
    words = {name: _word(fields.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    ids = {name: tokenizer.token_to_id(word) for name, word in words.items() if word is not None}
    variables = {name: word for name, word in words.items() if word is not None and name != "pad_token"}
    eos = ids.get("eos_token")
    pad = _padding(ids.get("pad_token"), eos, files.folder)
    return Chat(tokenizer, _folder_template(files.folder, fields), variables, eos, pad)


def _padding(pad: int | None, eos: int | None, where: Path) -> int:
    if pad is None and eos is None:
        raise WeightError(f"{where} names neither a padding nor an end token")
    return pad if pad is not None else eos  # type: ignore[return-value]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise WeightError(f"{path} is not JSON ({error}); download it again") from error


def _word(token: str | dict[str, Any] | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token


def _folder_template(folder: Path, fields: dict[str, Any]) -> str:
    own = folder / "chat_template.jinja"
    template = own.read_text(encoding="utf-8") if own.is_file() else fields.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not template:
        raise WeightError(f"{folder} has no chat template; it is a base model, or make a `Chat` with your own")
    return template
