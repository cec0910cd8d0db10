"""Settings of partitioners and words of the command line: an answer, or an error of ours."""

import dataclasses
import inspect
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedjax_fm import population
from fedjax_fm.cli import COMMANDS, main

from .conftest import PROFILE
from .damage import ODD
from .test_damaged_files import error_of, is_ours

TABLE = {
    "label": np.arange(60) % 5,
    "user": np.repeat(np.arange(12), 5),
    "x": np.linspace(0, 1, 60),
}
PARTITIONERS = [
    getattr(population, name)
    for name in population.__all__
    if name.endswith("Partitioner") and name != "Partitioner"
]
RIGHT: tuple[Any, ...] = (3, 0.5, "label", "user", "x", [20, 40], np.ones((3, 5)) / 5)
VALUES = st.sampled_from((*RIGHT, *RIGHT, *ODD, float("nan"), np.inf, 61, [0, 0]))


@PROFILE
@given(kind=st.sampled_from(PARTITIONERS), drawn=st.data())
def test_a_partitioner_deals_each_row_once_or_says_why_not(kind, drawn):
    names = [field.name for field in dataclasses.fields(kind)]
    taken = [n for n in inspect.signature(kind).parameters if n in names]
    given_values = {name: drawn.draw(VALUES, label=name) for name in taken}
    parts = []

    def deal():
        parts.extend(kind(**given_values).partition(TABLE))

    error = error_of(deal)
    if error is not None:
        assert is_ours(error), f"{kind.__name__}({given_values}): {error!r}"
        return
    rows = np.concatenate([np.asarray(part) for part in parts])
    assert len(np.unique(rows)) == len(rows) <= 60


WORDS = st.sampled_from(
    (
        *(
            "--model",
            "--data",
            "--out",
            "--rounds",
            "--set",
            "--resume",
            "--json",
            "--",
        ),
        *("--rank", "--seeds", "--topology", "--learning-rate", "nowhere", "no-such"),
        *(
            "-1",
            "1e999",
            "nan",
            "",
            "rate=",
            "=",
            "rounds=x",
            "../..",
            "--no-such-flag",
        ),
        *("\x01", "ä", "[]", "{", "v5e:0x0", "h100:", "--smoke", "--peft", "lora"),
    )
)
QUIET = sorted(set(COMMANDS) - {"list", "bench"})  # bench is a command of its own


@PROFILE
@given(name=st.sampled_from(QUIET), words=st.lists(WORDS, max_size=5))
def test_wrong_words_end_with_two_and_a_line(
    tmp_path_factory, monkeypatch, capsys, name, words
):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    capsys.readouterr()
    code = 0
    try:
        main([name, *words])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code in (0, 2), said
    assert "Traceback" not in said
