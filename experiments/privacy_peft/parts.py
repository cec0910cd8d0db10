"""The parts of the last layer that arms train, and what one client uploads of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import peft, study
from fedjax_fm.audit.upload import Sender, upload_of
from fedjax_fm.experiments.privacy_peft.clients import Arrays
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.types import Setting, Tree

FROZEN: tuple[str, ...] = ()  # the head, but in the arms that say so
FIRST_RATE = 1e-3  # of the step on public rows that Fed-SB starts from


def adapted_by(run: study.Run, part: str) -> peft.Adapted:
    """The last layer with what an arm trains of it.

    Args:
      run: of the arm.
      part: a key of the study's `PARTS`.
    """
    method = method_of(run, part)
    return peft.apply(run.data.model, method, jax.random.key(run.seed))


def method_of(run: study.Run, part: str) -> peft.Method:
    """What trains a part; the head is frozen but in "full" and "head".

    Args:
      run: of the arm.
      part: a key of the study's `PARTS`.
    """
    config = run.config
    how: dict[str, Any] = {"modules_to_save": FROZEN}
    low: dict[str, Any] = {"targets": run.data.targets, **how}
    rank = config.rank
    if part == "full":
        return peft.full()
    if part == "head":
        return peft.head()
    if part == "lora":
        return peft.lora(rank, 2.0 * rank, **low)
    if part == "ffa_lora":
        return peft.lora(rank, 2.0 * rank, freeze_a=True, **low)
    if part == "fed_sb":
        updates = run.once("directions", lambda: directions(run))
        return peft.lora_sb(config.core_rank, updates=updates, **low)
    if part == "adapter":
        return peft.houlsby(config.bottleneck, norms=False, **how)
    if part == "bitfit":
        return peft.bitfit(**how)
    return peft.prefix_tuning(config.prompt, **how)


def directions(run: study.Run) -> dict[str, jax.Array]:
    """The first full step on public rows, which gives Fed-SB its factors."""
    data, n = run.data, run.config.rows * run.config.public_clients
    rows = {name: column[:n] for name, column in data.public.items()}

    counts = rows["labels"] != IGNORED
    labels = np.where(counts, rows["labels"], 0)

    def loss(model: Any) -> jax.Array:
        logits = model(rows["hidden"], rows["attention_mask"])
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.where(counts, nats, 0.0).sum() / counts.sum()

    gradients = peft.first_gradients(data.model, loss, targets=data.targets)
    return peft.first_updates(gradients, FIRST_RATE)


def upload(task: ffm.Task, delta: Tree, backbone: Tree, rows: Arrays) -> Tree:
    """What one client sends: the gradient over its rows, as FedAvg's step of rate one.

    Args:
      task: what is learned.
      delta: the trainable tree.
      backbone: the frozen one.
      rows: of the client.
    """
    size = len(rows["labels"])
    method = ffm.fedavg(task, optax.sgd(1.0), local_steps=1, batch_size=size)
    sender = Sender(
        algorithm=method,
        delta=delta,
        backbone=backbone,
        rows=rows,
        setting=Setting(n_clients=1, cohort_size=1),
    )
    return upload_of(sender, None, jax.random.key(0))


def median_norm(run: study.Run, task: ffm.Task, adapted: peft.Adapted) -> float:
    """The median norm of public clients' first uploads, which is the clip norm.

    Args:
      run: of the arm.
      task: what is learned.
      adapted: the model before training.
    """
    config, public = run.config, run.data.public
    clients = {
        name: column.reshape(-1, config.rows, *column.shape[1:])[
            : config.public_clients
        ]
        for name, column in public.items()
    }

    @jax.jit
    def norms(delta: Tree, backbone: Tree, clients: Any) -> jax.Array:
        def norm(rows: Any) -> jax.Array:
            return optax.tree.norm(upload(task, delta, backbone, rows))

        return jax.lax.map(norm, clients)

    found = norms(adapted.delta, adapted.backbone, clients)
    return float(np.median(found))
