"""T5 in `fedjax-fm finetune`: it is trained, shows answers, talks and predicts."""

import json

import numpy as np
import pytest
from small_checkpoints import chats, checkpoint, write_jsonl
from tokenizers import Tokenizer, processors

from fedjax_fm.cli import main
from fedjax_fm.finetune import talk
from fedjax_fm.finetune.templates import one_question
from fedjax_fm.runs.errors import UsageError

T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "eos_token_id": 4,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("t5")
    model = checkpoint(place / "t5", T5)
    path = str(model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 4)]
    )
    tokenizer.save(path)
    data = write_jsonl(place / "chats.jsonl", chats())
    main(
        [
            *("finetune", "--model", str(model), "--data", str(data)),
            *("--rounds", "2", "--cohort", "3", "--local-steps", "4", "--rank", "2"),
            *("--learning-rate", "0.3", "--max-length", "16", "--new-tokens", "5"),
            *("--answers", "3", "--no-baselines", "--merge", "safetensors"),
            *("--out", str(place / "run")),
        ]
    )
    return place / "run"


def theirs(run, prompts):
    """Hugging Face's greedy answers of the merged model, one prompt at a time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    place = run / "model" / "merged"
    model = transformers.T5ForConditionalGeneration.from_pretrained(place)
    tokenizer = Tokenizer.from_file(str(run.parent / "t5" / "tokenizer.json"))
    tokenizer.no_padding()
    found = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        made = model.generate(ids, max_new_tokens=5, do_sample=False, num_beams=1)
        text = tokenizer.decode(made[0, 1:].tolist(), skip_special_tokens=True)
        found.append(text.strip())
    return found


def test_the_report_shows_answers_of_the_trained_model(run):
    found = json.loads((run / "results.json").read_text())
    (one,) = found["arms"]["federated"]["runs"]
    answers = one["answers"]
    assert len(answers) == 3
    expected = theirs(run, [each["prompt"] for each in answers])
    assert [each["after"] for each in answers] == expected
    assert any(expected)
    assert any(each["before"] != each["after"] for each in answers)
    assert "Held-out prompts" in (run / "report.html").read_text()


def test_it_talks_a_prompt_at_a_time(run):
    said = ["say the number of red", "say blue"]
    asked, told = iter([*said, None]), []
    talk.chat(run, lambda: next(asked), told.append)
    assert told == theirs(run, said)


def test_it_predicts_answers_with_or_without_known_ones(run, tmp_path):
    rows = chats(n_clients=2, each=3)
    path = write_jsonl(tmp_path / "new.jsonl", rows)
    target, scores = talk.predict(run, path, None)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    expected = theirs(run, [row["instruction"] for row in rows])
    assert [line["answer"] for line in lines] == expected
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
    bare = [{"instruction": row["instruction"]} for row in rows]
    path = write_jsonl(tmp_path / "bare.jsonl", bare)
    target, scores = talk.predict(run, path, None)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["answer"] for line in lines] == expected
    assert scores == {}


def test_it_takes_one_prompt(run):
    asked = one_question(str(run.parent / "t5"))
    question = {"role": "user", "content": "say", "input": "red"}
    assert asked.prompt_ids([question])[-1] == 4
    assert len(asked.prompt_ids([question])) == 3
    with pytest.raises(UsageError, match="takes one prompt"):
        asked.prompt_ids([{"role": "system", "content": "a"}, question])
