"""Emoji as a frozen start of DINOv2 reads them, and the layers that teach and learn.

rows --+-- a fixed quarter of the emoji, for tuning (no seed of a study sees them)
       +-- the others, dealt anew for every seed --+-- the teacher's pictures
                                                   +-- clients' pictures
                                                   +-- (test: other emoji)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import tasks
from fedjax_fm.experiments.gate.tasks import DINOV2, KINDS, read
from fedjax_fm.experiments.gate.training import fixed_quarter
from fedjax_fm.experiments.shared.tail import batches
from fedjax_fm.models.stacked import scan_layers

Arrays = dict[str, np.ndarray]
TASK = "emoji"  # it passed the gate: LoRA brings five points


def some_layers(model: Any, numbers: list[int]) -> Any:
    """Some of an encoder's stacked layers, copied.

    Args:
      model: a `Dinov2Model`.
      numbers: of the layers.
    """
    graphdef, state = nnx.split(model.encoder.layer)
    chosen = jnp.asarray(numbers)
    layers = nnx.merge(graphdef, jax.tree.map(lambda x: x[chosen], state))
    layers.stacked_layers = len(numbers)
    return layers


class Part(nnx.Module):
    """Some layers, the norm and the head: what teaches, or what learns.

    `part(hidden f32[B, T, d]) -> logits f32[B, K]`.

    Args:
      whole: the classifier that it is taken from.
      numbers: of its layers.
    """

    def __init__(self, whole: Any, numbers: list[int]):
        self.layer = some_layers(whole.dinov2, numbers)
        self.layernorm = nnx.clone(whole.dinov2.layernorm)
        self.classifier = nnx.clone(whole.classifier)

    def outputs(self, hidden: jax.Array) -> tasks.Outputs:
        """Logits, and the hidden states after every layer.

        Args:
          hidden: f32[B, T, d], what the first layer reads.
        """

        def step(layer: Any, carry: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
            after = layer(carry)
            return after, after

        last, each = scan_layers(self.layer, step, hidden)
        states = self.layernorm(last)
        read = jnp.concatenate([states[:, 0], states[:, 1:].mean(axis=1)], axis=-1)
        return tasks.Outputs(self.classifier(read), tuple(each))

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Logits f32[B, K]."""
        return self.outputs(hidden).logits


class Pictures(NamedTuple):
    """One seed's pictures and layers.

    Arrays hold `shallow`, what the student's first layer reads, `deep`, what the
    teacher's does, and `label`.
    """

    teacher: Part  # before it is tuned
    student: Part
    taught: Arrays  # labelled pictures of the teacher
    clients: list[Arrays]
    test: Arrays


def deal(
    seed: int,
    split: str,
    *,
    taught: int,
    clients: int,
    pictures: int,
    test: int,
    teacher_layers: int,
    student_layers: int,
    model: str = DINOV2,
) -> Pictures:
    """Deals a split's emoji, and computes the layers that are frozen once.

    Args:
      seed: of the dealing and the heads.
      split: "tuning" or "final".
      taught: pictures that the teacher is tuned on.
      clients: how many.
      pictures: of a client.
      test: pictures that are scored.
      teacher_layers: last layers of the model, which the teacher is.
      student_layers: of the student, evenly taken from the model.
      model: a DINOv2.
    """
    rows = read(TASK)
    tuning, own = fixed_quarter(rows.train)
    chosen, judged = own, rows.test
    if split == "tuning":
        chosen, judged = tuning, rows.validation
    chosen = np.random.default_rng(seed).permutation(chosen)
    wanted = taught + clients * pictures
    if len(chosen) < wanted:
        raise ValueError(f"{split} has {len(chosen)} pictures, expected {wanted}")
    whole: Any = KINDS["image"].whole(model, rows.classes, seed)
    n = whole.config.num_hidden_layers

    def seen(some: np.ndarray) -> Arrays:
        arrays = KINDS["image"].encode(rows.table.select(some), model, 0)
        found = hidden_states(whole.dinov2, arrays["pixel_values"], n - teacher_layers)
        return {**found, "label": arrays["label"]}

    parts = np.split(chosen[taught:wanted], clients)
    evenly = np.linspace(0, n - 1, student_layers).round().astype(int)
    shown = np.random.default_rng(0).permutation(judged)[:test]
    return Pictures(
        teacher=Part(whole, [*range(n - teacher_layers, n)]),
        student=Part(whole, evenly.tolist()),
        taught=seen(chosen[:taught]),
        clients=[seen(part) for part in parts],
        test=seen(shown),
    )


def hidden_states(model: Any, pixels: np.ndarray, n_layers: int) -> Arrays:
    """What the student's and the teacher's first layers read.

    Args:
      model: a `Dinov2Model`.
      pixels: f32[n, channels, side, side].
      n_layers: layers before the teacher's.

    Returns:
      {"shallow", "deep"}: f32[n, T, d].
    """
    first = some_layers(model, [*range(n_layers)])
    parts, state = nnx.split((model.embeddings, first))

    @jax.jit
    def run(state: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        embeddings, layers = nnx.merge(parts, state)
        shallow = embeddings(batch)
        deep, _ = scan_layers(layers, lambda layer, x, _: (layer(x), None), shallow)
        return shallow, deep

    found = [run(state, pixels[rows]) for rows in batches(len(pixels), 32)]
    shallow, deep = (np.concatenate(x)[: len(pixels)] for x in zip(*found, strict=True))
    return {"shallow": shallow, "deep": deep}
