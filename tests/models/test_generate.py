"""Generation: cache against full forward, greedy against transformers, sampling rules,
vmap against the loop.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft
from fedjax_fm.models.generate import restrict

QUESTIONS = [
    "What is the capital of France?",
    "Give me a numbered list of ten fruits and say in one sentence why each is good for you.",
    "Write a short poem about the sea and the people who sail on it in winter.",
    "Explain what a computer is.",
]


@pytest.fixture(scope="module")
def model(random_llama) -> models.LlamaForCausalLM:
    config = models.LlamaConfig(
        vocab_size=53,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return random_llama(config, seed=3)


@pytest.fixture(scope="module")
def prompts() -> dict[str, np.ndarray]:
    return models.pad_prompts(
        [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]], pad_token_id=0
    )


def answer(model, input_ids, attention_mask, n: int, **options) -> models.Generated:
    batch, length = input_ids.shape
    cache = model.empty_cache(batch, length + n)
    return models.generate(
        model.next_logits, input_ids, attention_mask, cache, max_new_tokens=n, **options
    )


@functools.cache
def compiled(graphdef, n: int, **options):
    return jax.jit(
        lambda state, prompts, key: answer(
            nnx.merge(graphdef, state), **prompts, n=n, key=key, **options
        )
    )


def run(model, prompts, n: int, key=None, **options) -> models.Generated:
    return compiled(*nnx.split(model)[:1], n, **options)(nnx.state(model), prompts, key)


def greedy_by_full_forward(model, ids: list[int], n: int) -> list[int]:
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids))
    for _ in range(n):  # padded on the right to one shape; the mask is causal
        logits = np.asarray(
            forward(state, np.array([ids + [0] * (20 - len(ids))], np.int32))
        )
        ids = [*ids, int(logits[0, len(ids) - 1].argmax())]
    return ids[-n:]


def test_reading_through_the_cache_equals_one_forward_pass(model, prompts):
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    whole = np.asarray(jax.jit(model)(ids, mask))
    cache, parts = model.empty_cache(3, 20), []
    graphdef, state = nnx.split(model)
    read = jax.jit(
        lambda state, ids, mask, cache: nnx.merge(graphdef, state)(
            ids, mask, cache=cache
        )
    )
    for piece in (
        slice(0, 3),
        slice(3, 4),
        slice(4, 7),
    ):  # several tokens, one token, several behind others
        logits, cache = read(state, ids[:, piece], mask[:, piece], cache)
        parts.append(np.asarray(logits))
    real = mask.astype(bool)
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1)[real], whole[real], atol=1e-5
    )
    assert int(cache.length) == 7
    np.testing.assert_array_equal(np.asarray(cache.valid[:, :7]), real)
    last, _ = jax.jit(model.next_logits)(ids, mask, model.empty_cache(3, 7))
    np.testing.assert_allclose(last, whole[:, -1], atol=1e-5)


def test_greedy_equals_repeated_full_forward_for_every_row(model, prompts):
    found = run(model, prompts, 12)
    for row, (ids, mask) in enumerate(zip(*prompts.values(), strict=True)):
        assert np.asarray(found.tokens[row]).tolist() == greedy_by_full_forward(
            model, ids[mask == 1].tolist(), 12
        )
    assert np.asarray(found.lengths).tolist() == [12, 12, 12]
    assert (
        min(len(set(row)) for row in np.asarray(found.tokens).tolist()) > 2
    )  # no row repeats one token


def test_a_row_stops_at_its_end_and_is_padded(model, prompts):
    free = np.asarray(run(model, prompts, 12).tokens)
    ends = (int(free[0, 3]), int(free[1, 5]))
    found = run(model, prompts, 12, eos_token_id=ends, pad_token_id=50)
    for row in range(3):
        stops = [i for i, token in enumerate(free[row]) if token in ends]
        n = stops[0] + 1 if stops else 12
        assert int(found.lengths[row]) == n
        np.testing.assert_array_equal(found.tokens[row, :n], free[row, :n])
        assert (np.asarray(found.tokens[row, n:]) == 50).all()


def test_a_batch_that_has_ended_is_not_computed_further(model, prompts):
    calls = []

    def counted(ids, mask, cache):
        jax.debug.callback(lambda: calls.append(1))
        return model.next_logits(ids, mask, cache)

    first = int(run(model, prompts, 12).tokens[1, 0])
    one = {name: value[1:2] for name, value in prompts.items()}

    def begin(ids, mask):
        return models.generate(
            counted,
            ids,
            mask,
            model.empty_cache(1, 30),
            max_new_tokens=20,
            eos_token_id=first,
        )

    found = jax.jit(begin)(*one.values())
    jax.effects_barrier()
    assert len(calls) == 1
    assert int(found.lengths[0]) == 1


def test_vmap_over_adapters_and_prompts_equals_the_loop(model, prompts, noisy_copies):
    options = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "key": jax.random.key(5)}
    graphdef, delta, backbone = peft.apply(
        model, peft.lora(rank=4, targets=["q_proj", "v_proj"])
    )
    deltas = noisy_copies(delta, 3, 1.0)

    def one(delta, ids, mask):
        return answer(
            nnx.merge(graphdef, delta, backbone),
            ids,
            mask,
            10,
            eos_token_id=7,
            **options,
        )

    ids, mask = (
        np.stack([prompts[name]] * 3) for name in ("input_ids", "attention_mask")
    )
    together, loop = jax.jit(jax.vmap(one))(deltas, ids, mask), jax.jit(one)
    for client in range(3):
        alone = loop(
            jax.tree.map(lambda x: x[client], deltas),  # noqa: B023
            ids[client],
            mask[client],
        )
        np.testing.assert_array_equal(together.tokens[client], alone.tokens)
        np.testing.assert_array_equal(together.lengths[client], alone.lengths)
    assert (
        len({np.asarray(row).tobytes() for row in together.tokens}) == 3
    )  # the adapters do differ


def test_restricted_logits_equal_those_of_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.generation import logits_process as warpers

    logits = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32) * 3
    logits[0, :5] = logits[0].max() + 1  # ties at the top
    for temperature, top_k, top_p in [
        (0.5, None, None),
        (1.0, 3, None),
        (1.3, None, 0.8),
        (0.9, 7, 0.6),
        (1, 99, 1e-6),
    ]:
        expected = warpers.TemperatureLogitsWarper(float(temperature))(
            None, torch.tensor(logits)
        )
        expected = (
            warpers.TopKLogitsWarper(top_k)(None, expected) if top_k else expected
        )
        expected = (
            warpers.TopPLogitsWarper(top_p)(None, expected) if top_p else expected
        )
        found = np.asarray(restrict(jnp.asarray(logits), temperature, top_k, top_p))
        np.testing.assert_array_equal(
            np.isfinite(found).sum(-1), torch.isfinite(expected).sum(-1).numpy()
        )
        np.testing.assert_allclose(
            np.sort(found, -1), np.sort(expected.numpy(), -1), rtol=1e-5
        )
        np.testing.assert_allclose(
            found[1:], expected.numpy()[1:], rtol=1e-5
        )  # without ties, the same places


def test_samples_follow_the_distribution(model):
    prompts = models.pad_prompts([[5, 6, 7]] * 4000, pad_token_id=0)
    tokens = np.asarray(
        run(model, prompts, 1, temperature=1.5, top_k=4, key=jax.random.key(0)).tokens
    )[:, 0]
    allowed = restrict(jax.jit(model)(prompts["input_ids"][:1])[0, -1], 1.5, 4)
    expected = np.asarray(jax.nn.softmax(allowed))
    frequencies = np.bincount(tokens, minlength=53) / 4000
    assert set(np.flatnonzero(frequencies)) == set(np.flatnonzero(expected))
    assert np.abs(frequencies - expected).max() < 0.04  # five standard errors


def test_what_a_row_draws_depends_on_its_own_key_only(model, prompts):
    keys = jax.random.split(jax.random.key(2), 3)
    together = run(model, prompts, 8, temperature=1.0, key=keys)
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in prompts.items()}
        alone = run(model, one, 8, temperature=1.0, key=keys[row : row + 1])
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
    again = run(model, prompts, 8, temperature=1.0, key=keys)
    np.testing.assert_array_equal(together.tokens, again.tokens)
    other = run(
        model, prompts, 8, temperature=1.0, key=jax.random.split(jax.random.key(3), 3)
    )
    assert (np.asarray(together.tokens) != np.asarray(other.tokens)).any()


def test_the_most_likely_token_alone_is_greedy():
    logits = jax.random.normal(jax.random.key(0), (5, 40))
    for options in ({"top_k": 1}, {"top_p": 1e-9}):
        left = np.isfinite(restrict(logits, 2.0, **options))
        np.testing.assert_array_equal(
            left, np.arange(40) == np.argmax(logits, -1)[:, None]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens >= 1, got max_new_tokens=0"),
        (
            {"max_new_tokens": 14},
            "7 prompt tokens and max_new_tokens=14 need 21 cache slots, got 20",
        ),
        ({"temperature": -1.0}, "temperature >= 0, got temperature=-1.0"),
        ({"temperature": 1.0}, "needs a key"),
        ({"top_k": 5}, "do nothing at temperature=0"),
        (
            {"temperature": 1.0, "key": jax.random.key(0), "top_k": 0},
            "top_k >= 1, got top_k=0",
        ),
        (
            {"temperature": 1.0, "key": jax.random.key(0), "top_p": 1.5},
            "top_p <= 1, got top_p=1.5",
        ),
        (
            {"temperature": 1.0, "key": jax.random.split(jax.random.key(0), 2)},
            "3 keys, one per row",
        ),
        (
            {"temperature": 1.0, "key": jnp.zeros(2, jnp.uint32)},
            "a key of jax.random.key",
        ),
        ({"attention_mask": np.ones((3, 6), np.int32)}, "do not fit each other"),
        ({"attention_mask": np.tri(3, 7, 4, dtype=np.int32)}, "padded on the left"),
    ],
)
def test_arguments_that_make_no_sense(model, prompts, options, message):
    arguments = {
        **prompts,
        "cache": model.empty_cache(3, 20),
        "max_new_tokens": 4,
        **options,
    }
    with pytest.raises(ValueError, match=message):
        models.generate(model.next_logits, **arguments)


def test_prompts_are_padded_on_the_left():
    padded = models.pad_prompts([[1, 2], [3]], pad_token_id=9, length=3)
    assert padded["input_ids"].tolist() == [[9, 1, 2], [9, 9, 3]]
    assert padded["attention_mask"].tolist() == [[0, 1, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        models.pad_prompts([[1], []], pad_token_id=0)
    with pytest.raises(ValueError, match="prompt 0 has 3 tokens; expected 1 to 2"):
        models.pad_prompts([[1, 2, 3]], pad_token_id=0, length=2)


def test_greedy_answers_of_the_real_model_equal_transformers(
    smollm2, smollm2_chat, smollm2_reference
):
    import torch

    n = 32
    rows = [
        smollm2_chat.prompt_ids([{"role": "user", "content": question}])
        for question in QUESTIONS
    ]
    prompts = models.pad_prompts(rows, smollm2_chat.pad_token_id)
    found = run(smollm2, prompts, n, eos_token_id=2, pad_token_id=2)
    with torch.no_grad():
        expected = smollm2_reference.generate(
            torch.tensor(prompts["input_ids"]).long(),
            attention_mask=torch.tensor(prompts["attention_mask"]),
            do_sample=False,
            max_new_tokens=n,
        )[:, prompts["input_ids"].shape[1] :].numpy()
    width = expected.shape[1]  # transformers stops when all rows have ended
    np.testing.assert_array_equal(found.tokens[:, :width], expected)
    assert (np.asarray(found.tokens)[:, width:] == 2).all()
    lengths = np.asarray(found.lengths)
    assert (lengths == n).sum() >= 3  # long answers
    assert lengths.min() < n  # and an early end
    text = smollm2_chat.tokenizer.decode(np.asarray(found.tokens[0]).tolist())
    assert "Paris" in text
    print(f"{int(found.lengths.sum())} tokens equal; {text!r}")
