"""Encoder-decoders in lm-eval give what its own `hf` seq2seq model gives."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as words

from fedjax_fm import models, peft
from fedjax_fm.evaluation import (
    generate_until,
    lm_eval_model,
    loglikelihood,
    loglikelihood_rolling,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = {"<pad>": 0, "</s>": 1, "?": 2} | {c: i + 3 for i, c in enumerate(LETTERS)}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": len(VOCABULARY),
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "n_positions": 24,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random T5 of a word a letter, whose tokenizer ends texts."""
    place = tmp_path_factory.mktemp("t5")
    model = models.from_config(T5, seed=0)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda x: 3 * x, params)  # likely and unlikely tokens
    peft.save_merged(place, nnx.merge(graphdef, params, rest), T5)
    tokenizer = Tokenizer(words.WordLevel(VOCABULARY, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.save(str(place / "tokenizer.json"))
    fields = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "?"}
    (place / "tokenizer_config.json").write_text(json.dumps(fields))
    return place


@pytest.fixture(scope="module")
def own(folder):
    model = models.from_pretrained(folder)
    return lm_eval_model(model, str(folder), batch_size=4, max_length=24)


def text(random, n):
    return " ".join(random.choice(list(LETTERS), n))


def asked():
    random = np.random.default_rng(0)
    lengths = ((1, 1), (3, 2), (9, 4), (2, 11), (17, 1), (40, 3), (5, 5))
    found = [(text(random, a), " " + text(random, b)) for a, b in lengths]
    return [*found, ("", text(random, 3)), ("ends with blanks  ", "s o")]


def instances(kind, arguments):
    api = pytest.importorskip("lm_eval.api.instance")
    return [
        api.Instance(request_type=kind, doc={}, arguments=one, idx=0)
        for one in arguments
    ]


@pytest.fixture(scope="module")
def theirs(folder):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    of_hf = pytest.importorskip("lm_eval.models.huggingface")
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **fields
    )
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    how = {"batch_size": 4, "device": "cpu", "backend": "seq2seq", "max_length": 24}
    return of_hf.HFLM(pretrained=model, tokenizer=tokenizer, **how)


def test_loglikelihood_is_that_of_the_hf_model(own, theirs):
    requests = instances("loglikelihood", asked())
    a, b = own.loglikelihood(requests), theirs.loglikelihood(requests)
    np.testing.assert_allclose([x for x, _ in a], [x for x, _ in b], atol=1e-3)
    assert [x for _, x in a] == [x for _, x in b]
    assert own.backend == theirs.backend == "seq2seq"


def test_what_greedy_decoding_writes_is_called_greedy(own):
    prompt = own.tok_encode("a b c")
    made = models.generate(own.model, [prompt], max_new_tokens=4).tokens[0].tolist()
    found = loglikelihood(own.model, [(prompt, made), (prompt, [*made[:3], 9])])
    assert found.greedy.tolist() == [True, made[3] == 9]
    assert found.tokens.tolist() == [4, 4]


def test_answers_are_those_of_generate(own):
    prompts = [own.tok_encode(context) for context, _ in asked() if context]
    how = {"max_gen_toks": 7, "eos_token_id": 1, "max_length": 24}
    found = generate_until(own.model, prompts, own.tokenizer, **how)
    for prompt, answer in zip(prompts, found, strict=True):
        made = models.generate(
            own.model, [prompt[-24:]], max_new_tokens=7, eos_token_id=1
        )
        ids = made.tokens[0, : int(made.lengths[0])].tolist()
        assert own.tokenizer.decode(ids, skip_special_tokens=True) == answer
    for segment in (2, 3):
        again = generate_until(
            own.model, prompts, own.tokenizer, segment=segment, batch_size=3, **how
        )
        assert again == found
    assert len(set(found)) > 2


def test_the_harness_gets_answers_up_to_a_stop_string(own):
    how = {"max_gen_toks": 7, "do_sample": False}
    (whole,) = own.generate_until(instances("generate_until", [("a b", how)]))
    stop = whole.split()[1] if len(whole.split()) > 1 else "zz"
    how = {**how, "until": [stop]}
    (cut,) = own.generate_until(instances("generate_until", [("a b", how)]))
    assert cut == whole.split(stop, 1)[0]


def test_whole_texts_have_no_likelihood(own):
    with pytest.raises(TypeError, match="none of a whole text"):
        loglikelihood_rolling(own.model, [[3, 4]], prefix_token_id=1)
    with pytest.raises(TypeError, match="none of a whole text"):
        own.loglikelihood_rolling(instances("loglikelihood_rolling", [("a b",)]))


def test_continuations_that_are_too_long_are_refused(own):
    with pytest.raises(ValueError, match="request 0 has a continuation of 5 tokens"):
        loglikelihood(own.model, [([3], [4] * 5)], max_length=4)
    with pytest.raises(ValueError, match="empty context"):
        loglikelihood(own.model, [([], [4])])
    with pytest.raises(ValueError, match="token id 99"):
        loglikelihood(own.model, [([99], [4])])
