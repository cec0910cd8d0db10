"""What a round costs at the least: its matrix products at the best rate seen here.

The rate is that of the workload's own shapes, in the fastest library that is installed:
XLA, XLA with oneDNN, PyTorch, numpy. A floor from one large square product in one
library is too high a floor: products of a few hundred rows run at another rate.
"""

import importlib.util
import json
import math
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fedjax_fm as ffm
from fedjax_fm.experiments.bench.environments import clean_environment, last_lines
from fedjax_fm.experiments.bench.rates import ENGINES, Product
from fedjax_fm.experiments.bench.workload import Data, Workload
from fedjax_fm.systems.operations import jaxprs_in

SQUARE = (2048, 2048, 2048)  # for workloads without a product, or with convolutions
MOST_SHAPES = 4  # measured of one workload: those with the most FLOP
NEEDS = {"PyTorch": "torch"}  # engines that may be absent
SETS = ("amx_tile", "avx512f", "avx2", "avx", "sve", "asimd")  # best first


class Rate(NamedTuple):
    """FLOP/s on all cores together, and whose."""

    flop_per_second: float
    one_core: float
    engine: str


def processor() -> str:
    """The processor's name, its cores and its widest instruction set."""
    name, flags = platform.processor() or platform.machine(), ""
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
        found = {key.strip(): value.strip() for key, value in fields.items()}
        name = found.get("model name", name)
        flags = found.get("flags", found.get("Features", ""))
    widest = [one for one in SETS if one in flags.split()]
    cores = len(jax.devices("cpu"))
    return f"{name}, {cores} cores, {widest[0] if widest else 'unknown set'}"


def rate_of(workload: Workload, data: Data) -> Rate:
    """The best rate for the products of a workload.

    Args:
      workload: one of them.
      data: of the workload.
    """
    simulator, delta = workload.simulator(data)
    return best_rate(products_of(simulator, delta))


def products_of(simulator: ffm.Simulator, delta: Any) -> Counter[Product]:
    """FLOP by shape of the matrix products in one round's program.

    A loop whose length the data decide counts once, so the numbers are shares.

    Args:
      simulator: of a workload.
      delta: the trainable tree.

    Returns:
      {(m, k, n): FLOP}; products of a batch of small matrices are left out.
    """
    state = simulator.init(delta).carry
    programs, key = simulator.programs, simulator.key
    operands = (state, programs.backbone, programs.data, jnp.int32(1), key)
    found: Counter[Product] = Counter()
    _count(programs.fused.trace(*operands).jaxpr.jaxpr, 1, found)
    return found


def _count(jaxpr: Any, times: int, found: Counter[Product]) -> None:
    """Adds the products of a jaxpr and of all inside of it."""
    for equation in jaxpr.eqns:
        length = equation.params.get("length", 1)
        inner_times = times * (length if equation.primitive.name == "scan" else 1)
        if equation.primitive.name == "dot_general":
            _add(equation, times, found)
        for inner in jaxprs_in(equation.params):
            _count(inner, inner_times, found)


def _add(equation: Any, times: int, found: Counter[Product]) -> None:
    """Adds one dot_general as a product [m, k] @ [k, n], if it has no batch."""
    contracted, batch = equation.params["dimension_numbers"]
    if batch[0]:
        return
    left, right = (variable.aval.shape for variable in equation.invars)
    k = math.prod(left[axis] for axis in contracted[0])
    m, n = (math.prod(shape) // max(k, 1) for shape in (left, right))
    found[m, k, n] += 2 * m * k * n * times


def best_rate(products: Counter[Product]) -> Rate:
    """The rate at which these products run in the library that is fastest at each.

    Args:
      products: {(m, k, n): FLOP}, from `products_of`; empty: a large square one.
    """
    weights = dict(products.most_common(MOST_SHAPES)) or {SQUARE: 1}
    shapes = tuple(weights)
    total = sum(weights.values())
    seconds = {"all": 0.0, "1": 0.0}
    engines: Counter[str] = Counter()
    for cores in seconds:
        for index, flop in enumerate(weights.values()):
            found = {one: rates_of(one, cores, shapes)[index] for one in _installed()}
            fastest = max(found, key=lambda engine: found[engine])
            seconds[cores] += flop / found[fastest]
            engines[fastest] += flop if cores == "all" else 0
    return Rate(
        flop_per_second=total / seconds["all"],
        one_core=total / seconds["1"],
        engine=engines.most_common(1)[0][0],
    )


def _installed() -> list[str]:
    """The engines that this environment has."""

    def is_here(engine: str) -> bool:
        needed = NEEDS.get(engine)
        return needed is None or importlib.util.find_spec(needed) is not None

    return [engine for engine in ENGINES if is_here(engine)]


@cache
def rates_of(engine: str, cores: str, shapes: tuple[Product, ...]) -> Sequence[float]:
    """FLOP/s of each shape, measured in a process of its own.

    Args:
      engine: a name in `rates.ENGINES`.
      cores: "1" or "all".
      shapes: m, k, n of each.

    Raises:
      RuntimeError: the process failed; with the end of what it said.
    """
    module = "fedjax_fm.experiments.bench.rates"
    done = subprocess.run(
        [sys.executable, "-m", module, engine, cores],
        input=json.dumps(shapes),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=clean_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"{engine} on {cores} cores: {last_lines(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def fastest(call: Callable[[], None], seconds: float = 3.0) -> float:
    """Seconds of the fastest of several calls.

    Args:
      call: waits for what it computes; it has been compiled.
      seconds: for how long calls are begun.
    """
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best
