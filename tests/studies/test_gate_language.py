"""The gate of language models, with a random decoder of two layers."""

import dataclasses
import typing
from collections import Counter

import numpy as np
import pytest
from small_runs import check_scores, run_arms, texts

import fedjax_fm as ffm
from fedjax_fm import datasets, models, tasks
from fedjax_fm.datasets import reasoning
from fedjax_fm.datasets.packaged.sources import MissingArchive
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.experiments.gate_language import STUDY, Config, data, exchanged
from fedjax_fm.experiments.gate_language.texts import (
    TASKS,
    LanguageTask,
    Texts,
    prose,
    read,
    written,
)
from fedjax_fm.models.chat import load_chat

N = 120


def made_up(checked: bool) -> Texts:
    order = np.random.default_rng(0).permutation(N)

    def say(row):
        return [
            {"role": "user", "content": f"What is {row} ?"},
            {"role": "assistant", "content": f"It is {row}"},
        ]

    def check(row, answer):
        return reasoning.Checked(answer == f"It is {row}", answer.startswith("It"))

    return Texts(
        say=say,
        train=order[:80],
        validation=order[80:100],
        test=order[100:],
        check=check if checked else None,
    )


@pytest.fixture(params=["tokens", "answers"])
def config(request, tiny_llama, monkeypatch):
    found = made_up(request.param == "answers")
    task = LanguageTask(lambda: found, request.param)
    monkeypatch.setitem(TASKS, "reasoning", task)
    read.cache_clear()
    yield Config(
        task="reasoning",
        model=str(tiny_llama),
        train=12,
        test=6,
        tuning_train=6,
        max_length=72,
        answer_room=12,
        row_length=80,
        rank=2,
        answers=3,
    )
    read.cache_clear()


def test_all_arms_give_their_scores(config):
    found = run_arms(STUDY, config)
    check_scores(STUDY, found)
    assert set(found) == {"zero_shot", "lora", "full", "shuffled"}
    is_checked = TASKS["reasoning"].shuffles == "answers"
    for ran in found.values():
        assert ran.run.bytes == {"uplink_bytes": 0, "downlink_bytes": 0}
        assert ("exact" in ran.scores) == is_checked
    own = data(config, 0, "final")
    whole = models.from_pretrained(config.model)
    task = tasks.language_modeling(ffm.peft.apply(whole, ffm.peft.full()))
    bare = ffm.peft.apply(whole, ffm.peft.full())
    scores = ffm.evaluate(task, bare.delta, bare.backbone, own.test)
    expected = means(scores)["loss"]
    assert found["zero_shot"].scores["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_tunes_is_never_trained_on_nor_scored(config):
    tuning, final = data(config, 1000, "tuning"), data(config, 0, "final")
    again = data(config, 1, "final")
    assert not texts(tuning.test) & texts(final.test)
    np.testing.assert_array_equal(final.test["input_ids"], again.test["input_ids"])
    asked = [{final.texts.say(row)[0]["content"] for row in final.test_rows}]
    chat = load_chat(config.model)
    for one in (tuning, final, again):
        read_back = [chat.tokenizer.decode(list(row)) for row in one.train["input_ids"]]
        said = " ".join(read_back)
        assert "What is" in said
        assert not [text for text in asked[0] if text in said]


def test_the_control_keeps_every_token_and_loses_the_meaning(config):
    own = data(config, 0, "final")
    counts = [
        Counter(rows["labels"][rows["labels"] != -100].tolist())
        for rows in (own.train, own.shuffled)
    ]
    assert counts[0] == counts[1]
    pairs = [rows["labels"].tobytes() for rows in (own.train, own.shuffled)]
    assert pairs[0] != pairs[1]


def test_no_question_keeps_its_answer():
    said = [made_up(True).say(row) for row in range(7)]
    mixed = exchanged(said, 0)
    assert [one[:-1] for one in mixed] == [one[:-1] for one in said]
    answers = [one[-1]["content"] for one in said]
    found = [one[-1]["content"] for one in mixed]
    assert sorted(found) == sorted(answers)
    assert all(a != b for a, b in zip(found, answers, strict=True))


def test_too_few_texts_are_refused(config):
    crowded = dataclasses.replace(config, answer_room=70)
    with pytest.raises(ValueError, match=r"0 texts of \d+ leave 70 tokens"):
        data(crowded, 0, "final")


def test_the_settings_name_the_tasks_that_there_are():
    assert typing.get_args(typing.get_type_hints(Config)["task"]) == tuple(TASKS)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_texts_of_a_task_are_apart(name):
    try:
        found = TASKS[name].read()
    except MissingArchive as error:
        pytest.skip(str(error))
    parts = [found.train, found.validation, found.test]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert all(len(part) > 150 for part in parts)
    for part in parts:
        messages = found.say(int(part[0]))
        assert "assistant" in {message["role"] for message in messages}
    if name == "conversations":
        table = ffm.datasets.load_chitchat()
        present = [
            {p for column in ("person", "partner") for p in table[column][part]}
            for part in parts
        ]
        speaks = [set(table["person"][part]) for part in parts]
        assert not speaks[2] & (present[0] | present[1])
        assert not speaks[1] & present[0]
    if name == "reasoning":
        row = int(found.test[0])
        answer = found.say(row)[-1]["content"]
        assert found.check(row, answer) == (True, True)
        assert found.check(row, "I do not know.") == (False, False)


def test_tokens_of_the_brown_corpus_are_written_as_people_do():
    tokens = ["``", "Well", "''", ",", "he", "said", "(", "aloud", ")", "."]
    assert written(tokens) == '"Well", he said (aloud).'


def test_prose_goes_on_with_the_sentence_after(monkeypatch):
    documents = ["a", "a", "b", "b", "b"]
    words = [("One", "."), ("Two", "."), ("Three", "."), ("Four", "."), ("Five", ".")]
    tokens = np.empty(5, object)
    tokens[:] = words
    columns = {
        "tokens": tokens,
        "genre": np.array(["news"] * 5),
        "document": np.array(documents),
        "split": np.array(["train"] * 2 + ["test"] * 3),
    }
    table = datasets.Table(columns, {})
    monkeypatch.setattr(datasets, "load_brown", lambda: table)
    found = prose()
    assert found.train.tolist() == [0]  # a text's last sentence has none after it
    assert found.test.tolist() == [2, 3]
    assert found.validation.tolist() == []
    said = [message["content"] for message in found.say(2)]
    assert said == ["Go on with this text (news).", "Three.", "Four."]
