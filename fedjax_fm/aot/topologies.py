"""Machines that are not here, for which rounds can be compiled.

The compilers are those that would run there: libtpu compiles for TPUs, the CUDA plugin
for GPUs, and neither needs a device. On a machine without accelerators set
`JAX_PLATFORMS=cpu` before JAX is imported, or JAX looks for the devices themselves.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from jax.experimental import topologies

from fedjax_fm.engine.target import Target
from fedjax_fm.spelling import nearest

GIB = 2**30
# What libtpu asks a TPU's machine for, where there is none; and a second process may
# load it, too.
_NO_TPU_HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Kind(NamedTuple):
    """A kind of accelerator.

    Attributes:
      platform: "tpu" or "gpu".
      memory: bytes that a program may use on one device: of TPUs the figure at which
        libtpu 0.0.42.1 refuses a program, of GPUs that of the data sheet.
      example: a topology of it.
      name: of the kind in libtpu, or of the card.
      settings: more for libtpu; of a GPU what its compiler has to know, XLA's
        GpuTargetConfigProto as text.
    """

    platform: str
    memory: int
    example: str
    name: str
    settings: Any


def _gpu_settings(
    *, cores: int, major: int, l2: int, shared: int, bandwidth: int, clock: float
) -> str:
    """A card for XLA.

    Args:
      cores: streaming multiprocessors.
      major: of the compute capability.
      l2: bytes of the cache.
      shared: bytes of shared memory of a multiprocessor.
      bandwidth: bytes a second of its memory.
      clock: GHz.
    """
    return f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
        shared_memory_per_block: 49152 shared_memory_per_core: {shared}
        shared_memory_per_block_optin: {shared - 1024} threads_per_core_limit: 2048
        core_count: {cores} fpus_per_core: {128 if major >= 9 else 64}
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
        device_memory_size: {80 * 10**9} cuda_compute_capability {{ major: {major} }}
        registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
        runtime_version: {{ major: 12 minor: 8 }} platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}"""


_H100 = _gpu_settings(
    cores=132,
    major=9,
    l2=50 << 20,
    shared=228 << 10,
    bandwidth=3_352_320_000_000,
    clock=1.98,
)
_A100 = _gpu_settings(
    cores=108,
    major=8,
    l2=40 << 20,
    shared=164 << 10,
    bandwidth=2_039_000_000_000,
    clock=1.41,
)


def _tpu(name: str, gib: float, example: str, chip: str | None = None) -> Kind:
    """A kind of TPU; `chip` says that both cores of a chip are one device."""
    return Kind(
        platform="tpu",
        memory=int(gib * GIB),
        example=example,
        name=name,
        settings={} if chip is None else {"chip_config_name": chip},
    )


def _gpu(name: str, example: str, settings: str) -> Kind:
    """A card with 80 GB."""
    return Kind(
        platform="gpu",
        memory=80 * 10**9,
        example=example,
        name=name,
        settings=settings,
    )


KINDS = {
    "v4": _tpu("v4", 30.75, "v4:2x2x1", "megacore"),
    "v5e": _tpu("v5e", 15.75, "v5e:2x4"),
    "v5p": _tpu("v5p", 95.74, "v5p:2x2x2", "megachip_tccontrol"),
    "v6e": _tpu("v6e", 31.25, "v6e:4x8", "megachip_tccontrol"),
    "v7x": _tpu("tpu7x", 94.75, "v7x:2x2x2"),
    "h100": _gpu("NVIDIA H100 80GB HBM3", "h100:8", _H100),
    "a100": _gpu("NVIDIA A100-SXM4-80GB", "a100:8", _A100),
}


def topology(name: str) -> Target:
    """Machines by name, for `Simulator(..., target=...)`.

    Args:
      name: a kind and its shape: of TPUs the chips along each link, "v5e:16x16",
        "v4:4x4x4"; of GPUs the cards of a node, "h100:8", or nodes and cards, "h100:4x8".

    Returns:
      A target that rounds can be compiled for.

    Raises:
      ValueError: no such kind, or no such shape of it.
      ModuleNotFoundError: its compiler is not installed.

    Example:
      >>> topology("v5e:2x4").memory / 2**30  # doctest: +SKIP
      15.75
    """
    kind, sizes = _parsed(name)
    found = KINDS[kind]
    make = _tpus if found.platform == "tpu" else _gpus
    devices = tuple(make(found, sizes))
    return Target(
        name=name,
        devices=devices,
        platform=found.platform,
        memory=found.memory,
        is_here=False,
    )


def _parsed(name: str) -> tuple[str, tuple[int, ...]]:
    """The kind of a topology and its sizes."""
    kind, _, shape = name.partition(":")
    if kind not in KINDS:
        examples = ", ".join(kind.example for kind in KINDS.values())
        raise ValueError(
            f"{nearest(kind, KINDS, 'kind of machine')}. Topologies are named like "
            f"{examples}"
        )
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise ValueError(
            f"expected a topology like {KINDS[kind].example!r}, got {name!r}"
        )
    return kind, tuple(int(size) for size in shape.split("x"))


def _tpus(kind: Kind, sizes: tuple[int, ...]) -> Any:
    """The devices of a TPU topology."""
    _needs("libtpu", "for TPUs: `pip install 'fedjax-fm[aot]'`")
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    name = f"{kind.name}:{'x'.join(map(str, sizes))}"
    try:
        found = topologies.get_topology_desc(name, "tpu", **kind.settings)
    except Exception as error:  # libtpu raises several kinds
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"libtpu knows no topology {name!r} ({reason}); one that there is: "
            f"{kind.example!r}"
        ) from error
    return found.devices


def _gpus(kind: Kind, sizes: tuple[int, ...]) -> Any:
    """The devices of some nodes with GPUs."""
    _needs(
        "jax_cuda12_plugin",
        "for GPUs: `pip install jax-cuda12-plugin jax-cuda12-pjrt "
        "nvidia-cuda-nvcc-cu12`, without the toolkit and the drivers",
    )
    if len(sizes) > 2:
        raise ValueError(
            f"expected GPUs as CARDS or NODESxCARDS, {kind.example!r} for example, got "
            f"{'x'.join(map(str, sizes))}"
        )
    nodes, cards = (1, *sizes)[-2:]
    described = f'{kind.settings} device_description_str: "{kind.name}"'
    found = topologies.get_topology_desc(
        "gpu", "cuda", target_config=described, topology=f"1x{nodes}x{cards}"
    )
    expected = math.prod(sizes)
    if len(found.devices) != expected:
        raise ValueError(f"expected {expected} GPUs, XLA made {len(found.devices)}")
    return found.devices


def _needs(module: str, where: str) -> None:
    """Refuses to go on without a compiler."""
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"the package {module} is needed to compile {where}")
