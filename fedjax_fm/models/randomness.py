"""How a model's `key` reaches the layers that draw from it (dropout).

It is in no layer's signature and in no state:

    class Model(nnx.Module):
        def __call__(self, input_ids, attention_mask=None, key=None):
            with randomness(key):
                ...

The key is known while the function is traced, so open the context inside of `jit`,
never around a jitted function: that would keep the key of its first call. Without a key
everything is deterministic.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

_current: ContextVar[jax.Array | None] = ContextVar(
    "fedjax_fm_randomness", default=None
)


@contextlib.contextmanager
def randomness(key: jax.Array | None) -> Iterator[None]:
    """Lets layers draw from a key.

    Args:
      key: of `jax.random`; None leaves things as they are.

    Example:
      >>> with randomness(jax.random.key(0)):
      ...     dropped = dropout(jnp.ones(100), rate=0.5, place=0)
      >>> sorted(set(dropped.tolist()))
      [0.0, 2.0]
    """
    if key is None:
        yield
        return
    token = _current.set(key)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def in_layer(number: jax.Array | int) -> Iterator[None]:
    """Folds a layer's number into the key.

    Layers of one stack run the same code and must not draw the same.

    Args:
      number: of the layer, i32[].
    """
    with randomness(key_for(number)):
        yield


def key_for(number: jax.Array | int) -> jax.Array | None:
    """The key of one place in the model, None where nothing is to be drawn.

    Args:
      number: of the place, i32[].
    """
    key = _current.get()
    return None if key is None else jax.random.fold_in(key, number)


def dropout(x: jax.Array, rate: float, place: int) -> jax.Array:
    """Zeroes entries at random and scales the others by 1 / (1 - rate).

    Args:
      x: [...].
      rate: share of entries that are zeroed.
      place: number of the place in the layer, which is folded into the key.

    Returns:
      [...] in x's dtype; x itself without a key or at rate 0.

    References:
      Srivastava et al., 2014, JMLR 15.
    """
    key = key_for(place) if rate > 0 else None
    if key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    scaled = jnp.where(keep, x / (1 - rate), 0)
    return scaled.astype(x.dtype)
