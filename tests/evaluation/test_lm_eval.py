"""Our models in lm-eval give what its own `hf` model gives on the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_fm import models, peft
from fedjax_fm.datasets import load_shakespeare
from fedjax_fm.evaluation import lm_eval as ours
from fedjax_fm.evaluation import lm_eval_model

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

ROOT = Path(__file__).resolve().parents[2]
SPEECHES = [str(speech) for speech in load_shakespeare()["speech"][:40]]


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments
    ]


@pytest.fixture(scope="module")
def own(tiny_llama):
    chat = models.load_chat(tiny_llama)
    return lm_eval_model(models.from_pretrained(tiny_llama), chat, batch_size=4)


@pytest.fixture(scope="module")
def theirs(tiny_llama):
    """lm-eval's `hf` model of the same folder."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM

    fields = json.loads((tiny_llama / "tokenizer_config.json").read_text())
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tiny_llama / "tokenizer.json"), **fields
    )
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_llama)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")


def pairs():
    found = [(text[:20], text[20:60]) for text in SPEECHES[:12] if len(text) > 25]
    found += [("", SPEECHES[0][:30]), ("ends with blanks  ", "so"), ("a", " b")]
    # Longer than the context of 256 tokens: cut on the left.
    return [*found, (" ".join(SPEECHES)[:3000], " the end")]


def test_loglikelihood_is_that_of_the_hf_model(own, theirs):
    asked = instances("loglikelihood", pairs())
    a, b = own.loglikelihood(asked), theirs.loglikelihood(asked)
    np.testing.assert_allclose([x for x, _ in a], [x for x, _ in b], atol=1e-3)
    assert [x for _, x in a] == [x for _, x in b]


def test_rolling_is_that_of_the_hf_model(own, theirs):
    long = " ".join(SPEECHES)
    texts = [(SPEECHES[0],), ("a",), (long[:900],), (long[:4000],)]
    asked = instances("loglikelihood_rolling", texts)
    a, b = own.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked)
    np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-5)


def test_greedy_generation_is_that_of_the_hf_model(own, theirs):
    how = [
        {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        {"until": [" the", "o"], "max_gen_toks": 40},
        {"until": "e", "max_new_tokens": 7, "temperature": 0.0},
    ]
    texts = [*SPEECHES[:6], " ".join(SPEECHES)[:3000]]
    asked = instances("generate_until", [(t, h) for t in texts for h in how])
    a = own.generate_until(asked)
    # The hf model adds its end to the list that it is given.
    copies = [(t, json.loads(json.dumps(h))) for t in texts for h in how]
    b = theirs.generate_until(instances("generate_until", copies))
    assert a == b
    assert len(set(a)) > 3


def test_ids_are_those_of_the_hf_model(own, theirs):
    for text in ("", "a b", "<|im_end|>a", *SPEECHES[:3]):
        assert own.tok_encode(text) == theirs.tok_encode(text)
    assert own.eot_token_id == theirs.eot_token_id
    assert own.prefix_token_id == theirs.prefix_token_id
    assert own.max_length == theirs.max_length


def test_chat_templates_are_those_of_the_hf_model(own, theirs):
    talk = [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "Nay, answer me"},
    ]
    for messages, opened in ((talk[:1], True), (talk, False)):
        a = own.apply_chat_template(messages, add_generation_prompt=opened)
        b = theirs.apply_chat_template(messages, add_generation_prompt=opened)
        assert a == b
    assert own.chat_template(True) == theirs.chat_template(True)
    assert own.chat_template(False) is None


@pytest.fixture
def tasks(tmp_path):
    """Three tasks of a local file, one of each kind."""
    rows = [
        {"q": text[:20], "choices": [text[20:30], "zzz", "no"], "gold": 0}
        for text in SPEECHES
        if len(text) > 40
    ]
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
    }
    choice = {
        "task": "local_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    written = {
        "task": "local_written",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    rolling = {
        "task": "local_rolling",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    return [task | data for task in (choice, written, rolling)]


def evaluated(model, tasks, **how):
    fixed = {"limit": 8, "bootstrap_iters": 0, "log_samples": True}
    return lm_eval.simple_evaluate(model=model, tasks=tasks, **(fixed | how))


def test_simple_evaluate_on_local_tasks_gives_the_same_scores(own, theirs, tasks):
    a, b = evaluated(own, tasks)["results"], evaluated(theirs, tasks)["results"]
    assert sorted(a) == ["local_choice", "local_rolling", "local_written"]
    for task, scores in b.items():
        for name, value in scores.items():
            if isinstance(value, float):
                assert a[task][name] == pytest.approx(value, rel=1e-4), (task, name)


def test_with_a_chat_template(own, tasks):
    found = evaluated(own, tasks[:2], apply_chat_template=True)
    prompts = [row["arguments"][0][0] for row in found["samples"]["local_written"]]
    assert all(prompt.startswith("<|im_start|>user\n") for prompt in prompts)
    assert all(prompt.endswith("<|im_start|>assistant\n") for prompt in prompts)


def test_it_is_made_by_its_name(tiny_llama, own, tasks, tmp_path):
    adapted = peft.apply(own.model, peft.lora(2, targets=["q_proj", "v_proj"]))
    delta = jax.tree.map(lambda x: x + 0.3, adapted.delta)
    adapted.save_pretrained(tmp_path / "adapter", delta)
    ours.lm_eval_class()
    arguments = {"pretrained": str(tiny_llama), "peft": str(tmp_path / "adapter")}
    named = evaluated("fedjax_fm", tasks[:1], model_args=arguments, batch_size="8")
    direct = lm_eval_model(adapted.model(delta), models.load_chat(tiny_llama))
    expected = evaluated(direct, tasks[:1])
    for a, b in zip(
        named["samples"]["local_choice"],
        expected["samples"]["local_choice"],
        strict=True,
    ):
        np.testing.assert_allclose(
            [float(x[0]) for x in a["filtered_resps"]],
            [float(x[0]) for x in b["filtered_resps"]],
            rtol=1e-5,
        )


def test_the_cache_is_not_read_for_other_weights(own, tiny_llama, tasks, tmp_path):
    adapted = peft.apply(own.model, peft.lora(2, targets=["q_proj", "v_proj"]))
    chat = models.load_chat(tiny_llama)

    def with_delta(shift):
        delta = jax.tree.map(lambda x: x + shift, adapted.delta)
        return lm_eval_model(adapted.model(delta), chat)

    def scores(model, **how):
        found = evaluated(model, tasks, limit=3, **how)["samples"]
        return {
            name: [row["filtered_resps"] for row in rows]
            for name, rows in found.items()
        }

    cache = str(tmp_path / "cache")
    first, second = with_delta(0.0), with_delta(0.5)
    plain, other = scores(first), scores(second)
    assert plain != other
    assert scores(first, use_cache=cache) == plain
    assert scores(second, use_cache=cache) == other

    def refuse(*args, **kwargs):
        raise AssertionError("computed once more")

    again = with_delta(0.0)
    for name in ("_loglikelihood_tokens", "loglikelihood_rolling", "generate_until"):
        setattr(again, name, refuse)
    assert scores(again, use_cache=cache) == plain


def test_the_digest_is_of_weights_and_settings(own, tiny_llama):
    chat = models.load_chat(tiny_llama)
    same = lm_eval_model(models.from_pretrained(tiny_llama), chat, batch_size=2)
    assert same.digest == own.digest  # neither identity nor batches
    shorter = lm_eval_model(own.model, chat, max_length=64)
    other = lm_eval_model(own.model, chat, eos_token_id=5)
    assert len({own.digest, shorter.digest, other.digest}) == 3


def test_what_is_not_known_is_refused(own):
    for how, said in (
        ({"do_sample": True}, "temperature above 0"),
        ({"do_sample": True, "temperature": 0.0}, "temperature above 0"),
        ({"num_beams": 4, "do_sample": False}, "num_beams"),
    ):
        with pytest.raises(ValueError, match=said):
            own.generate_until(instances("generate_until", [("a", how)]))


def test_a_task_that_samples(own, tiny_llama):
    chat = models.load_chat(tiny_llama)

    def written(how, seed=0, batch_size=4, texts=SPEECHES[:6]):
        lm = lm_eval_model(own.model, chat, batch_size=batch_size, seed=seed)
        asked = [(text, {"max_gen_toks": 6, **how}) for text in texts]
        return lm.generate_until(instances("generate_until", asked))

    warm = {"do_sample": True, "temperature": 1.5}
    greedy = written({"do_sample": False})
    first = written(warm)
    assert first != greedy
    assert first == written(warm, batch_size=2) == written({"temperature": 1.5})
    assert first != written(warm, seed=1)
    # The same prompt twice is drawn twice.
    assert len(set(written(warm, texts=SPEECHES[:1] * 6))) > 1
    assert written({**warm, "top_k": 1}) == greedy
    assert written({**warm, "top_p": 1e-6}) == greedy
    assert written({"do_sample": False, "temperature": 1.5}) == greedy


def test_the_seed_is_part_of_the_digest(own, tiny_llama):
    chat = models.load_chat(tiny_llama)
    assert lm_eval_model(own.model, chat, seed=1).digest != own.digest


def test_a_base_model_has_no_chat_template(tiny_llama, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    words = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    lm = ours.lm_eval_class()(pretrained=str(tmp_path))
    begin = lm.tokenizer.token_to_id("<|im_start|>")
    assert lm.prefix_token_id == begin != lm.eot_token_id
    with pytest.raises(ValueError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "a"}])


def test_refusals(own, tiny_llama):
    make = ours.lm_eval_class()
    with pytest.raises(TypeError, match="a model and its tokenizer, or pretrained"):
        make(own.model)
    with pytest.raises(TypeError, match="got both"):
        make(own.model, own.vocabulary.chat, pretrained=str(tiny_llama))
    with pytest.raises(ValueError, match="batch_size"):
        make(own.model, own.vocabulary.chat, batch_size="auto")
    with pytest.raises(ValueError, match="names no end of text"):
        make(own.model, own.tokenizer)
    assert make(own.model, own.tokenizer, eos_token_id=3).eot_token_id == 3


def python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_it_needs_no_torch(tiny_llama):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fedjax_fm.evaluation.lm_eval import LMEvalModel\n"
        "from lm_eval.api.instance import Instance\n"
        f"lm = LMEvalModel(pretrained={str(tiny_llama)!r})\n"
        "ask = Instance('loglikelihood', {}, ('Who is', ' there?'), 0)\n"
        "print(lm.loglikelihood([ask], disable_tqdm=True)[0][0] < 0)"
    )
    said = python(code)
    assert said.stdout.splitlines()[-1:] == ["True"], said.stderr


def test_without_the_harness_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "import fedjax_fm.evaluation as e\n"
        "e.lm_eval_class()"
    )
    said = python(code)
    assert "ImportError: LMEvalModel needs lm-eval: pip install 'fedjax-fm[eval]'" in (
        said.stderr
    )
