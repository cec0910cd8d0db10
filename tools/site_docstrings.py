"""Docstrings as the site's parser (griffe, Google style) reads them; see mkdocs.yml.

Ours say `Example:`, let parameters share an entry, and have sections that griffe does
not know (`References:`), which it would show as boxes that are folded.
"""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import griffe

PARSED = {"Args", "Attributes", "Raises", "Yields"}
HEADER = re.compile(r"([A-Z][A-Za-z ]*):")
SHARED = re.compile(r"^(\s+)(\*{0,2}\w+(?:, \*{0,2}\w+)+):\s+(\S.*)$")
# Markdown would take `hyper[name][s]` for a link, unless it is code.
SUBSCRIPTS = re.compile(r"(`[^`]*`)|\]\[")
COLON = re.compile(r"(`[^`]*`)|: ")


def readable(text: str) -> str:
    r"""The docstring with one entry a parameter, and sections that griffe knows.

    Example:
      >>> print(readable("One.\n\nArgs:\n  a, b: of both.\n\nReferences:\n  A paper."))
      One.
      <BLANKLINE>
      Args:
        a: of both.
        b: see `a`.
      <BLANKLINE>
      **References:**
      <BLANKLINE>
      A paper.
    """
    parts = []
    for header, lines in _sections(text):
        if header == "Example":
            parts += ["Examples:", *lines]
        elif header == "Returns":
            # The type stands in the annotation; what ends in a colon is no type.
            parts += [f"{header}:", *(COLON.sub(_kept_colon, line) for line in lines)]
        elif header in PARSED:
            entries = _escaped("\n".join(lines), has_code=False)
            parts += [f"{header}:", *_apart(entries.split("\n"))]
        elif header:
            body = _escaped(textwrap.dedent("\n".join(lines)))
            parts += [f"**{header}:**", "", *body.split("\n")]
        else:
            parts += [_escaped("\n".join(lines))]
    return "\n".join(parts)


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """(header or "", its lines) in order; a header is alone on its line."""
    header, lines = "", []
    for line in text.split("\n"):
        found = HEADER.fullmatch(line)
        if found:
            yield header, lines
            header, lines = found[1], []
        else:
            lines.append(line)
    yield header, lines


def _escaped(text: str, *, has_code: bool = True) -> str:
    """The text with `][` outside of code escaped; code is indented by four."""
    lines = []
    for line in text.split("\n"):
        is_code = has_code and line.startswith("    ")
        lines.append(line if is_code else SUBSCRIPTS.sub(_escape, line))
    return "\n".join(lines)


def _escape(found: re.Match[str]) -> str:
    return found[1] or r"]\["


def _kept_colon(found: re.Match[str]) -> str:
    return found[1] or "&#58; "


def _apart(lines: list[str]) -> list[str]:
    """One entry a name: those after the first refer to it, behind all that it says."""
    found: list[str] = []
    waiting: list[str] = []
    indent = ""
    for line in lines:
        is_next = len(line) - len(line.lstrip()) <= len(indent)
        if is_next:
            found, waiting = found + waiting, []
        shared = SHARED.match(line)
        if shared and (is_next or not indent):
            indent, names, said = shared.groups()
            first, *others = names.split(", ")
            waiting = [f"{indent}{name}: see `{first}`." for name in others]
            line = f"{indent}{first}: {said}"
        found.append(line)
    return found + waiting


def _with_signature(cls: griffe.Class) -> None:
    """Gives a NamedTuple the constructor that Python gives it."""
    fields = [
        griffe.Parameter(
            field.name,
            annotation=field.annotation,
            kind=griffe.ParameterKind.positional_or_keyword,
            default=field.value,
        )
        for field in cls.attributes.values()
        if field.annotation is not None and not field.name.startswith("_")
    ]
    itself = griffe.Parameter("self", kind=griffe.ParameterKind.positional_only)
    parameters = griffe.Parameters(itself, *fields)
    cls.set_member("__init__", griffe.Function("__init__", parameters=parameters))


class Docstrings(griffe.Extension):
    """Rewrites docstrings, and gives NamedTuples a signature."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
        if isinstance(obj, griffe.Class) and "NamedTuple" in map(str, obj.bases):
            _with_signature(obj)
