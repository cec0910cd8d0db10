"""Printing on any console.

Characters that its encoding lacks are written with the nearest ASCII signs.
"""

import codecs
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PLAIN = "fedjax_fm.plain"  # the error handler's name
WIDE = 160  # characters of a line that goes to a file or a pipe
_SIGNS = {
    "×": "x", "…": "...", "·": "-", "→": "->", "≤": "<=", "≥": ">=", "±": "+-",
    "²": "^2", "³": "^3",
    "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*",
}  # fmt: skip
_BOX = {"─": "-", "━": "-", "│": "|", "┃": "|", "═": "-", "║": "|", "╸": "-", "╺": "-"}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What to write instead of the characters that an encoding lacks.

    Bytes of a file's name that are no text are written as they are.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    if all("\udc80" <= sign <= "\udcff" for sign in signs):
        return bytes(ord(sign) - 0xDC00 for sign in signs), error.end
    return "".join(map(_nearest, signs)), error.end


def _nearest(sign: str) -> str:
    if "\u2500" <= sign <= "\u257f":  # box drawing: corners and crossings
        return _BOX.get(sign, "+")
    if "\u2800" <= sign <= "\u28ff":  # a spinner's dots
        return "*"
    return _SIGNS.get(sign, "?")


codecs.register_error(PLAIN, _plain)


def never_fails(*streams: Any) -> None:
    """Lets streams of any encoding write every text.

    Args:
      *streams: such as sys.stdout; those without `reconfigure` stay as they are.
    """
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=PLAIN)


def for_tables() -> "Console":
    """A console for tables, which cut no column short in a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE)


def showable(text: str, encoding: str | None) -> str:
    """The text as a stream of that encoding can write it.

    Args:
      text: any.
      encoding: of the stream; None for UTF-8.

    Returns:
      The text with other signs for the characters that the encoding lacks.

    Example:
      >>> showable("2 devices × 3 blocks …", "ascii")
      '2 devices x 3 blocks ...'
      >>> showable("2 devices × 3 blocks …", "cp1252")
      '2 devices × 3 blocks …'
    """
    try:
        name = codecs.lookup(encoding or "utf-8").name
    except LookupError:
        name = "ascii"
    return text.encode(name, PLAIN).decode(name, "replace")


def say(console: "Console", text: object, **style: Any) -> None:
    """Prints a text as it is: no markup, no colours for numbers, no broken lines.

    Args:
      console: where.
      text: what.
      **style: as for `Console.print`.
    """
    shown = showable(str(text), console.encoding)
    console.print(
        shown, highlight=False, soft_wrap=True, markup=False, emoji=False, **style
    )


def say_error(text: object) -> None:
    """Prints "error: " and a text in one line on standard error.

    Args:
      text: of the error; its line breaks become blanks.
    """
    from rich.console import Console

    console = Console(stderr=True)
    words = str(text).split()
    never_fails(sys.stderr)
    console.print("error: ", style="red", end="")
    say(console, " ".join(words))
