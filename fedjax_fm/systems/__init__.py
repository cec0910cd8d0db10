"""What runs would take on real devices: time, energy, carbon, money.

A virtual clock:

    profile = systems.log_normal_profile(1000, seed=0)
    seconds = systems.client_seconds(profile, n_steps, bytes_down, bytes_up)
    ends = systems.synchronous_seconds(sampler, seed, rounds, seconds)

What a run that was simulated would cost:

    counts = systems.counts_of(systems.per_example(simulator), metrics)
    scenario = systems.scenario(device="jetson-agx-orin", link="home", grid="DEU")
    cost = systems.cost_of(counts, scenario)
"""

from fedjax_fm.systems.carbon import (
    Energy,
    added,
    energy_of,
    energy_of_server,
    grams,
)
from fedjax_fm.systems.clock import Schedule, asynchronous, synchronous_seconds
from fedjax_fm.systems.cost import Cost, Scenario, cost_of, scenario
from fedjax_fm.systems.counts import (
    Counts,
    PerExample,
    counts_of,
    per_example,
    together,
    with_preparation,
)
from fedjax_fm.systems.cross_cloud import (
    dollars,
    dollars_per_million,
    granularity_with,
    ring_bytes,
    speed_up,
)
from fedjax_fm.systems.energy import (
    Frequencies,
    best_frequency,
    compute_seconds,
    compute_share,
    granularity,
    memory_needed,
    tokens_per_joule,
    training_flop,
    transfer_seconds,
)
from fedjax_fm.systems.hardware import (
    Cloud,
    Device,
    Grid,
    Link,
    ServerMachine,
    find,
    profiles,
)
from fedjax_fm.systems.meter import Meter, Reading, measured
from fedjax_fm.systems.operations import Operations, flop_of, flop_of_client
from fedjax_fm.systems.preparation import Preparation, prepared
from fedjax_fm.systems.profile import Profile, client_seconds, log_normal_profile
from fedjax_fm.systems.quantities import Quantity
from fedjax_fm.systems.swarm import SwarmRun, swarm
from fedjax_fm.systems.swarm_gradients import (
    Stage,
    reduced,
    stages_of,
    swarm_gradients,
    whole_gradient,
)
from fedjax_fm.systems.swarm_parts import Done, Peer
from fedjax_fm.systems.wiring import Wiring

__all__ = [
    "Cloud",
    "Cost",
    "Counts",
    "Device",
    "Done",
    "Energy",
    "Frequencies",
    "Grid",
    "Link",
    "Meter",
    "Operations",
    "Peer",
    "PerExample",
    "Preparation",
    "Profile",
    "Quantity",
    "Reading",
    "Scenario",
    "Schedule",
    "ServerMachine",
    "Stage",
    "SwarmRun",
    "Wiring",
    "added",
    "asynchronous",
    "best_frequency",
    "client_seconds",
    "compute_seconds",
    "compute_share",
    "cost_of",
    "counts_of",
    "dollars",
    "dollars_per_million",
    "energy_of",
    "energy_of_server",
    "find",
    "flop_of",
    "flop_of_client",
    "grams",
    "granularity",
    "granularity_with",
    "log_normal_profile",
    "measured",
    "memory_needed",
    "per_example",
    "prepared",
    "profiles",
    "reduced",
    "ring_bytes",
    "scenario",
    "speed_up",
    "stages_of",
    "swarm",
    "swarm_gradients",
    "synchronous_seconds",
    "together",
    "tokens_per_joule",
    "training_flop",
    "transfer_seconds",
    "whole_gradient",
    "with_preparation",
]
