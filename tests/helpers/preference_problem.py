"""A tiny Llama with an adapter that does something, pairs of answers, and prompts."""

import jax
import numpy as np
from flax import nnx
from tiny_decoders import CONTEXT, LLAMA, VOCABULARY

from fedjax_fm import peft, preferences

PAD, END = 0, 2


def moved(delta, scale=0.2, seed=5):
    """A delta that differs from the one before training."""
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    return jax.tree.map(
        lambda x: x + scale * jax.random.normal(next(keys), x.shape), delta
    )


def adapted_llama(scored=False):
    """The tiny Llama with low-rank factors; with a score if it is asked for."""
    model = preferences.with_score(LLAMA, jax.random.key(3)) if scored else LLAMA
    return peft.apply(model, peft.lora(2, targets=["q_proj", "v_proj", "down_proj"]))


def triples(n=4, seed=0):
    """Token ids of n prompts, and of two different answers to each, ragged."""
    rng = np.random.default_rng(seed)

    def row(least, most):
        length = int(rng.integers(least, most))
        return rng.integers(3, VOCABULARY, length).tolist()

    return (
        [row(2, 5) for _ in range(n)],
        [row(1, 5) for _ in range(n)],
        [row(2, 7) for _ in range(n)],
    )


def pairs(n=4, seed=0):
    """The columns of n pairs."""
    return preferences.encode_pairs(
        *triples(n, seed), pad_token_id=PAD, eos_token_id=END
    )


def prompts(n=3, seed=1):
    """The columns of n prompts of different lengths, with answers to be met."""
    questions, answers, _ = triples(n, seed)
    return preferences.encode_questions(
        questions, answers, pad_token_id=PAD, eos_token_id=END
    )


@nnx.jit
def _logits(model, ids):
    return model(ids)


def plain_log_probs(model, ids, n_prompt, temperature=1.0):
    """log p of each token behind the prompt, in f64, without a cache."""
    row = np.zeros((1, CONTEXT), np.int32)
    row[0, : len(ids)] = ids
    logits = np.asarray(_logits(model, row), np.float64)[0] / temperature
    found = []
    for place in range(n_prompt, len(ids)):
        before = logits[place - 1]  # no token sees those behind it
        total = before.max() + np.log(np.exp(before - before.max()).sum())
        found.append(before[ids[place]] - total)
    return np.array(found)


def merged(adapted, delta):
    """The model with this delta."""
    return nnx.merge(adapted.graphdef, delta, adapted.backbone)
