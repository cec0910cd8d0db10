"""Which devices carry the clients."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from fedjax_fm.axes import CLIENTS, MODEL, over_model
from fedjax_fm.cpu_devices import forget_the_variable, use_cpu_cores_as_devices
from fedjax_fm.engine.target import Target, this_machine
from fedjax_fm.types import Tree

__all__ = [
    "CLIENTS",
    "MODEL",
    "by_each_device",
    "client_mesh",
    "compiler_options",
    "over_model",
    "shared_by_cores",
    "use_cpu_cores_as_devices",
]

forget_the_variable()  # JAX is imported: it has read it

ALIGNMENT = 64  # bytes


def client_mesh(
    n_devices: int | None = None, model: int = 1, target: Target | None = None
) -> Mesh:
    """A mesh with the axes `clients` and `model`.

    Args:
      n_devices: how many of the target's; default all, which JAX then orders by their
        links. Of fewer the first ones are taken, as they come.
      model: size of the axis `model`, over which backbones are split.
      target: whose devices; None: this machine's.

    Raises:
      ValueError: there are fewer devices, or `model` does not divide them.

    Example:
      >>> dict(client_mesh(2).shape)
      {'clients': 2, 'model': 1}
    """
    target = this_machine() if target is None else target
    available = target.devices
    n_devices = len(available) if n_devices is None else n_devices
    if not 1 <= n_devices <= len(available):
        raise ValueError(
            f"expected 1 <= devices <= {len(available)}, the devices of "
            f"{target.name}, got {n_devices}"
        )
    if model < 1 or n_devices % model:
        raise ValueError(
            f"expected model_parallel to divide the {n_devices} devices, got {model}"
        )
    shape, types = (n_devices // model, model), (AxisType.Auto, AxisType.Auto)
    if n_devices == len(available):
        return jax.make_mesh(shape, (CLIENTS, MODEL), types, devices=available)
    grid = np.array(available[:n_devices]).reshape(shape)
    return Mesh(grid, (CLIENTS, MODEL), axis_types=types)


def by_each_device(function: Callable, mesh: Mesh, axes: set[str]) -> Callable:
    """The function as every device along some axes computes it, all of them the same.

    A kernel for TPUs must not be split, and XLA splits what it may: where it has a say
    over an axis of several devices, such a kernel is refused.

    Args:
      function: of trees of arrays, to trees of arrays; keys travel as key data.
      mesh: of the run.
      axes: names of the mesh's axes that are not manual yet.

    Returns:
      The function, for operands that these devices hold whole.
    """
    if math.prod(mesh.shape[axis] for axis in axes) == 1:
        return function
    # Inside of a manual region the mesh is that of the region.
    inside = bool(jax.sharding.get_abstract_mesh().manual_axes)
    return jax.shard_map(
        function,
        mesh=None if inside else mesh,
        in_specs=P(),
        out_specs=P(),
        axis_names=axes,
        check_vma=False,
    )


def shared_by_cores(tree: Tree) -> Tree:
    """The tree in buffers that all CPU devices of this process can read.

    A copy of it "on every device" is then one copy: jax takes host memory as it is where
    that is aligned. Arrays of the caller's are copied, as they may be written to later.

    Args:
      tree: arrays of jax or numpy.
    """

    def shared(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            readable = (
                not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
                and leaf.is_fully_replicated
            )
            return np.asarray(leaf) if readable else leaf  # a view of its own buffer
        array = np.asarray(leaf)
        aligned = _aligned(array.shape, array.dtype)
        np.copyto(aligned, array)
        return aligned

    return jax.tree.map(shared, tree)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that begins where XLA's do."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + n_bytes].view(dtype).reshape(shape)


@functools.cache
def compiler_options(platform: str) -> dict[str, Any]:
    """XLA's options for whole rounds.

    On CPU, vectors as wide as the processor has them (XLA prefers half of AVX-512's):
    sums and updates of whole models ran up to 1.7 times faster. A compiler that does
    not know the option goes without.

    Args:
      platform: of the devices.
    """
    wide = {"xla_cpu_prefer_vector_width": 512}
    if platform != "cpu":
        return {}
    try:
        program = jax.jit(lambda x: x, compiler_options=wide)
        program.lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return wide
