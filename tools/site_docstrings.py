"""Docstrings as the site's parser (griffe, Google style) reads them; see mkdocs.yml.

Ours say `Example:` and let parameters share an entry; griffe knows neither.
"""

import re
from typing import Any

import griffe

# Markdown would take `hyper[name][s]` for a link, unless it stands in backticks.
SUBSCRIPTS = re.compile(r"(`[^`]*`)|\]\[")
SHARED = re.compile(r"^(\s+)(\*{0,2}\w+(?:, \*{0,2}\w+)+):\s+(\S.*)$")


def readable(text: str) -> str:
    r"""The docstring with one entry a parameter, and its examples as a section.

    Example:
      >>> print(readable("One.\n\nArgs:\n  a, b: of both."))
      One.
      <BLANKLINE>
      Args:
        a: of both.
        b: see `a`.
    """
    lines, section = [], ""
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][A-Za-z ]*:", line):
            section = line
        is_code = line.startswith("    ") and not section
        if not is_code and section != "Example:":
            line = SUBSCRIPTS.sub(_escaped, line)
        shared = SHARED.match(line)
        if line == "Example:":
            lines.append("Examples:")
        elif shared and section in ("Args:", "Attributes:"):
            lines += _apart(*shared.groups())
        else:
            lines.append(line)
    return _shared_last("\n".join(lines))


def _escaped(found: re.Match[str]) -> str:
    return found[1] or r"]\["


def _apart(indent: str, names: str, said: str) -> list[str]:
    """One line a name; those after the first refer to it."""
    first, *others = names.split(", ")
    behind = [f"{indent}{name}: see `{first}`." for name in others]
    return [f"{indent}{first}: {said}", *(f"\0{line}" for line in behind)]


def _shared_last(text: str) -> str:
    """Moves the references behind the lines that go on with the entry before them."""
    lines: list[str] = []
    waiting: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("\0"):
            waiting.append(line[1:])
            continue
        depth = len(line) - len(line.lstrip())
        own = len(waiting[0]) - len(waiting[0].lstrip()) if waiting else 0
        if waiting and (not line.strip() or depth <= own):
            lines += waiting
            waiting = []
        lines.append(line)
    return "\n".join(lines[:-1])


class Docstrings(griffe.Extension):
    """Rewrites every docstring when its object has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
