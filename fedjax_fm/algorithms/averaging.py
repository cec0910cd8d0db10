"""Averaging of updates, the part that FedAvg and its compressed kin share.

client:  w_k <- start;  local steps;  sends something of start - w_k
server:  w <- server_optimizer(w, the mean of what arrived)
"""

from typing import Any, NamedTuple

import jax
import optax

from fedjax_fm import checks, trees
from fedjax_fm.algorithms.compressed import counts_once
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    Sums,
    local_training,
)
from fedjax_fm.types import Aggregate, ClientData, Setting, Task, Tree


class AveragingState(NamedTuple):
    """Server state.

    Attributes:
      delta: w.
      optimizer: the server optimizer's state.
    """

    delta: Tree
    optimizer: Any


class Averaging(NamedTuple):
    """Local training, weights and the server's step."""

    local: LocalTraining
    optimizer: optax.GradientTransformation
    weighted: bool

    def init(self, delta: Tree, key: jax.Array, setting: Setting) -> AveragingState:
        """`Algorithm.init`."""
        return AveragingState(delta, self.optimizer.init(delta))

    def update(
        self, start: Tree, backbone: Tree, data: ClientData, key: jax.Array
    ) -> tuple[Tree, Sums]:
        """The update start - w_k, and the metrics."""
        trained, metrics = self.local.run(start, backbone, data, key)
        return trees.subtract(start, trained), metrics

    def weight(self, data: ClientData) -> jax.Array:
        """The weight of a client: its examples', or one for each."""
        return self.local.weight(data) if self.weighted else counts_once(data)

    def server(
        self, state: AveragingState, aggregate: Aggregate, key: jax.Array
    ) -> tuple[AveragingState, dict]:
        """`Exchange.server`: the optimizer's step along the mean."""
        return self.stepped(state, aggregate.value), {}

    def stepped(self, state: AveragingState, mean: Tree) -> AveragingState:
        """The state after a step along a mean update."""
        updates, moments = self.optimizer.update(mean, state.optimizer, state.delta)
        return AveragingState(optax.apply_updates(state.delta, updates), moments)


def averaging(
    task: Task,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None,
    *,
    weighted: bool,
    epochs: int | None = None,
    local_steps: int | None = None,
    batch_size: int,
) -> Averaging:
    """Checks what such methods take, and keeps it together.

    Args:
      task: the loss.
      client_optimizer: of optax, or a function of the round that makes one.
      server_optimizer: None means `optax.sgd(1.0)`.
      weighted: whether clients count by their examples.
      epochs: full passes over a client's data; give this or `local_steps`.
      local_steps: batches.
      batch_size: examples a step.

    Raises:
      TypeError, ValueError: one of them is of another kind or makes no sense.
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=epochs,
        local_steps=local_steps,
        batch_size=batch_size,
    )
    checks.server_optimizer("server_optimizer", server_optimizer)
    return Averaging(
        local=local,
        optimizer=server_optimizer or optax.sgd(1.0),
        weighted=checks.flag("weighted", weighted),
    )
