"""fedjax_fm: federated fine-tuning of foundation models, simulated fast on JAX."""

from fedjax_fm.engine.devices import use_cpu_cores_as_devices

use_cpu_cores_as_devices()

from fedjax_fm import (  # noqa: E402
    algorithms,
    channels,
    datasets,
    evaluation,
    kernels,
    models,
    peft,
    population,
    privacy,
    systems,
    trees,
)
from fedjax_fm.algorithms import fedavg  # noqa: E402
from fedjax_fm.engine import (  # noqa: E402
    CohortOverflow,
    NonFiniteClient,
    SimulationState,
    Simulator,
    SumOverflow,
    UnknownClient,
    sweep,
)
from fedjax_fm.population import Population  # noqa: E402
from fedjax_fm.types import (  # noqa: E402
    Aggregate,
    Algorithm,
    Batches,
    Behaviour,
    Channel,
    ClientData,
    ClientOutput,
    Exchange,
    Free,
    Privacy,
    Reduce,
    Repeat,
    Rows,
    Sampler,
    Setting,
    Stack,
    Task,
)

__version__ = "0.1.0"

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
    "Free",
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
    "UnknownClient",
    "algorithms",
    "channels",
    "datasets",
    "evaluation",
    "fedavg",
    "kernels",
    "models",
    "peft",
    "population",
    "privacy",
    "sweep",
    "systems",
    "trees",
]
