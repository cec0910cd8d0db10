"""Greedy generation of GPT-2, T5 and Qwen against transformers, token for token, and
caches against whole passes.
"""

import numpy as np
import pytest
import reference_models as reference
from flax import nnx

from fedjax_fm import models

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

N = 9  # new tokens


def both(name: str):
    theirs, folder = reference.folder_of(name)
    return models.from_pretrained(folder), theirs


def generated(theirs, inputs: dict, eos: int | None) -> np.ndarray:
    with torch.no_grad():
        return theirs.generate(
            **{name: torch.tensor(array).long() for name, array in inputs.items()},
            do_sample=False,
            num_beams=1,
            max_new_tokens=N,
            eos_token_id=eos,
            pad_token_id=0,
            use_cache=theirs.config.model_type
            != "t5",  # whose cache must have as many layers as the encoder
        ).numpy()


@pytest.mark.compatibility
@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama-3", "gemma3"])
def test_greedy_decoding_equals_transformers(name: str, compatibility):
    ours, theirs = both(name)
    prompts = reference.text(left=True)
    length = prompts["input_ids"].shape[1]

    def run(eos):
        cache = ours.empty_cache(3, length + N)
        options = {"max_new_tokens": N, "eos_token_id": eos, "pad_token_id": 0}
        return reference.quick_jit(
            lambda i, m: models.generate(ours.next_logits, i, m, cache, **options)
        )(*prompts.values())

    free = np.asarray(run(None).tokens)
    np.testing.assert_array_equal(free, generated(theirs, prompts, None)[:, length:])
    assert len(np.unique(free)) > 3
    if name == "gpt2":
        eos = int(free[1, 3])
        expected = generated(theirs, prompts, eos)[:, length:]
        np.testing.assert_array_equal(
            np.asarray(run(eos).tokens)[:, : expected.shape[1]], expected
        )
        whole, (logits, cache) = (
            np.asarray(reference.quick_jit(ours)(**prompts)),
            read_in_pieces(ours, prompts, length),
        )
        real = prompts["attention_mask"].astype(bool)
        np.testing.assert_allclose(logits[real], whole[real], atol=1e-5)
        assert int(cache.length) == length
        with pytest.raises(ValueError, match="got max_length=33"):
            ours.empty_cache(1, 33)
    compatibility.works("Architectures", name, "greedy decoding")


def read_in_pieces(model, prompts: dict, length: int):
    graphdef, state = nnx.split(model)
    read = reference.quick_jit(
        lambda state, ids, mask, cache: nnx.merge(graphdef, state)(
            ids, mask, cache=cache
        )
    )
    cache, parts = model.empty_cache(3, length), []
    for piece in (slice(0, 4), slice(4, 5), slice(5, length)):
        logits, cache = read(
            state, *(array[:, piece] for array in prompts.values()), cache
        )
        parts.append(np.asarray(logits))
    return np.concatenate(parts, axis=1), cache


@pytest.mark.compatibility
@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
def test_greedy_translation_equals_transformers(name: str, compatibility):
    ours, theirs = both(name)
    inputs = reference.text(left=name == "t5")

    def run(eos):
        options = {"max_new_tokens": N, "eos_token_id": eos, "pad_token_id": 0}
        return reference.quick_jit(
            lambda i, m: models.generate(
                ours.next_logits, *ours.start(i, m, N), **options
            )
        )(*inputs.values())

    free = np.asarray(run(None).tokens)
    np.testing.assert_array_equal(free, generated(theirs, inputs, None)[:, 1:])
    assert len(np.unique(free)) > (1 if name == "t5" else 3)
    if name == "t5-v1.1":
        eos = int(free[1, 3])
        expected = generated(theirs, inputs, eos)[:, 1:]
        np.testing.assert_array_equal(
            np.asarray(run(eos).tokens)[:, : expected.shape[1]], expected
        )
    compatibility.works("Architectures", name, "greedy decoding")
