"""What layers keep changes memory, not results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_fm import models, peft, tasks

LLAMA = models.LlamaConfig(
    vocab_size=32,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
)
ALBERT = models.AlbertConfig(
    vocab_size=32,
    embedding_size=16,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
)


def llama():
    model = models.LlamaForCausalLM(LLAMA, rngs=nnx.Rngs(0))
    adapted = peft.apply(model, peft.lora(2, targets=["q_proj", "v_proj"]))
    ids = jnp.tile(jnp.arange(32), (8, 2))
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "labels": ids}
    return tasks.language_modeling(adapted), adapted, batch


def albert():
    model = models.AlbertForSequenceClassification(ALBERT, 2, rngs=nnx.Rngs(0))
    adapted = peft.apply(model, peft.lora(2, targets=["query", "value"]))
    ids = jnp.tile(jnp.arange(32), (8, 2))
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    return tasks.classification(adapted), adapted, batch | {"label": ids[:, 0] % 2}


def gradient(task, adapted, batch):
    """The compiled gradient of the mean loss."""

    def loss(delta, backbone):
        return jnp.mean(task.loss(delta, backbone, batch, None)[0])

    lowered = jax.jit(jax.grad(loss)).lower(adapted.delta, adapted.backbone)
    return lowered.compile()


@pytest.mark.parametrize("make", [llama, albert])
def test_less_memory_the_same_gradient(make):
    task, adapted, batch = make()
    programs = {
        what: gradient(tasks.remat(task, what), adapted, batch)
        for what in ("none", "dots", "full")
    }
    found = {
        what: program(adapted.delta, adapted.backbone)
        for what, program in programs.items()
    }
    expected = gradient(task, adapted, batch)(adapted.delta, adapted.backbone)
    for what in programs:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-6),
            found[what],
            expected,
        )
    room = {
        what: program.memory_analysis().temp_size_in_bytes
        for what, program in programs.items()
    }
    assert room["full"] < 0.8 * room["dots"]
    assert room["dots"] < 0.8 * room["none"]


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="what='all'"):
        tasks.remat(llama()[0], "all")
