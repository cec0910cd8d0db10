"""fedjax_fm: federated fine-tuning of foundation models, simulated fast on JAX.

    import fedjax_fm as ffm

    algorithm = ffm.fedavg(task, optax.adam(1e-3), local_steps=4, batch_size=8)
    simulator = ffm.Simulator(algorithm, population, cohort_size=10)
    state, metrics = simulator.run(simulator.init(delta), rounds=100)

Its parts are imported when they are first used (PEP 562), so `import fedjax_fm` is
fast.

Importing it changes one thing in the process: JAX gets one CPU device for each core
that the process may use, so that clients run side by side. This is done by the
environment variable `JAX_NUM_CPU_DEVICES`, which is removed once JAX has read it; if
JAX is imported already, by its option `jax_num_cpu_devices`. `JAX_NUM_CPU_DEVICES=1` in
the environment turns it off. Any number there, and XLA's flag
`--xla_force_host_platform_device_count`, are kept, and nothing changes if JAX has
started a backend before.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fedjax_fm.cpu_devices import forget_the_variable, use_cpu_cores_as_devices
from fedjax_fm.version import __version__ as __version__

use_cpu_cores_as_devices()

if TYPE_CHECKING:
    from fedjax_fm import (  # noqa: F401  (used, yet not in __all__)
        algorithms,
        aot,
        callbacks,
        channels,
        checks,
        datasets,
        directions,
        engine,
        evaluation,
        kernels,
        models,
        peft,
        population,
        preferences,
        privacy,
        robust,
        runs,
        secure,
        sparsity,
        split,
        systems,
        tasks,
        testing,
        trees,
        types,
        wire,
    )
    from fedjax_fm.algorithms import fedavg
    from fedjax_fm.engine import (
        CohortOverflow,
        NonFiniteClient,
        SimulationState,
        Simulator,
        SumOverflow,
        UnknownClient,
        sweep,
    )
    from fedjax_fm.evaluation import evaluate
    from fedjax_fm.population import Population
    from fedjax_fm.types import (
        Aggregate,
        Algorithm,
        Batches,
        Behaviour,
        Channel,
        ClientData,
        ClientOutput,
        Exchange,
        Privacy,
        Reduce,
        Repeat,
        Rows,
        Sampler,
        Setting,
        Stack,
        Task,
        Unbilled,
    )

__all__ = [
    "Aggregate",
    "Algorithm",
    "Batches",
    "Behaviour",
    "Channel",
    "ClientData",
    "ClientOutput",
    "CohortOverflow",
    "Exchange",
    "NonFiniteClient",
    "Population",
    "Privacy",
    "Reduce",
    "Repeat",
    "Rows",
    "Sampler",
    "Setting",
    "SimulationState",
    "Simulator",
    "Stack",
    "SumOverflow",
    "Task",
    "Unbilled",
    "UnknownClient",
    "algorithms",
    "aot",
    "callbacks",
    "channels",
    "datasets",
    "evaluate",
    "evaluation",
    "fedavg",
    "kernels",
    "models",
    "peft",
    "population",
    "preferences",
    "privacy",
    "robust",
    "runs",
    "secure",
    "sparsity",
    "sweep",
    "systems",
    "tasks",
    "testing",
    "trees",
]

# Where each name is defined; the packages are parts themselves.
_HOME = {
    "fedavg": "algorithms",
    "evaluate": "evaluation",
    "Population": "population",
    **dict.fromkeys(
        (
            "CohortOverflow",
            "NonFiniteClient",
            "SimulationState",
            "Simulator",
            "SumOverflow",
            "UnknownClient",
            "sweep",
        ),
        "engine",
    ),
    **dict.fromkeys(
        (
            "Aggregate",
            "Algorithm",
            "Batches",
            "Behaviour",
            "Channel",
            "ClientData",
            "ClientOutput",
            "Exchange",
            "Unbilled",
            "Privacy",
            "Reduce",
            "Repeat",
            "Rows",
            "Sampler",
            "Setting",
            "Stack",
            "Task",
        ),
        "types",
    ),
}
_PARTS = {
    "algorithms",
    "aot",
    "callbacks",
    "channels",
    "checks",
    "datasets",
    "directions",
    "engine",
    "evaluation",
    "kernels",
    "models",
    "peft",
    "population",
    "preferences",
    "privacy",
    "robust",
    "runs",
    "secure",
    "sparsity",
    "split",
    "systems",
    "tasks",
    "testing",
    "trees",
    "types",
    "wire",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _PARTS:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "jax" in sys.modules:
        forget_the_variable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
