"""The rate of matrix products in one library, as a process of its own.

`python -m fedjax_fm.experiments.bench.rates ENGINE CORES` reads shapes [[m, k, n], ...]
as JSON from its input and prints the FLOP/s of each, the fastest of several repeats:
on one core, or on all of them together (with XLA each core has a product of its own).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence

# Libraries are imported once the process is on its core: they count cores when they
# start their threads.

SECONDS = 0.3  # of measuring a shape
AT_LEAST = 5e7  # FLOP between two readings of the clock

Product = tuple[int, int, int]  # m, k, n of [m, k] @ [k, n]
ONE_DNN = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_custom_call": True,
}


def with_numpy(shape: Product) -> tuple[Callable[[], object], int]:
    """A product in numpy, and how many of it a call makes.

    Args:
      shape: m, k, n.
    """
    import numpy as np

    m, k, n = shape
    left, right = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    out = np.empty((m, n), np.float32)

    def product() -> object:
        return np.matmul(left, right, out=out)

    return product, 1


def with_torch(shape: Product) -> tuple[Callable[[], object], int]:
    """As `with_numpy`, in PyTorch (oneDNN or MKL).

    Args:
      shape: m, k, n.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    m, k, n = shape
    left, right = torch.ones(m, k), torch.ones(k, n)
    out = torch.empty(m, n)

    def product() -> object:
        return torch.matmul(left, right, out=out)

    return product, 1


def with_xla(
    shape: Product, options: dict[str, bool] | None = None
) -> tuple[Callable[[], object], int]:
    """As `with_numpy`, in XLA: products in a row on each device, as rounds have them.

    They are one program, so that a small product does not pay for its dispatch.

    Args:
      shape: m, k, n.
      options: of the compiler.
    """
    import jax
    import jax.numpy as jnp

    m, k, n = shape
    in_a_row = max(1, int(AT_LEAST / (2 * m * k * n)))

    def several(lefts: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.map(lambda left: left @ right, lefts)

    multiply = jax.jit(several, compiler_options=options)
    lefts, right = jnp.ones((in_a_row, m, k)), jnp.ones((k, n))
    pairs = [jax.device_put((lefts, right), device) for device in jax.devices()]

    def products() -> object:
        return jax.block_until_ready([multiply(*pair) for pair in pairs])

    return products, in_a_row * len(pairs)


def with_one_dnn(shape: Product) -> tuple[Callable[[], object], int]:
    """As `with_xla`, its products through oneDNN.

    Args:
      shape: m, k, n.
    """
    return with_xla(shape, ONE_DNN)


ENGINES = {
    "XLA": with_xla,
    "XLA with oneDNN": with_one_dnn,
    "PyTorch": with_torch,
    "numpy": with_numpy,
}


def rate(engine: str, shape: Product) -> float:
    """FLOP/s of the fastest repeat.

    Args:
      engine: a name in `ENGINES`.
      shape: m, k, n.
    """
    call, products = ENGINES[engine](shape)
    flop = 2.0 * shape[0] * shape[1] * shape[2] * products
    calls = max(1, int(AT_LEAST / flop))
    call()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter() - started) / calls
        best = min(best, seconds)
    return flop / best


def main(words: Sequence[str]) -> None:
    """Prints the rates of the shapes on standard input.

    Args:
      words: the engine, and "1" for one core or "all".
    """
    engine, cores = words
    if cores == "1":
        first = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {first})
    if engine.startswith("XLA"):
        from fedjax_fm.cpu_devices import use_cpu_cores_as_devices

        use_cpu_cores_as_devices()
    shapes = [tuple(shape) for shape in json.load(sys.stdin)]
    print(json.dumps([rate(engine, shape) for shape in shapes]))


if __name__ == "__main__":
    main(sys.argv[1:])
