"""Products of many clients' adapters: batched, as `vmap` makes them, or grouped.

    python -m fedjax_fm.experiments.bench.grouped

Each of C clients has n rows x of width d and its own factors A: [d, r], B: [r, d]:

    y = x A B,  with gradients for x, A and B.

"batched" is `jax.vmap` over the clients, as rounds compute it. "grouped" lays the rows of
all clients under each other, for `jax.lax.ragged_dot`. Seconds are medians on this machine;
operations are what the compiler counts, here and, where `libtpu` is installed, for a TPU,
on which nothing runs.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import aot
from fedjax_fm.experiments.bench.floor import processor

HEAD = ("clients x rows", "width", "rank", "way", "ms", "GFLOP", "GFLOP on v5e")
REPEATS = 7


class Size(NamedTuple):
    """Sizes of the products."""

    clients: int
    rows: int
    width: int
    rank: int


SIZES = (
    Size(clients=8, rows=256, width=384, rank=8),
    Size(clients=64, rows=32, width=384, rank=8),
    Size(clients=4, rows=512, width=576, rank=16),
    Size(clients=4, rows=512, width=2048, rank=16),
)


def batched(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """[C, n, d] by `vmap` over the clients.

    Args:
      x: f32[C, n, d].
      a: f32[C, d, r].
      b: f32[C, r, d].
    """

    def of_client(x, a, b):
        return (x @ a) @ b

    return jax.vmap(of_client)(x, a, b)


def grouped(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The same by products of groups of rows; arguments as for `batched`."""
    clients, rows, width = x.shape
    sizes = jnp.full(clients, rows, jnp.int32)
    flat = x.reshape(-1, width)
    inner = jax.lax.ragged_dot(flat, a, sizes)
    return jax.lax.ragged_dot(inner, b, sizes).reshape(x.shape)


WAYS: dict[str, Callable] = {"batched": batched, "grouped": grouped}


def gradients(way: Callable, x: jax.Array, a: jax.Array, b: jax.Array) -> Any:
    """Of half the sum of squares, for all operands.

    Args:
      way: of `WAYS`.
      x, a, b: as for `batched`.
    """

    def loss(x, a, b):
        return 0.5 * jnp.sum(way(x, a, b) ** 2)

    return jax.grad(loss, (0, 1, 2))(x, a, b)


def operands(size: Size) -> tuple[np.ndarray, ...]:
    """Random numbers of that size."""
    random = np.random.default_rng(0)
    c, n, d, r = size
    shapes = ((c, n, d), (c, d, r), (c, r, d))
    return tuple(random.normal(size=s).astype(np.float32) / 8 for s in shapes)


def median_seconds(program: Callable, given: tuple[np.ndarray, ...]) -> float:
    """Of one call, compiled before.

    Args:
      program: a jitted function.
      given: its arguments.
    """
    placed = jax.device_put(given)
    jax.block_until_ready(program(*placed))
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(program(*placed))
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def on_tpu(program: Callable, given: tuple[np.ndarray, ...]) -> float | None:
    """Operations of the program as compiled for a v5e chip; None without its compiler.

    Args:
      program: a jitted function.
      given: its arguments.
    """
    try:
        target = aot.topology("v5e:2x2")
    except ModuleNotFoundError:
        return None
    place = jax.sharding.SingleDeviceSharding(target.devices[0])
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in given]
    lowered = program.trace(*shapes).lower(lowering_platforms=("tpu",))
    return _operations(lowered.compile())


def _operations(compiled: Any) -> float:
    found = compiled.cost_analysis()
    return float(found["flops"])


def rows(sizes: tuple[Size, ...] = SIZES) -> Iterator[tuple[str, ...]]:
    """The table's lines, a size and a way each, as they are measured.

    Args:
      sizes: of the products.
    """
    for size in sizes:
        given = operands(size)
        for name, way in WAYS.items():
            program = jax.jit(functools.partial(gradients, way))
            here = _operations(program.lower(*given).compile())
            there = on_tpu(program, given)
            yield (
                f"{size.clients} x {size.rows}",
                str(size.width),
                str(size.rank),
                name,
                f"{1e3 * median_seconds(program, given):.1f}",
                f"{here / 1e9:.2f}",
                "no compiler" if there is None else f"{there / 1e9:.2f}",
            )


def main() -> None:
    """Prints the table."""
    print(f"{processor()}, float32, one device of {jax.local_device_count()}")
    rule = ("---",) * len(HEAD)
    for line in itertools.chain((HEAD, rule), rows()):
        print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
