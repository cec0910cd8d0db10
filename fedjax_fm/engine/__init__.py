"""The round engine: the only code that knows vmap, meshes and loops over clients."""

from fedjax_fm.engine.dealt import DealtPopulation
from fedjax_fm.engine.devices import client_mesh, use_cpu_cores_as_devices
from fedjax_fm.engine.faults import (
    CohortOverflow,
    NonFiniteClient,
    RoundError,
    SumOverflow,
    UnknownClient,
)
from fedjax_fm.engine.plan import Plan, make_plan
from fedjax_fm.engine.simulator import Simulator
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.engine.sweep import Sweep, sweep

__all__ = [
    "CohortOverflow",
    "DealtPopulation",
    "NonFiniteClient",
    "Plan",
    "RoundError",
    "SimulationState",
    "Simulator",
    "SumOverflow",
    "Sweep",
    "UnknownClient",
    "client_mesh",
    "make_plan",
    "sweep",
    "use_cpu_cores_as_devices",
]
