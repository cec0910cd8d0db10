"""The gate, on made-up rows and with a random BERT of two layers."""

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm.datasets import Table
from fedjax_fm.datasets.packaged.sources import MissingArchive
from fedjax_fm.datasets.table import text_column
from fedjax_fm.experiments import gate
from fedjax_fm.experiments.gate import STUDY, Config, Rows, data


def made_up(n, pairs):
    words = ["good fine", "bad poor"]
    columns = {
        "text": text_column([f"{words[k % 2]} number {k}" for k in range(n)]),
        "label": np.arange(n, dtype=np.int32) % 2,
    }
    if pairs:
        columns["text_pair"] = text_column([f"and {k}" for k in range(n)])
    return Table(columns, {})


@pytest.fixture(params=[False, True], ids=["texts", "pairs"])
def rows(request, tiny_bert, monkeypatch):
    order = np.random.default_rng(0).permutation(120)
    found = Rows(
        table=made_up(120, request.param),
        model=str(tiny_bert),
        train=order[:80],
        validation=order[80:100],
        test=order[100:],
    )
    monkeypatch.setattr(gate, "read", lambda task: found)
    return found


CONFIG = Config(train=24, test=12, tuning_train=12, max_length=16, epochs=1, rank=2)


def test_all_arms_give_their_scores(rows):
    found = run_arms(STUDY, CONFIG)
    check_scores(STUDY, found)
    assert set(found) == {"head", "lora", "full", "shuffled"}
    for ran in found.values():
        assert ran.run.bytes == {"uplink_bytes": 0, "downlink_bytes": 0}


def test_what_tunes_is_never_trained_on_nor_scored(rows):
    tuning = data(CONFIG, 1000, "tuning")
    again = data(CONFIG, 0, "final")

    def texts(arrays):
        return {tuple(row) for row in arrays["input_ids"]}

    used = texts(tuning.train) | texts(tuning.test)
    assert not used & (texts(again.train) | texts(again.test))
    assert not texts(again.train) & texts(again.test)


def test_languages_are_held_out_whole():
    languages = ["en", "de", "fr", "ru"]
    n = 40
    table = Table(
        {
            "text": text_column([f"text {k}" for k in range(n)]),
            "label": text_column([f"intent {k % 3}" for k in range(n)]),
            "language": text_column([languages[k % 4] for k in range(n)]),
            "template": text_column([f"template {k}" for k in range(n)]),
            "split": text_column([("train", "test")[k % 5 == 0] for k in range(n)]),
        },
        {},
    )
    found = gate._across_languages(table)

    def of(places):
        return set(found.table["language"][places])

    assert of(found.test) == {"de", "ru"}
    assert of(found.train) | of(found.validation) == {"en", "fr"}
    assert not set(found.train) & set(found.validation)
    assert found.table["label"].max() == 2


@pytest.mark.parametrize("task", ["word-senses", "reply-choice", "intents"])
def test_the_rows_of_a_task_are_apart(task):
    try:
        found = gate.read(task)
    except MissingArchive as error:
        pytest.skip(str(error))
    parts = [found.train, found.validation, found.test]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert all(len(part) > 500 for part in parts)
    texts = [set(found.table["text"][part]) for part in parts]
    if task == "intents":
        assert not texts[0] & texts[2]
    assert found.table["label"].min() == 0
