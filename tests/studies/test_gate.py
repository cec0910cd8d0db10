"""The gate, on made-up rows and with a random BERT of two layers."""

import typing

import numpy as np
import pytest
from made_up import made_up_pictures
from small_runs import check_scores, run_arms

from fedjax_fm import models, peft
from fedjax_fm.datasets import Table
from fedjax_fm.datasets.packaged.sources import MissingArchive
from fedjax_fm.datasets.table import text_column
from fedjax_fm.experiments import gate
from fedjax_fm.experiments.gate import STUDY, Config, data
from fedjax_fm.experiments.gate import tasks as gate_tasks
from fedjax_fm.experiments.gate.tasks import (
    KINDS,
    TASKS,
    GateTask,
    Rows,
    read,
    shuffled,
)

WORDS = ("good", "bad", "fine", "poor")


def made_up_texts(n, pairs):
    words = ["good fine", "bad poor"]
    columns = {
        "text": text_column([f"{words[k % 2]} number {k}" for k in range(n)]),
        "label": np.arange(n, dtype=np.int32) % 2,
    }
    if pairs:
        columns["text_pair"] = text_column([f"and {k}" for k in range(n)])
    return Table(columns, {})


def made_up_sentences(n):
    columns = {name: np.empty(n, object) for name in ("tokens", "labels")}
    for k in range(n):
        columns["tokens"][k] = (WORDS[k % 4], "number", str(k))
        columns["labels"][k] = (k % 2, 1, 0)
    return Table(columns, {})


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory):
    """A folder with a random DINOv2 of one layer and large patches."""
    fields = {
        "model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "mlp_ratio": 1, "image_size": 56, "patch_size": 28,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("dinov2")
    peft.save_merged(folder, models.from_config(fields), fields)
    return folder


@pytest.fixture(params=["texts", "pairs", "tokens", "pictures"])
def rows(request, tiny_bert, tiny_dinov2, monkeypatch):
    order = np.random.default_rng(0).permutation(120)
    is_token = request.param == "tokens"
    if request.param == "pictures":
        pytest.importorskip("resvg_py")
        table = made_up_pictures(120)
    else:
        table = made_up_texts(120, request.param == "pairs")
    found = Rows(
        table=made_up_sentences(120) if is_token else table,
        classes=2,
        train=order[:80],
        validation=order[80:100],
        test=order[100:],
    )
    kinds = {"tokens": "token", "pictures": "image"}
    kind = kinds.get(request.param, "classification")
    model = tiny_dinov2 if kind == "image" else tiny_bert
    task = GateTask(kind, str(model), lambda: found)
    monkeypatch.setitem(TASKS, CONFIG.task, task)
    read.cache_clear()
    yield found
    read.cache_clear()


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
        inputs = arrays.get("pixel_values", arrays.get("input_ids"))
        return {row.tobytes() for row in inputs}

    used = texts(tuning.train) | texts(tuning.test)
    assert not used & (texts(again.train) | texts(again.test))
    assert not texts(again.train) & texts(again.test)


def test_shuffled_labels_are_the_same_labels_elsewhere():
    labels = np.array([[3, -100, 1, 0], [2, 2, -100, 5]], np.int32)
    mixed = shuffled(labels, 0)
    np.testing.assert_array_equal(mixed == -100, labels == -100)
    assert sorted(mixed[mixed >= 0]) == sorted(labels[labels >= 0])
    assert (mixed != labels).any()
    assert (labels[0] == [3, -100, 1, 0]).all()


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
    found = gate_tasks.across_languages(table)

    def of(places):
        return set(found.table["language"][places])

    assert of(found.test) == {"de", "ru"}
    assert of(found.train) | of(found.validation) == {"en", "fr"}
    assert not set(found.train) & set(found.validation)
    assert found.table["label"].max() == 2
    assert found.classes == 3


def test_the_settings_name_the_tasks_that_there_are():
    names = typing.get_args(typing.get_type_hints(Config)["task"])
    assert names == tuple(TASKS)
    assert {task.kind for task in TASKS.values()} <= set(KINDS)
    assert gate.MARGIN == 5.0


@pytest.mark.parametrize("name", list(TASKS))
def test_the_rows_of_a_task_are_apart(name):
    try:
        found = read(name)
    except MissingArchive as error:
        pytest.skip(str(error))
    parts = [found.train, found.validation, found.test]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert all(len(part) > 400 for part in parts)
    if TASKS[name].kind == "token":
        documents = [set(found.table["document"][part]) for part in parts]
        assert not documents[0] & documents[2]
        assert not documents[0] & documents[1]
        every = {label for labels in found.table["labels"] for label in labels}
        assert every == set(range(found.classes))
        return
    if TASKS[name].kind == "image":
        emoji = [set(found.table["name"][part]) for part in parts]
        assert not emoji[0] & emoji[2]
        assert not emoji[0] & emoji[1]
        assert set(found.table["label"]) == set(range(found.classes))
        return
    texts = [set(found.table["text"][part]) for part in parts]
    if name == "intents":
        assert not texts[0] & texts[2]
    assert found.table["label"].min() == 0
    assert found.table["label"].max() == found.classes - 1
