"""What consoles of other encodings show."""

import io

import pytest
from rich.console import Console

from fedjax_fm.runs import RoundProgress
from fedjax_fm.runs.terminal import never_fails, say, showable


def console_of(encoding: str, terminal: bool) -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    return Console(file=file, force_terminal=terminal, width=200), raw


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "latin-1", "utf-8"])
def test_progress_is_shown_on_every_console(encoding, terminal):
    console, raw = console_of(encoding, terminal)
    with RoundProgress("Läufe [a]", 2, console=console, lines_every=1) as progress:
        progress.update(1, loss="0.5", up="1 MB")
        progress.update(2, loss="0.4 ± 0.1", up="2 MB")
    said = raw.getvalue().decode(encoding)
    assert "2/2" in said
    assert "[a]" in said
    assert "loss 0.4" in said
    assert ("Läufe" if encoding != "ascii" else "L?ufe") in said


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("2 devices × 3 blocks …", "utf-8", "2 devices × 3 blocks …"),
        ("2 devices × 3 blocks …", "ascii", "2 devices x 3 blocks ..."),
        ("a → b · c ≤ d ± e", "ascii", "a -> b - c <= d +- e"),
        ("┌─┐ ⠋", "ascii", "+-+ *"),
        ("漢", "cp1252", "?"),
        ("…", "no-such-encoding", "..."),
        ("…", None, "…"),
    ],
)
def test_what_an_encoding_lacks_is_written_with_its_nearest_signs(
    text, encoding, shown
):
    assert showable(text, encoding) == shown


def test_a_stream_that_was_made_safe_writes_names_of_files_as_they_came():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    never_fails(stream, io.StringIO(), None)
    stream.write("×" + b"l\xc3\xa4ufe".decode("ascii", "surrogateescape"))
    assert raw.getvalue() == b"xl\xc3\xa4ufe"


def test_text_is_no_markup():
    console, raw = console_of("utf-8", True)
    say(console, "a[red]b [/none] :smile: 42")
    assert raw.getvalue() == b"a[red]b [/none] :smile: 42\n"
