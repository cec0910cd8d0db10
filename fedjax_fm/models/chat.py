"""Conversations as text and as token ids, by the model's own chat template.

See `chat_template` for how a template runs.

Which tokens are trained: a template with `{% generation %}` marks the assistant's words
itself, and its marks are taken, as in transformers. For others an answer is what stands
between its prompt, rendered for generation, and its end: what the model would have seen
and written at that turn. Some templates write a turn in another way once others follow
(Qwen3 drops the reasoning of earlier answers). Then no single text holds all answers as
generation would see them, and a conversation is trained as one row an answer
(`answers="each"`) or by its last answer alone (`answers="last"`).
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from fedjax_fm import checks
from fedjax_fm.models import token_files
from fedjax_fm.models.chat_template import Marked, compiled, render, render_marked
from fedjax_fm.models.conversations import Message, is_message, plain_messages
from fedjax_fm.models.gguf_file import GGUFFile
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.models.locate import locate
from fedjax_fm.models.tokens import backend, load_tokenizer, without_padding
from fedjax_fm.models.weights import WeightError

__all__ = ["Chat", "Message", "Segment", "end_tokens", "load_chat", "render"]

Answers = Literal["all", "last", "each"]
Span = tuple[int, int]  # characters [begin, end)


class Segment(NamedTuple):
    """A stretch of a rendered conversation.

    Attributes:
      text: the stretch.
      response: whether the assistant wrote it; its end-of-turn marker is included.
    """

    text: str
    response: bool


class _Row(NamedTuple):
    """What becomes one row of token ids."""

    name: str  # for messages
    text: str
    spans: list[Span]  # what is trained
    marked: bool  # by the template itself


class Chat(NamedTuple):
    """A tokenizer with its chat template; see `load_chat`.

    Methods take what else the template reads by name: `tools`, `documents`,
    `enable_thinking`, a date. A name that the template does not read is refused, as a
    typo would change nothing.

    Attributes:
      tokenizer: of the `tokenizers` library.
      template: a Jinja program, see `render`.
      variables: special tokens by name, which the template may read: bos_token,
        eos_token.
      eos_token_id: the end token's id; None: the model has none.
      pad_token_id: fills rows.
      named: all templates by name, where there are several; see `use`.
      ends: ids that end generation, where they are not `eos_token_id` alone.

    Example:
      >>> from tokenizers import Tokenizer, models as words, pre_tokenizers
      >>> from fedjax_fm import models
      >>> vocabulary = {"<u>": 0, "<a>": 1, "</s>": 2, "Hi": 3, "Hello": 4}
      >>> tokenizer = Tokenizer(words.WordLevel(vocabulary, "</s>"))
      >>> tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
      >>> template = (
      ...     "{% for m in messages %}"
      ...     "{{ '<u> ' ~ m.content if m.role == 'user' else m.content ~ ' </s>' }} "
      ...     "{% if m.role == 'user' and (not loop.last or add_generation_prompt) %}"
      ...     "<a> {% endif %}{% endfor %}"
      ... )
      >>> chat = models.Chat(tokenizer, template, {"eos_token": "</s>"}, 2, 2)
      >>> question = {"role": "user", "content": "Hi"}
      >>> answer = {"role": "assistant", "content": "Hello"}
      >>> talk = [question, answer]
      >>> chat.text(talk)
      '<u> Hi <a> Hello </s> '
      >>> chat.encode([talk], max_length=6)["labels"]
      array([[-100, -100, -100,    4,    2, -100]], dtype=int32)
    """

    tokenizer: Tokenizer
    template: str
    variables: Mapping[str, str | None]
    eos_token_id: int | None
    pad_token_id: int
    named: Mapping[str, str] | None = None
    ends: tuple[int, ...] | None = None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids at any of which an answer ends, for `generate(eos_token_id=...)`."""
        if self.ends is not None:
            return self.ends
        return () if self.eos_token_id is None else (self.eos_token_id,)

    def use(self, name: str) -> "Chat":
        """The same chat with the template of that name for every conversation.

        Without it, "tool_use" is taken where tools are given, as in transformers.

        Args:
          name: one of `named`; "default" where there is one template only.

        Raises:
          ValueError: there is no template of that name.
        """
        named = self.named or {"default": self.template}
        checks.choice("name", name, list(named))
        return self._replace(template=named[name], named=None)

    def text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The whole conversation as text; see `render`.

        Args:
          messages: the conversation, in order.
          add_generation_prompt: ends with the opening of the assistant's turn.
          **variables: what else the template reads.

        Raises:
          TypeError, ValueError: as `render`; a variable that the template does not
            read.
        """
        return self._text(messages, add_generation_prompt, variables)

    def segments(self, messages: Sequence[Message], **variables: Any) -> list[Segment]:
        """The conversation cut into prompts and the assistant's answers.

        Args:
          messages: the conversation, in order.
          **variables: what else the template reads.

        Returns:
          Segments whose texts add up to `text(messages)`.

        Raises:
          ValueError: the template writes a turn in another way once others follow, so
            that there is no such cut.
        """
        row = self._whole("", plain_messages(messages), variables)
        edges = [0, *(edge for span in row.spans for edge in span), len(row.text)]
        pieces = [row.text[begin:end] for begin, end in itertools.pairwise(edges)]
        return [Segment(piece, bool(i % 2)) for i, piece in enumerate(pieces) if piece]

    def prompt_ids(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of the conversation and the opening of the assistant's turn.

        `pad_prompts` makes a batch of several.

        Args:
          messages: the conversation, in order.
          **variables: what else the template reads.
        """
        text = self.text(messages, add_generation_prompt=True, **variables)
        return self._encode(text).ids

    def encode(
        self,
        conversations: Iterable[Sequence[Message]],
        max_length: int,
        truncate: bool = False,
        answers: Answers = "all",
        **variables: Any,
    ) -> dict[str, np.ndarray]:
        """Conversations as padded rows of token ids with labels, for training.

        The ids are those of the whole text, as transformers gives them. Labels are the
        ids where the assistant speaks (its end-of-turn marker included) and -100
        elsewhere. A token that begins in the prompt is prompt; where `{% generation %}`
        says who speaks, one that reaches into its block is the assistant's, as in
        transformers.

        Args:
          conversations: each a list of messages.
          max_length: tokens of a row.
          truncate: cut longer conversations on the right instead of refusing them.
          answers: "all", n is the number of conversations; "last" trains the last
            answer alone, and what follows it is left out; "each" gives a row for each
            answer, with all that comes before it, in order, so that n is the number of
            answers.
          **variables: what else the template reads, the same for all conversations.

        Returns:
          {"input_ids", "attention_mask", "labels"}: int32[n, max_length], padded on the
          right.

        Raises:
          TypeError, ValueError: name the conversation. No list of conversations; a
            message that is none; a conversation longer than max_length, or with nothing
            of an answer left; a template that writes answers in another way once others
            follow, with "all".
        """
        checks.whole("max_length", max_length, least=1)
        checks.flag("truncate", truncate)
        checks.choice("answers", answers, ("all", "last", "each"))
        texts = self._rows(_listed(conversations), answers, variables)
        rows = [self._trained(row, max_length, truncate) for row in texts]
        ids = np.full((len(rows), max_length), self.pad_token_id, np.int32)
        mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for number, (tokens, spoken) in enumerate(rows):
            n = len(tokens)
            ids[number, :n], mask[number, :n] = tokens, 1
            labels[number, :n] = np.where(spoken, tokens, IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _rows(
        self, conversations: list[Any], answers: Answers, variables: dict[str, Any]
    ) -> Iterator[_Row]:
        """The texts that `encode` makes rows of; errors begin with the conversation."""
        for number, conversation in enumerate(conversations):
            name = f"conversation {number}"
            try:
                messages = plain_messages(conversation)
                if answers == "all":
                    yield self._whole(name, messages, variables)
                    continue
                places = _answers(messages)
                if not places:
                    raise ValueError(
                        "there is no answer: no message is the assistant's"
                    )
                for place in places if answers == "each" else places[-1:]:
                    yield self._one(
                        f"{name}, message {place}", messages[: place + 1], variables
                    )
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{name}: {error}") from error

    def _whole(
        self, name: str, messages: list[dict[str, Any]], variables: dict[str, Any]
    ) -> _Row:
        """All answers of a conversation within its one text."""
        whole = self._marked(messages, variables)
        if whole.spans is not None:
            return _Row(name=name, text=whole.text, spans=whole.spans, marked=True)
        places = _answers(messages)
        spans = []
        for place in places:
            start, answered = self._answer(messages[: place + 1], variables)
            end = len(answered)
            if not whole.text.startswith(answered):
                end = len(self._open(answered))
                if end < start or not whole.text.startswith(answered[:end]):
                    raise ValueError(
                        f"the chat template writes message {place} in another way "
                        "once messages follow it, so that one text does not hold "
                        "every answer as generation would see it; encode with "
                        "answers='each' (a row an answer) or answers='last'"
                    )
            spans.append((start, end))
        return _Row(name=name, text=whole.text, spans=spans, marked=False)

    def _one(
        self, name: str, messages: list[dict[str, Any]], variables: dict[str, Any]
    ) -> _Row:
        """The last message, an answer, after all that came before it."""
        whole = self._marked(messages, variables)
        if whole.spans is None:
            start, answered = self._answer(messages, variables)
            return _Row(
                name=name, text=answered, spans=[(start, len(answered))], marked=False
            )
        return _Row(
            name=name,
            text=whole.text,
            spans=self._last_spans(messages, whole, variables),
            marked=True,
        )

    def _last_spans(
        self, messages: list[dict[str, Any]], whole: Marked, variables: dict[str, Any]
    ) -> list[Span]:
        """The template's own spans that belong to the last message.

        They end behind its prompt. Where the template rewrites the prompt, they are
        those that the messages before it do not have.
        """
        spans = whole.spans or []
        if len(messages) == 1:
            return spans
        prompt = self._text(messages[:-1], True, variables)
        if whole.text.startswith(prompt):
            return [(begin, end) for begin, end in spans if end > len(prompt)]
        return spans[len(self._marked(messages[:-1], variables).spans or []) :]

    def _answer(
        self, messages: list[dict[str, Any]], variables: dict[str, Any]
    ) -> tuple[int, str]:
        """Where the answer begins that ends a conversation, and the whole text."""
        place = len(messages) - 1
        if place == 0:
            raise ValueError(
                "the first message is the assistant's: an answer needs a prompt before "
                "it"
            )
        prompt = self._text(messages[:-1], True, variables)
        answered = self._text(messages, False, variables)
        if answered.startswith(prompt):
            return len(prompt), answered
        pairs = enumerate(zip(prompt, answered, strict=False))
        alike = next((i for i, (a, b) in pairs if a != b), len(answered))
        raise ValueError(
            f"the chat template rewrites what comes before message {place} once "
            "it is answered: for generation it opens an answer with "
            f"{prompt[alike:]!r:.60}, and the answered text has "
            f"{answered[alike:]!r:.60} there. What is trained would not be what "
            "is generated; give variables or a template with which both agree"
        )

    def _open(self, text: str) -> str:
        """The text without a token that a template writes once, at its end (Phi-3)."""
        for token in self.variables.values():
            if token and text.endswith(token):
                return text.removesuffix(token)
        return text

    def _text(
        self, messages: Sequence[Message], prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        """The rendered text."""
        return render(
            self._template(variables), messages, **self._given(prompt, variables)
        )

    def _marked(
        self, messages: Sequence[Message], variables: Mapping[str, Any]
    ) -> Marked:
        """The rendered text and where the template's own marks lie."""
        return render_marked(
            self._template(variables), messages, **self._given(False, variables)
        )

    def _given(self, prompt: bool, variables: Mapping[str, Any]) -> dict[str, Any]:
        """What the template gets besides messages."""
        words = {
            name: word for name, word in self.variables.items() if word is not None
        }
        return {**words, **variables, "add_generation_prompt": prompt}

    def _template(self, variables: Mapping[str, Any]) -> str:
        """The template for these variables.

        Raises:
          ValueError: it does not read one of them.
        """
        with_tools = variables.get("tools") is not None
        if (
            with_tools
            and self.named
            and self.template == self.named.get("default")
            and "tool_use" in self.named
        ):
            return self.named["tool_use"]
        program = compiled(self.template)
        for name, value in variables.items():
            none = name in ("tools", "documents") and value is None
            if name not in program.names and not none:
                raise ValueError(
                    f"the chat template does not read {name!r}; it reads "
                    f"{list(program.reads)}"
                )
        return self.template

    def _trained(
        self, row: _Row, max_length: int, truncate: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids int[n], whether each is trained bool[n]), n <= max_length."""
        encoding = self._encode(row.text)
        n = len(encoding.ids)
        if n > max_length and not truncate:
            raise ValueError(
                f"{row.name} has {n} tokens, more than max_length={max_length}; see "
                "truncate"
            )
        n = min(n, max_length)
        starts, ends = np.array(encoding.offsets[:n], np.int64).reshape(n, 2).T
        spoken = np.zeros(n, bool)
        for begin, end in row.spans:
            spoken |= (starts >= begin) & (starts < end)
            if row.marked:
                spoken |= (starts < begin) & (ends > begin)
        if not spoken.any():
            raise ValueError(
                f"{row.name} has no answer within its first {max_length} tokens: "
                "nothing to train"
            )
        return np.array(encoding.ids[:n], np.int64), spoken

    def _encode(self, text: str):
        """The encoding of a text; the template writes the special tokens itself."""
        with without_padding(backend(self.tokenizer)) as tokenizer:
            return tokenizer.encode(text, add_special_tokens=False)


def _answers(messages: Sequence[Message]) -> list[int]:
    """The numbers of the assistant's messages."""
    return [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant"
    ]


def _listed(conversations: Any) -> list[Any]:
    """The conversations as a list.

    Raises:
      TypeError: it is one conversation, or no list at all.
    """
    if isinstance(conversations, (str, bytes, Mapping)) or not isinstance(
        conversations, Iterable
    ):
        raise TypeError(
            f"expected a list of conversations, got a {type(conversations).__name__}"
        )
    conversations = list(conversations)
    if conversations and is_message(conversations[0]):
        raise TypeError(
            "expected a list of conversations, got one conversation (a list of "
            "messages); write [messages]"
        )
    return conversations


def load_chat(
    folder_or_hub_id: str | os.PathLike[str] | Any, *, template: str | None = None
) -> Chat:
    """The tokenizer and the chat template of a model, wherever `locate` finds it.

    Special tokens are those of tokenizer_config.json and special_tokens_map.json;
    templates those of chat_template.jinja and additional_chat_templates/, else of
    tokenizer_config.json, else of chat_template.json; ends of generation those of
    generation_config.json, else of config.json, else the tokenizer's.

    Args:
      folder_or_hub_id: a folder, a .gguf file or OWNER/NAME; or a fast tokenizer of
        transformers.
      template: a Jinja program that takes the place of the model's own, for a base
        model that has none.

    Returns:
      The chat.

    Raises:
      FileNotFoundError, WeightError: say what is missing; a base model has no chat
        template, and none is given.

    Example:
      >>> from fedjax_fm import models
      >>> name = "HuggingFaceTB/SmolLM2-135M-Instruct"
      >>> chat = models.load_chat(name)  # doctest: +SKIP
      >>> chat.prompt_ids([{"role": "user", "content": "Hi"}])  # doctest: +SKIP
    """
    given = None if template is None else {"default": checks.text("template", template)}
    if hasattr(folder_or_hub_id, "apply_chat_template"):
        return _of_transformers(folder_or_hub_id, given)
    files = locate(folder_or_hub_id)
    if files.weights.suffix == ".gguf":
        return _of_gguf(files.weights, given)
    tokenizer = load_tokenizer(files.folder)
    if not (files.folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{files.folder} has no tokenizer_config.json")
    fields = token_files.tokenizer_fields(files.folder)
    words = token_files.special_tokens(fields, files.folder)
    named = given or token_files.templates(files.folder, fields)
    read = compiled(named["default"]).names
    for name, word in words.items():
        needed = name == "eos_token" or name in read
        if needed and tokenizer.token_to_id(word) is None:
            raise WeightError(
                f"{files.folder} names the {name} {word!r}, which its tokenizer.json "
                "does not know"
            )
    eos, pad = (
        tokenizer.token_to_id(words[name]) if name in words else None
        for name in ("eos_token", "pad_token")
    )
    return _chat(
        tokenizer,
        named=named,
        words=words,
        eos=eos,
        pad=_padding(pad, eos, files.folder),
        ends=token_files.end_ids(files.folder),
    )


def end_tokens(folder_or_hub_id: str | os.PathLike[str]) -> tuple[int, ...]:
    """Ids at any of which generation ends, for `generate(eos_token_id=...)`.

    They are those of generation_config.json, else of config.json, else the tokenizer's
    own; or those of a .gguf file.

    Args:
      folder_or_hub_id: a folder, a .gguf file or OWNER/NAME; see `locate`.

    Returns:
      At least one id.

    Raises:
      FileNotFoundError, WeightError: the model or its tokenizer is not there, or it
        names no end.
    """
    files = locate(folder_or_hub_id)
    if files.weights.suffix == ".gguf":
        found = _ends_of_gguf(GGUFFile(files.weights))
    else:
        found = token_files.end_ids(files.folder)
    if found is None:
        fields = token_files.tokenizer_fields(files.folder)
        words = token_files.special_tokens(fields, files.folder)
        eos = None
        if "eos_token" in words:
            tokenizer = load_tokenizer(files.folder)
            eos = tokenizer.token_to_id(words["eos_token"])
        found = () if eos is None else (eos,)
    if not found:
        raise WeightError(
            f"{files.folder} names no end token; give generate(eos_token_id=...) your "
            "own, or None"
        )
    return found


def _chat(
    tokenizer: Tokenizer,
    *,
    named: Mapping[str, str],
    words: Mapping[str, str | None],
    eos: int | None,
    pad: int,
    ends: tuple[int, ...] | None,
) -> Chat:
    """A `Chat` of what was read."""
    return Chat(
        tokenizer=tokenizer,
        template=named["default"],
        variables=words,
        eos_token_id=eos,
        pad_token_id=pad,
        named=named if len(named) > 1 else None,
        ends=ends,
    )


def _of_gguf(path: Path, given: dict[str, str] | None) -> Chat:
    """The chat of a GGUF file, with the template that is given or its own."""
    opened = GGUFFile(path)
    tokenizer, (_, eos, pad) = opened.tokenizer(), opened.special_tokens()
    fields = {
        "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown",
        "sep_token": "seperator", "pad_token": "padding",
        "cls_token": "cls", "mask_token": "mask",
    }  # fmt: skip
    ids = {
        name: opened.field(f"tokenizer.ggml.{field}_token_id")
        for name, field in fields.items()
    }
    words = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
    return _chat(
        tokenizer,
        named=given or _named_in_gguf(opened),
        words=words,
        eos=eos,
        pad=_padding(pad, eos, path),
        ends=_ends_of_gguf(opened),
    )


def _named_in_gguf(opened: GGUFFile) -> dict[str, str]:
    """All chat templates of a GGUF file."""
    others = opened.field("tokenizer.chat_templates") or []
    named = {name: opened.field(f"tokenizer.chat_template.{name}") for name in others}
    return {**named, "default": opened.chat_template()}


def _ends_of_gguf(opened: GGUFFile) -> tuple[int, ...]:
    """Ids of the ends of texts, turns and messages, at which llama.cpp stops."""
    found = [
        opened.field(f"tokenizer.ggml.{word}_token_id")
        for word in ("eos", "eot", "eom")
    ]
    return tuple(dict.fromkeys(i for i in found if i is not None))


def _of_transformers(tokenizer: Any, given: dict[str, str] | None) -> Chat:
    """The chat of a fast tokenizer of transformers; its template, or the given one."""
    name = tokenizer.name_or_path or type(tokenizer).__name__
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    inner = backend(tokenizer)
    if not tokenizer.chat_template and given is None:
        raise WeightError(
            f"the tokenizer {name!r} has no chat template; give load_chat a template"
        )
    where = f"the tokenizer {name!r}"
    return _chat(
        inner,
        named=given or token_files.named_templates(tokenizer.chat_template, where),
        words=dict(tokenizer.special_tokens_map),
        eos=eos,
        pad=_padding(pad, eos, name),
        ends=None,
    )


def _padding(pad: int | None, eos: int | None, where: Any) -> int:
    """The padding's id, else the end's."""
    if pad is None and eos is None:
        raise WeightError(f"{where} names neither a padding nor an end token")
    return pad if pad is not None else eos  # type: ignore[return-value]
