"""Sentences of the server and of clients, and what the teacher says of them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedjax_fm import models, study, systems, trees
from fedjax_fm.experiments.shared.features import features, preparation, scale_of
from fedjax_fm.experiments.shared.sentences import (
    Arrays,
    deal,
    of_split,
    sentences,
)
from fedjax_fm.study.judged import joined

TUNING_SHARE = 0.4  # of the documents


class Data(NamedTuple):
    """Sentences with true labels, and the teacher's logits of each.

    Attributes:
      clients: {"ids", "mask", "label", "said" f32[n, 2]} of each.
      server: the same, of the labelled sentences.
      test: the same, of other documents.
      teacher_bytes: of the encoder and its head.
      labelling: what clients do who label their sentences by the teacher.
    """

    clients: list[Arrays]
    server: Arrays
    test: Arrays
    teacher_bytes: int
    labelling: systems.Preparation = systems.Preparation()


@functools.cache
def _encoder(name: str) -> Any:
    return models.from_pretrained(name, num_labels=2, pooling="mean")


def data(config: Any, seed: int, split: str) -> Data:
    """Draws sentences, and has the teacher label them."""
    found = sentences(config.model, config.max_length)
    dealt = deal(
        found,
        of_split(found, split, TUNING_SHARE),
        seed,
        train=config.train,
        test=config.test,
        per_domain=config.per_domain + config.server,
    )
    places = np.arange(len(dealt)) % (config.per_domain + config.server)
    rows = [found.take(one.train) for one in dealt]
    at_server = np.flatnonzero(places < config.server)
    clients = [rows[k] for k in np.flatnonzero(places >= config.server)]
    server = joined([rows[k] for k in at_server])
    test = joined([found.take(one.test) for one in dealt])
    encoder = _encoder(config.model)
    read = functools.partial(features, encoder)
    labelled = read(server)
    teach = head(config, labelled)

    def told(part: Arrays) -> Arrays:
        said = teach(read(part)["x"])
        buckets = (part["input_ids"] % config.buckets).astype(np.int32)
        return {
            "ids": buckets,
            "mask": part["attention_mask"],
            "label": part["label"],
            "said": said,
        }

    return Data(
        clients=[told(one) for one in clients],
        server=told(server),
        test=told(test),
        # With its own head, which is as large as that of `head`, folded into one layer.
        teacher_bytes=trees.nbytes(nnx.state(encoder, nnx.Param)),
        labelling=preparation(encoder, clients),
    )


def head(config: Any, labelled: Arrays) -> Any:
    """A linear head on standardised features, trained on all labelled sentences.

    Args:
      config: of the study.
      labelled: {"x", "label"} of the server.

    Returns:
      `f32[n, d] -> f32[n, 2]`, logits.
    """
    mean, scale = scale_of(labelled["x"])
    x, label = (labelled["x"] - mean) / scale, labelled["label"]
    adam = optax.adam(config.teacher_rate)
    weights = jnp.zeros((x.shape[1] + 1, 2))

    def logits(weights: jax.Array, x: jax.Array) -> jax.Array:
        return x @ weights[:-1] + weights[-1:]

    def loss(weights: jax.Array) -> jax.Array:
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits(weights, x), label
        )
        return each.mean()

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        updates, state = adam.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    begun = (weights, adam.init(weights))
    (weights, _), _ = jax.lax.scan(step, begun, length=config.teacher_steps)

    def said(x: np.ndarray) -> np.ndarray:
        return np.asarray(logits(weights, (x - mean) / scale), np.float32)

    return said


def of_teacher(run: study.Run) -> dict[str, float]:
    """The teacher's own accuracy; it is trained where its labels are."""
    test = run.data.test
    return {"accuracy": float((test["said"].argmax(axis=1) == test["label"]).mean())}
