"""A tiny GPT-2 and a tiny Llama whose next tokens differ clearly."""

import jax
from flax import nnx

from fedjax_fm import models

VOCABULARY, CONTEXT = 50, 24


def drawn(model, seed=0):
    """The model with weights that are far from zero, so that tokens differ."""
    graphdef, state = nnx.split(model)
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    wider = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), state
    )
    return nnx.merge(graphdef, wider)


def gpt2():
    config = models.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2
    )
    return drawn(models.GPT2LMHeadModel(config, nnx.Rngs(0)))


def llama():
    config = models.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
    )
    return drawn(models.LlamaForCausalLM(config, nnx.Rngs(0)))


MODELS = {"gpt2": gpt2(), "llama": llama()}
LLAMA = MODELS["llama"]
