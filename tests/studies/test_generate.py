"""The study of a decoder with a tiny random one and made-up conversations."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

from fedjax_fm import models, study, trees
from fedjax_fm.experiments import generate
from fedjax_fm.experiments.shared import conversations, language
from fedjax_fm.experiments.shared.conversations import Source
from fedjax_fm.models.chat import Chat

CONFIG = language.Config(
    clients=4, min_texts=4, max_texts=6, tuning_groups=4, held_out_groups=3, held_out_clients=4, model="tiny",
    max_length=40, row_length=64, rank=2, rounds=2, tuning_rounds=1, cohort=2, local_steps=1,
    local_only_clients=2, every=1, eval_rows=2, forgetting_rows=3, prompts=2, new_tokens=2,
)  # fmt: skip
N_GROUPS, N_CLIENTS, N_TEXTS = 12, 3, 8  # of a group, of a client
N = N_GROUPS * N_CLIENTS * N_TEXTS
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def made_up(config) -> Source:
    """Every text has a word of its own."""
    clients = np.repeat(
        [f"g{g}c{c}" for g in range(N_GROUPS) for c in range(N_CLIENTS)], N_TEXTS
    )
    groups = np.repeat([f"g{g}" for g in range(N_GROUPS)], N_CLIENTS * N_TEXTS)

    def say(row, shorter):
        cue = {"role": "user", "content": "a question"}
        return [cue, {"role": "assistant", "content": f"an answer t{row}"}]

    return Source(clients=clients, groups=groups, say=say, shortenings=1)


def tiny_chat(name) -> Chat:
    words = [
        "<pad>",
        "<user>",
        "<assistant>",
        "<end>",
        "a",
        "an",
        "question",
        "answer",
        "?",
    ]
    vocabulary = {
        word: i for i, word in enumerate([*words, *(f"t{k}" for k in range(N))])
    }
    tokenizer = Tokenizer(token_models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Chat(
        tokenizer=tokenizer,
        template=TEMPLATE,
        variables={},
        eos_token_id=3,
        pad_token_id=0,
    )


@functools.cache
def tiny(*_):
    config = models.LlamaConfig(
        vocab_size=N + 9,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return models.LlamaForCausalLM(config, nnx.Rngs(0))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr(conversations, "load_chat", tiny_chat)
    monkeypatch.setattr(conversations, "pretrained", tiny)


@functools.cache
def data():
    return conversations.load(made_up, CONFIG, 0, "final")


@functools.cache
def found_by(name: str, split: str = "final") -> tuple[dict[str, float], study.Run]:
    arm = generate.STUDY.arm(name)
    run = study.Run(name, CONFIG, 0, split, {"learning_rate": 1e-2}, data)
    return arm.run(run), run


@pytest.mark.parametrize("name", [arm.name for arm in generate.STUDY.arms])
def test_an_arm_returns_what_the_table_shows(name):
    found, run = found_by(name)
    asked = {score.name for score in generate.STUDY.all_scores}
    assert found.keys() == asked - ({"rouge_l"} if name == "local" else set())
    assert all(math.isfinite(value) for value in found.values())
    assert found["worst"] >= found["perplexity"] > 1
    assert len(run.clients) == CONFIG.held_out_clients
    assert run.notes.keys() == (set() if name == "local" else {"answers"})
    looks = [row["eval_perplexity"] for row in run.curve if "eval_perplexity" in row]
    assert bool(looks) == (name not in ("local", "zero_shot"))
    n = trees.size(data().adapted.delta)
    up, down = n + 4 * math.ceil(n / 512), 4 * n
    times = CONFIG.rounds * CONFIG.cohort if name in ("federated", "shuffled") else 0
    assert run.bytes == {"uplink_bytes": times * up, "downlink_bytes": times * down}


def test_the_base_model_is_that_of_zero_shot():
    import fedjax_fm as ffm

    texts, found = data(), found_by("zero_shot")[0]
    rows = language.joined(texts.seen)
    scores = ffm.evaluate(
        texts.task, texts.adapted.delta, texts.adapted.backbone, rows, batch_size=2
    )
    mean = np.average(scores["loss"], weights=scores["weight"])
    assert found["seen"] == pytest.approx(np.exp(mean), rel=1e-4)


def test_tuning_is_scored_by_the_primary_score_alone():
    assert found_by("federated", "tuning")[0].keys() == {"perplexity"}


def words(parts) -> set[int]:
    """The texts that are there, by their own word."""
    return {
        int(token) for rows in parts for token in rows["labels"].ravel() if token >= 9
    }


def test_nothing_is_in_two_places():
    found = {}
    for split in ("tuning", "final"):
        texts = conversations.load(
            made_up,
            dataclasses.replace(CONFIG, eval_rows=99, forgetting_rows=1),
            1,
            split,
        )
        parts = [words(texts.train), words(texts.seen), words(texts.unseen)]
        found[split] = set.union(*parts)
        assert sum(map(len, parts)) == len(found[split])
        groups = [
            {(word - 9) // (N_CLIENTS * N_TEXTS) for word in part} for part in parts
        ]
        assert not groups[2] & (
            groups[0] | groups[1]
        )  # unseen clients are of other groups
        clients = [{(word - 9) // N_TEXTS for word in part} for part in parts]
        assert clients[0] == clients[1]
    assert not found["tuning"] & found["final"]
    split_groups = [
        {(word - 9) // (N_CLIENTS * N_TEXTS) for word in words}
        for words in found.values()
    ]
    assert not split_groups[0] & split_groups[1]


def test_shuffled_answers_keep_their_tokens_and_lose_their_places():
    rows = data().train[0]
    other = language.without_meaning(rows, 0)
    counts = rows["labels"] != -100
    np.testing.assert_array_equal(other["labels"] != -100, counts)
    np.testing.assert_array_equal(
        np.sort(other["labels"][counts]), np.sort(rows["labels"][counts])
    )
    assert (other["labels"] != rows["labels"]).any()
    np.testing.assert_array_equal(other["input_ids"], rows["input_ids"])


def test_a_speech_follows_its_cue():
    source = generate.speeches(generate.Config())
    first, *_ = np.flatnonzero(source.groups == "hamlet")
    opening = source.say(int(first), 0)
    assert opening[1]["content"] == "(enters)"
    assert opening[0]["content"].endswith("in Hamlet.")
    assert [message["role"] for message in opening] == ["system", "user", "assistant"]
    cued = source.say(int(first) + 1, 0)
    assert cued[1]["content"] == " ".join(opening[2]["content"].split()[-24:])
    assert len(source.say(int(first) + 1, 2)[1]["content"].split()) <= 6


def test_every_arm_that_is_tuned_tries_as_much():
    for config in (
        generate.Config(),
        generate.Config().smoke(),
        generate.Config().full(),
    ):
        generate.STUDY.check_budgets(config)
    assert len(generate.Config().seeds) >= 3
    assert len(generate.STUDY.controls) == 2
