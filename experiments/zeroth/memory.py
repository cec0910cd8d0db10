"""What memory a forward pass and a client at work need, by XLA's own numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fedjax_fm as ffm
from fedjax_fm import study, trees
from fedjax_fm.directions import perturb
from fedjax_fm.engine.billing import unwrapped
from fedjax_fm.types import ClientData, Setting

EPSILON = 1e-3  # of FedKSeed's perturbations


def scratch(f: Callable, *arguments: Any) -> int:
    """Bytes that a compiled function needs beyond its arguments and its result.

    Args:
      f: is compiled, not run.
      *arguments: of the function.

    Raises:
      ValueError: the backend does not tell.
    """
    compiled = jax.jit(f).lower(*arguments).compile()
    found = compiled.memory_analysis()
    if found is None:
        raise ValueError(
            "this backend does not tell what memory a compiled function needs"
        )
    return found.temp_size_in_bytes


def batch_of(run: study.Run) -> dict[str, jax.Array]:
    """One client's first batch."""
    size, first = run.config.batch_size, run.data.train[0]
    return {name: jnp.asarray(rows[:size]) for name, rows in first.items()}


def forward(run: study.Run, perturbed: bool = False) -> float:
    """Scratch of a forward pass, MB.

    Args:
      run: of the arm.
      perturbed: whether weights are perturbed as they are read.
    """
    delta, backbone = run.data.adapted.delta, run.data.adapted.backbone

    def loss(delta, batch, scale):
        delta = perturb(delta, jax.random.key(0), scale) if perturbed else delta
        each, _ = run.data.task.loss(delta, backbone, batch, None)
        return each.mean()

    def megabytes() -> float:
        return scratch(loss, delta, batch_of(run), jnp.float32(EPSILON)) / 1e6

    return run.once(("forward", perturbed), megabytes)


def at_work(run: study.Run, algorithm: ffm.Algorithm) -> float:
    """Scratch of a client's work without a model of its own, MB."""
    own, batch, size = run.data.adapted, batch_of(run), run.config.batch_size
    (exchange,) = algorithm.exchanges
    setting = Setting(n_clients=1, cohort_size=1)
    state = algorithm.init(own.delta, jax.random.key(0), setting)

    def work(message, batch, n_steps):
        zero, real = jnp.int32(0), jnp.ones(size, bool)
        some = ClientData(
            id=zero,
            round=zero,
            n_examples=jnp.int32(size),
            n_steps=n_steps,
            batch=lambda i: (batch, real),
            repeat=zero,
        )
        one = exchange.client(own.backbone, message)
        return one(message, (), some, jax.random.key(1)).upload

    message = unwrapped(exchange.broadcast(state))
    needed = scratch(work, message, batch, jnp.int32(1))
    return (needed - trees.nbytes(own.delta)) / 1e6
