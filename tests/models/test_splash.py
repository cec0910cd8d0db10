"""Attention in blocks of tokens: interpreted here, compiled for TPUs in tests/aot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import MODELS

from fedjax_fm import peft, tasks
from fedjax_fm.models.attention import computed_by, dot_product
from fedjax_fm.models.splash import Texts, splash


def drawn(length, heads=4, kv_heads=2, width=8, rows=2):
    rng = np.random.default_rng(length)

    def one(n):
        return jnp.asarray(rng.normal(size=(rows, length, n, width)), jnp.float32)

    numbers = np.sort(rng.integers(0, 3, size=(rows, length)), axis=1)[:, ::-1]
    return (one(heads), one(kv_heads), one(kv_heads)), jnp.asarray(numbers, jnp.int32)


def by_pairs(parts, numbers, scale=None):
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return dot_product(*parts, mask=jnp.tril(same), scale=scale)


@pytest.mark.parametrize(("length", "scale"), [(5, None), (128, 0.3), (130, None)])
def test_it_is_attention_over_all_pairs(length, scale):
    parts, numbers = drawn(length)
    weights = jnp.cos(jnp.arange(length))[:, None, None]

    def loss(parts, attention):
        return jnp.sum(attention(parts) * weights)

    def in_blocks(parts):
        return splash(*parts, Texts(numbers), scale)

    def of_pairs(parts):
        return by_pairs(parts, numbers, scale)

    np.testing.assert_allclose(in_blocks(parts), of_pairs(parts), atol=2e-5)
    ours, theirs = (jax.grad(loss)(parts, f) for f in (in_blocks, of_pairs))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_the_loss_of_a_llama_and_its_gradients_are_the_same():
    """Of several clients at once, two texts in a row, padding behind them."""
    method = peft.lora(rank=2, alpha=4, targets=r"q_proj|v_proj")
    adapted = peft.apply(MODELS["llama"], method, jax.random.key(0))
    task = tasks.language_modeling(adapted)
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(1, 50, size=(3, 2, 12)), jnp.int32)
    texts = jnp.asarray([1] * 5 + [2] * 5 + [0] * 2, jnp.int32)
    mask = jnp.broadcast_to(texts, ids.shape)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": jnp.where(mask > 0, ids, -100),
    }

    def gradients(task, delta):
        def mean(delta, batch):
            return task.loss(delta, adapted.backbone, batch, None)[0].mean()

        return jax.vmap(jax.value_and_grad(mean), (None, 0))(delta, batch)

    delta = jax.tree.map(lambda x: x + 0.1, adapted.delta)
    ours, theirs = (
        jax.jit(functools.partial(gradients, tasks.attention(task, name)))(delta)
        for name in ("splash", "xla")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5),
        ours,
        theirs,
    )


@pytest.mark.parametrize(
    "kind", ["gpt2", "prefix of a llama"], ids=lambda kind: kind.replace(" ", "-")
)
def test_what_it_cannot_do_is_refused(kind):
    method = peft.prefix_tuning(2) if "prefix" in kind else peft.bitfit()
    model = MODELS["llama" if "llama" in kind else "gpt2"]
    adapted = peft.apply(model, method, jax.random.key(0))
    ids = jnp.ones((1, 6), jnp.int32)
    with computed_by("splash"), pytest.raises(ValueError, match="decoders of Llama's"):
        adapted.model()(ids)


def test_another_word_is_refused():
    adapted = peft.apply(MODELS["llama"], peft.lora(2, targets=["q_proj"]))
    with pytest.raises(ValueError, match="implementation"):
        tasks.attention(tasks.language_modeling(adapted), "flash")
