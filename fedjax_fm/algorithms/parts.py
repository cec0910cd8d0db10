"""Small parts of several methods: a state, a choice of clients, names of keys."""

from collections.abc import Callable
from enum import IntEnum, unique
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm.types import Tree


class DeltaState(NamedTuple):
    """The server state of methods that keep nothing but the trainable tree."""

    delta: Tree


@unique
class Stream(IntEnum):
    """Names of a method's own random numbers; they are part of a run's identity.

    A client's key also names its local steps, 0, 1, ...: what is drawn beside them is
    numbered from the other end (FedKSeed's client has no steps under its key). The
    engine's keys (rounds, purposes, clients) are small numbers, too, and a method's first
    key is that of round 0.
    """

    DRAWN_WIDTH = 0x0D  # FjORD, under a step's key, which is the loss's own
    INNER_STEP = 0x0E  # Per-FedAvg, under a step's key
    SEEDS = 0  # FedKSeed, under a client's key: which directions
    EVALUATIONS = 1  # FedKSeed: dropout and the like, the same in both evaluations
    # FedMD's digest, FedDPA's private adapter, personal models, IFCA's first choice
    BESIDE_STEPS = 2**32 - 1
    UPDATE_NOISE = 2**32 - 2  # DP-FedAvg, under the method's key
    COUNT_NOISE = 2**32 - 3
    WHOLE_PASS = 2**32 - 4  # over all of a client's data, beside its local steps
    LOCAL_NOISE = 2**32 - 5  # SoteriaFL, under a client's key
    SNAPSHOT = 2**32 - 6
    ENCODE = 2**32 - 7  # of the methods that compress in the client, under its key


def stream(key: jax.Array, name: Stream) -> jax.Array:
    """The key of a method's own random numbers.

    Args:
      key: of the client, the step or the method, as `Stream` says for each name.
      name: which random numbers.

    Returns:
      A key.
    """
    return jax.random.fold_in(key, int(name))


def in_f32(tree: Tree) -> Tree:
    """The tree for a server's optimizer, which is given means in f32.

    Moments made of it are f32, too, whatever the trainable tree is kept in.

    Args:
      tree: arrays of floats.
    """
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def in_group(group: int, groups_of: Callable[[Any], jax.Array]) -> Callable:
    """`Exchange.selects` of the clients of one group, each group having its exchange.

    Args:
      group: the number of the group.
      groups_of: `message -> i32[N]`, the group of every client.

    Returns:
      `(message, client, key) -> bool[]`.
    """

    def selects(message, client, key):
        return groups_of(message)[client] == group

    return selects
