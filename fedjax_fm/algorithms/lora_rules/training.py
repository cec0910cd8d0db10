"""Local training of low-rank factors, at each client's rank.

A client uploads what it changed. The server adds that to the rows that the client
started from, which it knows: a lossy channel acts on small numbers, and rows beyond the
rank stay zero.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import trees
from fedjax_fm.algorithms.local import (
    ClientOptimizer,
    LocalTraining,
    Sums,
    local_training,
)
from fedjax_fm.algorithms.lora_rules.factors import (
    PAIRS,
    Factors,
    Layout,
    as_arrays,
    cut_like,
    filled,
    largest_height,
)
from fedjax_fm.types import Batches, ClientData, ClientOutput, Setting, Task, Tree

Ranks = Sequence[int] | np.ndarray | None


class ClientFactors(NamedTuple):
    """What one client is sent.

    `trained` and `fixed` are billed, unless they are `Unbilled`.

    Attributes:
      trained: `Factors` that it trains, cut to its rank.
      fixed: {layer: Pair}, factors that it needs and does not train.
      to_fetch: stands for the fields that are `Unbilled`, on the bill only: the parts of
        them that this client does not have yet.
    """

    trained: Any
    fixed: Any = ()
    to_fetch: Any = ()


class Trained(NamedTuple):
    """What local training leaves behind."""

    start: Factors  # arrays, zero beyond the rank
    end: Factors
    change: Factors  # end - start, cut to the client's rank
    weight: jax.Array  # f32[]
    metrics: Sums

    def output(self, upload: Tree, state: Any) -> ClientOutput:
        """What the client leaves behind.

        Args:
          upload: `change` or a part of it.
          state: the client's next state.

        Returns:
          The output, with this weight and these metrics.
        """
        return ClientOutput(
            upload=upload, weight=self.weight, state=state, metrics=self.metrics
        )


class FactorTraining(NamedTuple):
    """How clients train factors.

    Attributes:
      local: loss, optimizer and batches.
      ranks: i32[N], the rank of every client; None: all have the delta's.
      layout: which leaves are factors.
    """

    local: LocalTraining
    ranks: np.ndarray | None
    layout: Layout

    def rows(self, client: jax.Array) -> jax.Array | None:
        """The rows that a client has of every factor.

        Args:
          client: i32[], its number.

        Returns:
          i32[]; None where all clients have all rows.
        """
        if self.ranks is None:
            return None
        return jnp.asarray(self.ranks)[client] ** self.layout.power

    def height(self, factors: Factors, client: jax.Array) -> jax.Array:
        """The rows that a client has of the largest factor.

        Args:
          factors: of the server, arrays.
          client: i32[], its number.

        Returns:
          i32[].
        """
        rows = self.rows(client)
        return jnp.int32(largest_height(factors)) if rows is None else rows

    def missing(
        self, factors: Factors, client: jax.Array, is_known: jax.Array
    ) -> jax.Array:
        """The rows of a fixed factor that a client has to fetch.

        Args:
          factors: of the server, arrays.
          client: i32[], its number.
          is_known: bool[], whether it holds the present factor.

        Returns:
          i32[]: none, or all of its rank.
        """
        return jnp.where(is_known, 0, self.height(factors, client))

    def check_ranks(self, delta: Tree, setting: Setting) -> None:
        """Refuses ranks that do not fit.

        Args:
          delta: as given to `init`.
          setting: says how many clients there are.

        Raises:
          ValueError: the delta has no factors, a rank is larger than that of the delta,
            or there are fewer ranks than clients.
        """
        height = largest_height(self.layout.split(delta))
        largest = round(height ** (1 / self.layout.power))
        if self.ranks is None:
            return
        if self.ranks.max() > largest:
            raise ValueError(
                f"a client has rank {self.ranks.max()}, but the largest pair of "
                f"the delta has rank {largest}"
            )
        if len(self.ranks) < setting.n_clients:
            raise ValueError(
                f"expected a rank for each of {setting.n_clients} clients, "
                f"got {len(self.ranks)}"
            )

    def run(
        self,
        mine: ClientFactors,
        backbone: Tree,
        data: ClientData,
        key: jax.Array,
        *,
        penalty: Callable[[Factors], jax.Array] | None = None,
        gradient_of: Callable[[Task, ClientData], Callable] | None = None,
    ) -> Trained:
        """Local steps on `mine.trained`.

        Rows beyond the rank are cut in the forward pass, so that they have no gradient.

        Args:
          mine: what the client was sent.
          backbone: what is frozen.
          data: the client's.
          key: the client's.
          penalty: `factors -> f32[]`, added to the loss.
          gradient_of: `(task, data) -> gradient` of `local.walk`, in the place of the
            mean loss's.

        Returns:
          The factors before and after, and what `ClientOutput` takes.
        """

        def within_rank(factors: Factors) -> Factors:
            return as_arrays(cut_like(factors, mine.trained))

        def loss(factors, backbone, batch, key):
            whole = filled(within_rank(factors), mine.fixed)
            return self.local.task.loss(self.layout.join(whole), backbone, batch, key)

        def on_rank(f):
            return None if f is None else lambda factors: f(within_rank(factors))

        local = self.local._replace(task=Task(loss, self.local.task.weight))
        start = as_arrays(mine.trained)
        changes: dict[str, Any] = {"penalty": on_rank(penalty)}
        if gradient_of is not None:
            changes["gradient"] = gradient_of(local.task, data)
        end, metrics = local.run(start, backbone, data, key, **changes)
        end = within_rank(end)
        change = cut_like(trees.subtract(end, start), mine.trained)
        return Trained(
            start=start,
            end=end,
            change=change,
            weight=local.weight(data),
            metrics=metrics,
        )


def factor_training(
    task: Task,
    client_optimizer: ClientOptimizer,
    batches: Batches,
    ranks: Ranks,
    *,
    layout: Layout = PAIRS,
) -> FactorTraining:
    """Checks what every rule takes, and keeps it together.

    Args:
      task: the loss.
      client_optimizer: of optax, or a function of the round that makes one.
      batches: how a client walks its data.
      ranks: i32[N], the rank of every client; None: all have the delta's.
      layout: which leaves are factors.

    Returns:
      What the rule's client calls.

    Raises:
      TypeError, ValueError: one of them is of another kind or makes no sense.
    """
    local = local_training(
        task,
        client_optimizer,
        epochs=batches.epochs,
        local_steps=batches.steps,
        batch_size=batches.batch_size,
    )
    return FactorTraining(local, checked_ranks(ranks), layout)


def checked_ranks(ranks: Ranks, name: str = "ranks") -> np.ndarray | None:
    """One whole number a client, as i32[N].

    Args:
      ranks: of the clients; None: all have the delta's.
      name: what the caller calls them, for the message.

    Raises:
      ValueError: they are something else.
    """
    if ranks is None:
        return None
    try:
        checked = np.asarray(ranks)
    except ValueError:  # lists of several lengths
        checked = np.zeros(())
    most = np.iinfo(np.int32).max
    is_list = checked.ndim == 1 and len(checked) > 0
    is_whole = is_list and np.issubdtype(checked.dtype, np.integer)
    if not is_whole or np.any((checked < 1) | (checked > most)):
        raise ValueError(
            f"expected {name} to be one whole number >= 1 a client, got {name}={ranks}"
        )
    return checked.astype(np.int32)


def after_training(start: Factors, change: Factors) -> Factors:
    """A client's factors as the server knows them, start + change.

    Args:
      start: of the server, arrays.
      change: as decoded, cut to the client's rank.

    Returns:
      Factors cut as the change is.
    """
    end = trees.add(start, as_arrays(change))
    return cut_like(end, change)


def no_round_yet(delta: Tree, key: jax.Array) -> jax.Array:
    """i32[]: the state of a client that never took part, where it is its last round."""
    return jnp.int32(-1)
