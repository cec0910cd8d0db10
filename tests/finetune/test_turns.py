"""`--turns each`: an example an answer, cut on the left, one side of every split."""

import json

import numpy as np
import pytest
from small_checkpoints import LLAMA, TEMPLATE, WORDS, checkpoint, write_jsonl

from fedjax_fm.cli import main
from fedjax_fm.finetune import clients as federation
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune import talk
from fedjax_fm.finetune.examples import choose, make
from fedjax_fm.finetune.files import Source
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.finetune.templates import chat_of
from fedjax_fm.finetune.tokens import conversations
from fedjax_fm.finetune.turns import EMPTY, context, each_answer, fitted
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.settings import replace

# As `TEMPLATE`, and the system's words stand before all.
OPENED = "{% if messages[0].role == 'system' %}" + (
    "{{ messages[0].content }} {% set messages = messages[1:] %}{% endif %}" + TEMPLATE
)
SYSTEM = {"role": "system", "content": "number"}


def said(role, content):
    return {"role": role, "content": content}


def talk_of(*texts):
    """Users and assistants in turn."""
    return [said(("user", "assistant")[k % 2], text) for k, text in enumerate(texts)]


FOUR = talk_of("say red", "red", "say blue", "blue one", "say one", "one", "it", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("turns")
    checkpoint(place / "llama", LLAMA, OPENED)
    return place


@pytest.fixture(scope="module")
def chat(folder):
    return chat_of(Settings(model=str(folder / "llama")))


def read(chat, ids):
    """The words of tokens, without what the decoder puts between."""
    return [chat.tokenizer.id_to_token(int(i)) for i in ids]


def source_of(talks, **columns):
    table = {"messages": talks, **columns}
    return Source(table=table, name="t", kind="jsonl", sha256="")


def examples_of(talks):
    source = source_of(talks)
    return each_answer(make(source, choose(Settings(), source)))


def test_every_answer_is_an_example_of_its_own():
    found = examples_of(
        [FOUR, talk_of("it", "no", "what"), talk_of("a", " ", "b", "c")]
    )
    assert found.rows.tolist() == [0, 0, 0, 0, 1, 2]
    assert [len(value) for value in found.values] == [2, 4, 6, 8, 2, 4]
    assert all(value[-1]["role"] == "assistant" for value in found.values)
    assert found.dropped == {EMPTY: 1}


def test_an_answer_that_calls_a_tool_is_one():
    call = {"function": {"name": "f", "arguments": {}}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    talks = [[said("user", "a"), asked, said("tool", "1"), said("assistant", "b")]]
    assert [len(value) for value in examples_of(talks).values] == [2, 4]


def test_texts_have_no_turns():
    source = Source(table={"text": ["a"]}, name="t", kind="jsonl", sha256="")
    with pytest.raises(UsageError, match="no conversations"):
        each_answer(make(source, choose(Settings(text="text"), source)))


def test_the_loss_is_on_the_last_answer_alone(chat):
    found = fitted(chat, FOUR, most=99)
    trained = found.ids[found.labels != IGNORED]
    assert read(chat, trained) == ["two", "</s>"]
    assert read(chat, found.ids)[:3] == ["<|user|>", "say", "red"]
    assert (found.tokens_cut, found.messages_cut) == (0, 0)


def plain_cut(chat, messages, most):
    """The longest end of a conversation that opens with a user, by trying all."""
    system = [one for one in messages if one["role"] == "system"]
    others = messages[len(system) :]
    for start in range(0, len(others), 2):
        kept = [*system, *others[start:]]
        ids = chat.tokenizer.encode(chat.text(kept), add_special_tokens=False).ids
        if len(ids) <= most:
            return kept, ids
    return None


@pytest.mark.parametrize("most", range(8, 32))
@pytest.mark.parametrize("system", [[], [SYSTEM]])
def test_whole_messages_are_cut_on_the_left(most, system, chat):
    messages = [*system, *FOUR]
    expected = plain_cut(chat, messages, most)
    assert expected is not None
    found = fitted(chat, messages, most)
    kept, ids = expected
    assert found.ids.tolist() == ids
    assert found.messages_cut == len(messages) - len(kept)
    whole = chat.tokenizer.encode(chat.text(messages), add_special_tokens=False).ids
    assert found.tokens_cut == len(whole) - len(ids)
    assert read(chat, found.ids[found.labels != IGNORED]) == ["two", "</s>"]


def test_a_long_question_loses_its_first_words(chat):
    words = WORDS[:12]
    messages = [SYSTEM, *talk_of("it", "no", " ".join(words), "yes no")]
    found = fitted(chat, messages, most=12)
    # number <|user|> ... <|assistant|> yes no </s> leave room for six words.
    expected = ["number", "<|user|>", *words[-6:], "<|assistant|>", "yes", "no", "</s>"]
    assert read(chat, found.ids) == expected
    assert found.messages_cut == 2
    assert read(chat, found.ids[found.labels != IGNORED]) == ["yes", "no", "</s>"]


def test_a_long_answer_leaves_half_of_the_room_to_its_question(chat):
    words = WORDS[:12]
    messages = talk_of(" ".join(words), " ".join(words))
    found = fitted(chat, messages, most=12)
    expected = ["<|user|>", *words[-4:], "<|assistant|>", *words[:6]]
    assert read(chat, found.ids[:12]) == expected
    short = fitted(chat, talk_of("it is", " ".join(words)), most=12)
    expected = ["<|user|>", "it", "is", "<|assistant|>", *words[:8]]
    assert read(chat, short.ids[:12]) == expected
    assert short.tokens_cut == 5


def test_no_room_for_a_question_is_counted(chat, folder):
    system = said("system", " ".join(WORDS[:20]))
    talks = [[system, *talk_of("it", "no")], FOUR[:4]]
    settings = Settings(model=str(folder / "llama"), turns="each", max_length=9)
    found = conversations(examples_of(talks), chat, settings)
    assert found.usable.tolist() == [False, True, True]
    assert found.counts == {
        "examples cut to the longest length": 2,
        "tokens cut off": 26 + 5,
        "answers with earlier messages left out": 1,
        "earlier messages left out": 2,
        "answers without room for their question": 1,
    }


def test_a_prompt_is_cut_as_in_training(chat):
    question = FOUR[:-1]
    assert context(chat, question, 99) == question
    assert context(chat, question, 9) == FOUR[4:-1]
    assert context(chat, question, 8) == FOUR[6:-1]
    assert context(chat, question, 2) is None
    (cut,) = context(chat, talk_of("say red one"), 4)
    assert cut["content"] == "red one"


# Splits


def different_talks(n):
    return [
        talk_of(f"a{k}", f"b{k}", f"c{k}", f"d{k}", f"e{k}", f"f{k}") for k in range(n)
    ]


def split(settings, seed=0, part="final", n=60):
    users = [f"user {k % 12}" for k in range(n)]
    source = source_of(different_talks(n), user=users)
    examples = each_answer(make(source, choose(settings, source)))
    clients = federation.find(settings, source, examples)
    return examples, federation.deal(clients, examples, settings, seed, part)


@pytest.mark.parametrize("client", ["user", "iid:7", "exponential:3"])
@pytest.mark.parametrize("seed", range(5))
def test_a_conversation_is_on_one_side_of_every_split(client, seed):
    settings = Settings(client=client, holdout_clients=0.2, holdout_examples=0.3)
    examples, dealt = split(settings, seed)
    groups = [*dealt.train, *dealt.own, *dealt.unseen]
    rows = [set(examples.rows[places].tolist()) for places in groups]
    assert sum(map(len, rows)) == len(set().union(*rows)) == 60
    assert sum(map(len, groups)) == 180
    assert any(len(places) for places in dealt.own)


def test_tuning_clients_share_no_conversation_with_the_others():
    settings = Settings(client="iid:12", learning_rate=(1e-3, 1e-2))
    sides = []
    for part in ("tuning", "final"):
        examples, dealt = split(settings, part=part)
        places = np.concatenate([*dealt.train, *dealt.own, *dealt.unseen])
        sides.append(set(examples.rows[places].tolist()))
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60


def test_partitioners_deal_conversations_as_they_deal_rows():
    settings = Settings(client="iid:5")
    source = source_of(different_talks(20))
    one_a_row = make(source, choose(settings, source))
    whole = federation.find(settings, source, one_a_row)
    examples = each_answer(one_a_row)
    found = federation.find(settings, source, examples)
    for own, expected in zip(found.places, whole.places, strict=True):
        assert examples.rows[own].tolist() == np.repeat(expected, 3).tolist()


# The command


def rows(n_clients=6, each=4):
    random = np.random.default_rng(0)
    found = []
    for k in range(n_clients * each):
        words = random.choice(WORDS[:25], (6, 2)).tolist()
        messages = talk_of(*map(" ".join, words))
        found.append({"messages": messages, "user": k % n_clients})
    return found


@pytest.fixture(scope="module")
def run(folder):
    path = write_jsonl(folder / "talks.jsonl", rows())
    place = folder / "run"
    main(
        [
            *("finetune", "--model", str(folder / "llama"), "--data", str(path)),
            *("--turns", "each", "--max-length", "16", "--rounds", "1", "--rank", "2"),
            *("--cohort", "2", "--local-steps", "1", "--batch-size", "2"),
            *("--new-tokens", "3", "--answers", "3", "--no-baselines"),
            *("--out", str(place)),
        ]
    )
    return place


def test_a_run_counts_what_was_cut(run):
    facts = json.loads((run / "finetune.json").read_text())
    # Of 24 conversations with 3 answers of 2 words each, 16 tokens hold two turns.
    assert facts["counts"]["answers with earlier messages left out"] == 24
    assert facts["counts"]["earlier messages left out"] == 24 * 2
    assert "72 examples" in facts["plan"]["source"]
    assert "earlier messages left out: 48" in (run / "RESULTS.md").read_text()
    found = json.loads((run / "results.json").read_text())
    assert len(found["arms"]["federated"]["runs"][0]["answers"]) == 3


def test_predictions_have_a_line_for_every_answer(run, folder):
    lines = [row["messages"] for row in rows(1, 2)]
    lines[1] = lines[1][:-1]  # ends with a question
    path = write_jsonl(folder / "new.jsonl", [{"messages": one} for one in lines])
    target, scores = talk.predict(run, path, None)
    found = [json.loads(line) for line in target.read_text().splitlines()]
    places = [(line["row"], line["turn"]) for line in found]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert ["loss" in line for line in found] == [True] * 5 + [False]
    assert all("answer" in line for line in found)
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
    model = talk.opened(run)
    alone = examples_of([lines[0]]).select(np.array([2]))
    arrays = talk.encoded_like(model, alone)
    labels = arrays["labels"]
    logits = np.asarray(
        model.adapted.model(*model.parts)(
            arrays["input_ids"], attention_mask=arrays["attention_mask"]
        ),
        np.float64,
    )[:, :-1]
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = labels[:, 1:]
    picked = np.take_along_axis(chances, np.maximum(wanted, 0)[..., None], -1)[..., 0]
    expected = -picked[wanted != IGNORED].mean()
    assert found[2]["loss"] == pytest.approx(expected, abs=1e-5)


def test_a_talk_goes_on_beyond_the_longest_length(run):
    asked, told = iter([*["say the number of red"] * 20, None]), []
    talk.chat(run, lambda: next(asked), told.append)
    assert len(told) == 20


def test_a_t5_takes_one_prompt_and_one_answer(run, monkeypatch):
    settings = talk.opened(run).settings
    monkeypatch.setattr(of_data, "model_type_of", lambda model: "t5")
    with pytest.raises(UsageError, match="one prompt and one answer"):
        of_data.prepare(replace(settings, max_length=24))
