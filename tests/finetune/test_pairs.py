"""Preference pairs: their rows, their arrays, and a run of `fedjax-fm finetune` on them."""

import json

import numpy as np
import pytest
from small_checkpoints import LLAMA, SPECIAL, TEMPLATE, WORDS, checkpoint, write_jsonl

from fedjax_fm.cli import main
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune import pairs, preferred, talk
from fedjax_fm.finetune.examples import choose, key_of, make
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import replace

COLOURS = ("red", "green", "blue")
SUBJECTS = ("film", "name", "number", "colour")


def rows_of(turned=(), n_clients=10, each=12):
    """Pairs of answers of equal length, of which a word says which one is chosen."""
    found = []
    for client in range(n_clients):
        for k in range(each):
            colour, subject = COLOURS[(client + k) % 3], SUBJECTS[k % 4]
            sides = [f"{word} {subject} was {colour}" for word in ("yes", "no")]
            number = client * each + k
            better, worse = sides[::-1] if number in turned else sides
            name = f"{WORDS[number % 20]} {WORDS[number // 20]}"  # no two are the same
            asked = f"what {subject} is {colour} {name}"
            row = {"prompt": asked, "chosen": better, "rejected": worse}
            found.append({**row, "user_id": f"user {client}"})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pairs")
    checkpoint(place / "llama", LLAMA, TEMPLATE)
    write_jsonl(place / "pairs.jsonl", rows_of())
    coins = np.random.default_rng(0).random(120) < 0.5
    turned = set(np.flatnonzero(coins).tolist())
    write_jsonl(place / "turned.jsonl", rows_of(turned))
    return place


def finetune(folder, out, data, *words):
    """Runs the command and returns the folder of its run."""
    place = folder / out
    main(
        [
            *("finetune", "--model", str(folder / "llama"), "--out", str(place)),
            *("--data", str(folder / data), "--no-baselines", "--max-length", "24"),
            *("--rounds", "6", "--cohort", "4", "--local-steps", "4"),
            *("--batch-size", "6", "--learning-rate", "0.02", "--rank", "4"),
            *("--targets", "q_proj,v_proj,down_proj", "--holdout-clients", "0.3"),
            *words,
        ]
    )
    return place


@pytest.fixture(scope="module")
def planted(folder):
    return finetune(folder, "planted", "pairs.jsonl", "--preferences", "dpo:beta=0.3")


def scores_of(place):
    found = json.loads((place / "results.json").read_text())
    arms = found["arms"]
    return {name: arm["runs"][0]["scores"] for name, arm in arms.items()}, found


def test_a_planted_preference_is_learned(planted):
    scores, found = scores_of(planted)
    assert found["scores"][0]["name"] == "pair_accuracy"
    assert scores["federated"]["pair_accuracy"] > 0.65
    assert scores["federated"]["margin"] > 0
    assert scores["zero_shot"] == {
        "pair_accuracy": 0.5, "worst": 0.5, "margin": 0.0, "own": 0.5, "own_worst": 0.5,
    }  # fmt: skip
    assert scores["longer"]["pair_accuracy"] == 0.5  # all answers are of one length
    one = found["arms"]["federated"]["runs"][0]
    assert len(one["clients"]) == 3
    counts = json.loads((planted / "finetune.json").read_text())["counts"]
    assert not counts  # no pair is held out and trained on
    with np.load(planted / "model" / "delta.npz") as arrays:
        n_bytes = sum(4 * array.size for array in arrays.values())
    assert one["uplink_bytes"] == one["downlink_bytes"] == 6 * 4 * n_bytes
    assert (planted / "model/adapter/adapter_model.safetensors").is_file()
    page = (planted / "RESULTS.md").read_text()
    assert "the longer answer" in page
    assert "pair accuracy" in one["over_clients"]
    assert one["over_clients"] in page


def test_answers_that_were_swapped_by_coins_teach_nothing(folder):
    place = finetune(folder, "turned", "turned.jsonl", "--preferences", "dpo:beta=0.3")
    scores, _ = scores_of(place)
    assert scores["federated"]["pair_accuracy"] < 0.65


def test_predictions_say_which_answer_is_preferred(folder, planted):
    path = write_jsonl(folder / "new.jsonl", rows_of(turned={0}, n_clients=1, each=4))
    target, scores = talk.predict(planted, path, None)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    chosen = [line["prefers"] == "chosen" for line in lines]
    assert scores["pair_accuracy"] == np.mean(chosen)
    assert all(
        (line["margin"] > 0) == one for line, one in zip(lines, chosen, strict=True)
    )


def ids(text):
    return [[*SPECIAL, *WORDS].index(word) for word in text.split()]


def prepared(folder, rows, **how):
    path = write_jsonl(folder / "some.jsonl", rows)
    settings = Settings(model=str(folder / "llama"), data=str(path), max_length=12)
    of_data.prepare.cache_clear()
    return of_data.prepare(replace(settings, **how))


def test_arrays_are_those_of_the_template_by_hand(folder):
    rows = [
        {"prompt": "what is red", "chosen": "yes it is", "rejected": "no", "user": k}
        for k in range(2)
    ]
    found = prepared(folder, rows).encoded.arrays
    before = "<|user|> what is red <|assistant|>"
    for side, answer in (("chosen", "yes it is </s>"), ("rejected", "no </s>")):
        whole, n = ids(f"{before} {answer}"), len(ids(before))
        row = found[f"{side}_input_ids"][0]
        assert row[: len(whole)].tolist() == whole
        assert found[f"{side}_attention_mask"][0].sum() == len(whole)
        labels = found[f"{side}_labels"][0]
        assert labels[n : len(whole)].tolist() == ids(answer)
        assert (np.delete(labels, range(n, len(whole))) == IGNORED).all()
    assert preferred._longer(found).tolist() == [1.0, 1.0]


def test_what_cannot_be_used_is_left_out_and_counted(folder):
    whole = {"prompt": "what is red", "chosen": "yes", "rejected": "no"}
    rows = [
        {**whole, "user": 0},
        {**whole, "user": 1},
        {**whole, "rejected": "yes ", "user": 0},
        {**whole, "chosen": None, "user": 0},
        {**whole, "prompt": "red " * 20, "user": 1},
        {**whole, "chosen": "good " * 10, "user": 1},
    ]
    ready = prepared(folder, rows)
    assert ready.examples.rows.tolist() == [0, 1]
    assert ready.counts["pairs whose prompt fills the longest length"] == 1
    assert ready.counts["pairs whose answer does not fit behind its prompt"] == 1
    equal = "rows with equal answers, which say nothing of a preference"
    assert ready.counts[equal] == ready.counts["rows with missing chosen answer"] == 1
    with pytest.raises(UsageError, match="2 pairs whose prompt fills the longest"):
        prepared(folder, [rows[4], rows[4]])
    with pytest.raises(UsageError, match="no example that can be used: 2 with equal"):
        prepared(folder, [rows[2], rows[2]])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"chosen": "chosen"}, "--chosen do not make an example"),
        ({"chosen": "chosn", "rejected": "rejected"}, "did you mean 'chosen'"),
        ({"preferences": "dop"}, "did you mean 'dpo'"),
        ({"preferences": "dpo:beta=-1"}, "beta"),
        ({"preferences": "ipo:label_smoothing=0.1"}, "of loss='sigmoid'"),
        ({"method": "flora"}, "changes the frozen weights, which are the reference"),
        ({"method": "feddpa_t"}, "trains a shared and a private adapter"),
        ({"canaries": 1}, "plants texts, not pairs"),
        ({"turns": "each"}, "no conversations"),
    ],
)
def test_what_does_not_go_together(folder, how, said):
    path = write_jsonl(folder / "few.jsonl", rows_of(n_clients=4, each=6))
    settings = Settings(model=str(folder / "llama"), data=str(path), max_length=24)
    with pytest.raises(UsageError, match=said):
        of_data.load(replace(settings, **how), 0, "final")


def test_a_loss_on_pairs_needs_pairs(folder):
    path = write_jsonl(folder / "texts.jsonl", [{"text": "red", "user": 1}] * 2)
    settings = Settings(model=str(folder / "llama"), data=str(path), preferences="ipo")
    with pytest.raises(UsageError, match="these examples are no pairs"):
        of_data.prepare(settings)


QUESTION = {"role": "user", "content": "a?"}


def said(content):
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    "cells",
    [
        {"prompt": "a?", "chosen": "b", "rejected": "c"},
        {"prompt": [QUESTION], "chosen": [said("b")], "rejected": [said("c")]},
        {"chosen": [QUESTION, said("b")], "rejected": [QUESTION, said("c")]},
        {"prompt": "a?", "chosen": [QUESTION, said("b")], "rejected": [QUESTION, said("c")]},
    ],
)  # fmt: skip
def test_the_usual_forms_are_one_pair(cells):
    found = pairs.read(cells, "row 0")
    assert found == pairs.Pair([QUESTION], "b", "c")
    turned = pairs.Pair([QUESTION], "c", "b")
    assert key_of(found) == key_of(turned)  # who trains on it knows it either way
    assert key_of(found) != key_of(pairs.Pair([QUESTION], "b", "d"))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"prompt": "a?", "chosen": 1, "rejected": "c"}, "row 0, chosen answer: expected"),
        ({"prompt": "a?", "chosen": [QUESTION], "rejected": "c"}, "the assistant's, got"),
        ({"prompt": [said("b")], "chosen": "b", "rejected": "c"}, "ends before an answer"),
        (
            {"chosen": [QUESTION, said("b")], "rejected": [said("c")]},
            "different conversations",
        ),
    ],
)  # fmt: skip
def test_other_values_are_refused(cells, message):
    with pytest.raises(UsageError, match=message):
        pairs.read(cells, "row 0")


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("prompt", "chosen", "rejected", "user"), {"prompt", "chosen", "rejected"}),
        (("chosen", "rejected"), {"chosen", "rejected"}),
        (("instruction", "chosen", "rejected"), {"prompt", "chosen", "rejected"}),
    ],
)
def test_usual_columns_are_found(names, columns):
    table = {name: ["a" if name != "rejected" else "b"] for name in names}
    source = Source(table=table, name="t", kind="jsonl", sha256="")
    roles = choose(Settings(), source)
    assert (roles.kind, set(roles.columns)) == ("pairs", columns)
    if "prompt" in columns:
        assert make(source, roles).values[0].rejected == "b"
