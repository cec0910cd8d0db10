"""The weights of FedALA: how much of the shared model a client starts from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.algorithms.local import LocalTraining
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.personal.leaves import Leaves, PersonalPart, put
from fedjax_fm.types import ClientData, Task, Tree

WINDOW = 10  # passes whose losses have to agree before the first learning ends


class WeighedLeaves(NamedTuple):
    """The state of a client of `fedala`.

    Attributes:
      last: {path: leaf} of its last local model, l_k.
      weights: {path: of the leaf's shape}, W_k, in [0, 1].
      rounds: i32[], in which it took part.
    """

    last: Leaves
    weights: Leaves
    rounds: jax.Array


class Weighing(NamedTuple):
    """What `fedala` was given, checked.

    Attributes:
      local: the client's training.
      part: which leaves are weighed.
      rate: of the weights.
      share: of the rows of a batch.
      first_passes: at most, the first time.
      tolerance: of the losses' standard deviation, the first time.
    """

    local: LocalTraining
    part: PersonalPart
    rate: float
    share: float
    first_passes: int
    tolerance: float


class Learning(NamedTuple):
    """What passes from pass to pass.

    Attributes:
      weights: W_k.
      passes: i32[], done.
      losses: f32[WINDOW], of the last passes.
    """

    weights: Leaves
    passes: jax.Array
    losses: jax.Array


class Ends(NamedTuple):
    """Between what a client starts.

    Attributes:
      last: its last local model; of a client without one, the shared.
      shared: the server's.
    """

    last: Leaves
    shared: Leaves

    def start(self, weights: Leaves) -> Leaves:
        """The point that the weights name; with 0 and 1 an end, bit for bit.

        Args:
          weights: W_k.
        """

        def between(a, weight, b):
            return (1 - weight) * a + weight * b

        return jax.tree.map(between, self.last, weights, self.shared)


def ends_of(part: PersonalPart, shared: Tree, own: WeighedLeaves) -> Ends:
    """Between what a client starts.

    Args:
      part: which leaves are weighed.
      shared: the server's delta.
      own: the client's state.
    """
    new = part.own(shared)
    return Ends(last=trees.select(own.rounds > 0, own.last, new), shared=new)


def learn(
    method: Weighing,
    received: Tree,
    own: WeighedLeaves,
    backbone: Tree,
    data: ClientData,
    *,
    key: jax.Array,
) -> Learning:
    """Passes over a share of the client's examples.

    Args:
      method: what `fedala` was given.
      received: the server's delta.
      own: the client's state.
      backbone: what is frozen.
      data: the client's, as the engine gives it.
      key: the client's.
    """
    most = jnp.where(own.rounds == 1, method.first_passes, 1)
    most = jnp.where(own.rounds == 0, 0, most)
    ends = ends_of(method.part, received, own)

    def loss(leaves, backbone, batch, key):
        return method.local.task.loss(put(received, leaves), backbone, batch, key)

    task = Task(loss, method.local.task.weight)

    def goes_on(learning):
        agree = jnp.std(learning.losses) < method.tolerance
        settled = (learning.passes > WINDOW) & agree
        return (learning.passes < most) & ~settled

    def one_pass(learning):
        start = learning.weights
        weights, loss = _pass(method, task, ends, start, backbone, data=data, key=key)
        losses = jnp.roll(learning.losses, 1).at[0].set(loss)
        return Learning(weights=weights, passes=learning.passes + 1, losses=losses)

    nothing_yet = jnp.zeros(WINDOW)
    start = Learning(own.weights, jnp.int32(0), nothing_yet)
    return jax.lax.while_loop(goes_on, one_pass, start)


def _pass(
    method: Weighing,
    task: Task,
    ends: Ends,
    weights: Leaves,
    backbone: Tree,
    *,
    data: ClientData,
    key: jax.Array,
) -> tuple[Leaves, jax.Array]:
    """(weights after one pass, its mean loss f32[])."""
    gap = trees.subtract(ends.shared, ends.last)
    batch_size = method.local.batches.batch_size
    per_epoch = jnp.maximum(-(-data.n_examples // batch_size), 1)
    # The epoch after the local steps' is of another shuffle.
    first = -(-data.n_steps // per_epoch) * per_epoch
    rows_key = stream(key, Stream.BESIDE_STEPS)
    slope_of = jax.grad(masked_loss, argnums=1, has_aux=True)

    def step(j, carry):
        weights, total, count = carry
        batch, mask = data.batch(first + j)
        row_key, loss_key = jax.random.split(jax.random.fold_in(rows_key, j))
        seen = {"batch": batch, "mask": _some(mask, method.share, row_key)}
        start = ends.start(weights)
        slope, sums = slope_of(task, start, backbone, **seen, key=loss_key)

        def moved(weight, g, x):
            return jnp.clip(weight - method.rate * g * x, 0, 1)

        weights = jax.tree.map(moved, weights, slope, gap)
        return weights, total + sums["loss"][0], count + sums["loss"][1]

    n_batches = jnp.where(data.n_steps > 0, per_epoch, 0)
    start = (weights, jnp.float32(0), jnp.float32(0))
    weights, total, count = jax.lax.fori_loop(0, n_batches, step, start)
    return weights, total / jnp.where(count > 0, count, 1)


def _some(mask: jax.Array, share: float, key: jax.Array) -> jax.Array:
    """A share of the rows that are real, rounded up."""
    drawn = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
    places = jnp.argsort(jnp.argsort(drawn))
    wanted = jnp.ceil(share * jnp.sum(mask))
    return mask & (places < wanted)
