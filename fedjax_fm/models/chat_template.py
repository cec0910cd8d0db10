"""Chat templates: Jinja programs that come with the weights, run as transformers does.

They are untrusted code. They run in `ImmutableSandboxedEnvironment` with `trim_blocks`,
`lstrip_blocks` and `loopcontrols`, and see plain data only.
`{% generation %}` ... `{% endgeneration %}` marks what the assistant writes.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from fedjax_fm import checks
from fedjax_fm.models.conversations import Message, kind, plain, plain_messages

_MARKS = "__generation_marks"  # the variable under which the extension finds them
# Unicode's noncharacters, which are never in text that is exchanged.
_NONCHARACTERS = [chr(0xFDD0 + i) for i in range(32)]


class Marked(NamedTuple):
    """A rendered conversation and what of it the assistant writes.

    Attributes:
      text: the whole.
      spans: characters [begin, end) of the assistant, in order; None: the template does
        not mark them.
    """

    text: str
    spans: list[tuple[int, int]] | None


class Compiled(NamedTuple):
    """A template, ready to run, and what stands in it.

    Attributes:
      template: a jinja2.Template.
      names: of all variables, those that it sets included.
      reads: names of what a caller may give.
      generates: whether it has `{% generation %}`.
    """

    template: Any
    names: frozenset[str]
    reads: tuple[str, ...]
    generates: bool


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The text of a conversation, by a chat template.

    It is what transformers' `apply_chat_template(tokenize=False)` gives.

    Args:
      template: a Jinja program, as tokenizer_config.json holds it.
      messages: in order. The template decides which roles and keys are allowed; here
        each message must have a role and content that is text (or parts, or
        tool_calls). Fields that are None count as missing.
      add_generation_prompt: ends with the opening of the assistant's turn, for
        generation.
      tools: JSON schemas of functions that may be called.
      documents: what the model may look things up in, by title and text.
      **variables: what else the template may read (`bos_token`, `eos_token`,
        `enable_thinking`). Many templates write today's date unless they are given one,
        such as `date_string`: texts then differ from day to day.

    Returns:
      The text.

    Raises:
      TypeError, ValueError: no messages, a message that is none (names it), or the
        template refuses them, fails or is not valid; gives its words.

    Example:
      >>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
      >>> render(template, [{"role": "user", "content": "Hi"}])
      '<user>Hi'
    """
    checks.flag("add_generation_prompt", add_generation_prompt)
    given = _given(tools, documents, variables)
    return _run(
        compiled(template),
        plain_messages(messages),
        {**given, "add_generation_prompt": add_generation_prompt},
    )


def render_marked(
    template: str, messages: Sequence[Message], **variables: Any
) -> Marked:
    """The text of a conversation, and where in it `{% generation %}` blocks lie.

    Args:
      template: as of `render`.
      messages: as of `render`.
      **variables: as of `render`.

    Raises:
      ValueError: as `render`, or the template alters what is inside such a block after
        it was written.

    Example:
      >>> answer = "{% generation %}{{ messages[1].content }}{% endgeneration %}"
      >>> talk = [{"role": "user", "content": "?"}]
      >>> talk.append({"role": "assistant", "content": "No"})
      >>> render_marked("{{ messages[0].content }}" + answer, talk)
      Marked(text='?No', spans=[(1, 3)])
    """
    text = render(template, messages, **variables)
    if not compiled(template).generates:
        return Marked(text, None)
    marks: Any = tuple(sign for sign in _NONCHARACTERS if sign not in text)[:2]
    marked = render(template, messages, **{**variables, _MARKS: marks})
    return Marked(text, _spans(text, marked, marks))


def _spans(text: str, marked: str, marks: tuple[str, ...]) -> list[tuple[int, int]]:
    """The spans [begin, end) in `text` of what stands between marks.

    Of nested blocks the outermost counts.
    """
    found, begin, depth, place, pieces = [], 0, 0, 0, []
    opening, closing = marks
    for sign in marked:
        if sign == opening:
            begin, depth = (place if depth == 0 else begin), depth + 1
        elif sign == closing:
            depth -= 1
            if depth == 0 and place > begin:
                found.append((begin, place))
        else:
            pieces.append(sign)
            place += 1
    if "".join(pieces) != text:
        raise ValueError(
            "the chat template alters what is inside its {% generation %} "
            "blocks; answers cannot be found"
        )
    return found


def _given(tools: Any, documents: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that a template reads besides messages, made plain.

    `tools` and `documents` are None where there are none, not undefined.
    """
    hints = {
        "tools": "JSON schemas; transformers.utils.get_json_schema(function) writes one",
        "documents": 'mappings such as {"title": ..., "text": ...}',
    }
    for name, value in (("tools", tools), ("documents", documents)):
        sequence = isinstance(value, (list, tuple))
        if value is not None and not (
            sequence and all(isinstance(item, Mapping) for item in value)
        ):
            raise TypeError(
                f"expected {name} as a list of {hints[name]}, got {name}={value!r}"
            )
    fields = {
        name: plain(f"the variable {name!r}", value)
        for name, value in variables.items()
    }
    return {
        **fields,
        "tools": plain("tools", tools),
        "documents": plain("documents", documents),
    }


def _run(
    program: Compiled, messages: list[dict[str, Any]], variables: dict[str, Any]
) -> str:
    """The rendered text; the template's own errors become ValueErrors."""
    import jinja2

    try:
        return program.template.render(messages=messages, **variables)
    except jinja2.TemplateError as error:
        raise ValueError(
            f"the chat template refuses these messages: {error}"
        ) from error
    except Exception as error:  # of the template's own operators and filters: any kind
        words = (
            f"the chat template refuses these messages: {type(error).__name__}: {error}"
        )
        for number, message in enumerate(messages):
            content = message.get("content", "")
            if isinstance(error, TypeError) and not isinstance(content, str):
                raise ValueError(
                    f"message {number} ({message['role']}) has {kind(content)}, "
                    "and the chat template reads text; join its parts to one "
                    f"text. {words}"
                ) from error
        raise ValueError(words) from error


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> Compiled:
    """A template, compiled once: a corpus renders it thousands of times.

    Jinja is imported late, as most uses need no template.

    Args:
      template: a Jinja program.

    Raises:
      TypeError: it is no text.
      ValueError: it is not valid Jinja; gives line and reason.

    Example:
      >>> compiled("{{ bos_token }}{{ messages[0].content }}").reads
      ('bos_token',)
    """
    import jinja2
    from jinja2 import meta, nodes

    if not isinstance(template, str):
        raise TypeError(f"expected a chat template as text, got {template!r}")
    environment = _environment()
    try:
        tree = environment.parse(template)
        program = environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template is not valid Jinja (line {error.lineno}): "
            f"{error.message}"
        ) from error
    names = frozenset(node.name for node in tree.find_all(nodes.Name))
    own = {"messages", "add_generation_prompt", *environment.globals}
    reads = sorted(meta.find_undeclared_variables(tree) - own)
    return Compiled(
        template=program,
        names=names,
        reads=tuple(reads),
        generates=environment.generates,  # type: ignore[attr-defined]
    )


def _environment():
    """The sandbox in which templates run, with transformers' own functions."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag `{% generation %}`, which can put marks around its block."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            """Reads the block up to `{% endgeneration %}`."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            self.environment.generates = True  # type: ignore[attr-defined]
            call = self.call_method("_mark", [nodes.ContextReference()])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _mark(self, context, caller):
            opening, closing = context.get(_MARKS) or ("", "")
            return opening + caller() + closing

    class Namespace(jinja2.utils.Namespace):
        """Jinja's, without names that begin with an underscore, as in transformers."""

        def __init__(*args: Any, **fields: Any) -> None:  # a field may be called `self`
            for name in dict(*args[1:], **fields):
                _check_name(name)
            jinja2.utils.Namespace.__init__(*args, **fields)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.extend(generates=False)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = Namespace
    return environment


def _check_name(name: str) -> None:
    """Refuses names that begin with an underscore."""
    import jinja2

    if name.startswith("_"):
        raise jinja2.TemplateError(
            f"a namespace's names may not begin with an underscore, got {name!r}"
        )


def _tojson(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
    """JSON as it is: Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    """Stops the template with its own message."""
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    """Today's date in the form that a template asks for."""
    return datetime.now().strftime(form)
