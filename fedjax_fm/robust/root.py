"""The server's own update, by the clients' local recipe."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.algorithms.lora_rules.factors import as_arrays
from fedjax_fm.engine.billing import unwrapped
from fedjax_fm.engine.data import DeviceData, client_data
from fedjax_fm.robust.fltrust import RootData
from fedjax_fm.types import Algorithm, Exchange, Tree

ROOT = 0x007  # folds the server's key, so that its training has draws of its own


def root_update(
    root: RootData, algorithm: Algorithm, exchange: Exchange, *, server: Any, key: Any
) -> Tree:
    """What a client with the root data would send.

    Args:
      root: the server's data.
      algorithm: the method.
      exchange: of it, whose client trains.
      server: `RobustState`.
      key: the server's in this exchange.

    Returns:
      An upload, f32 leaves.
    """
    own_key = jax.random.fold_in(key, ROOT)
    arrays = {name: jnp.asarray(column) for name, column in root.arrays.items()}
    n = len(next(iter(arrays.values())))
    offsets = jnp.asarray(np.array([0, n], np.int32))
    data = client_data(
        DeviceData(arrays, offsets),
        client=jnp.int32(0),
        place=jnp.int32(0),
        active=jnp.bool_(True),
        round_index=server.round,
        batches=exchange.batches,
        round_key=own_key,
        n_max=n,
    )
    message = unwrapped(exchange.broadcast(server.method))
    state = algorithm.client_init(algorithm.delta(server.method), own_key)
    work = exchange.client(root.backbone, message)
    upload = as_arrays(work(message, state, data, own_key).upload)
    return jax.tree.map(lambda x: x.astype(jnp.float32), upload)
