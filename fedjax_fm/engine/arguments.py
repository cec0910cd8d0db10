"""What people hand to a simulator, looked at before anything is traced.

Each mistake is reported in one sentence.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks, trees
from fedjax_fm.channels.arguments import checked_channel
from fedjax_fm.engine.dealt import DealtPopulation
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.population.population import Population
from fedjax_fm.types import Algorithm, Behaviour, Sampler, Tree


def check_kinds(
    *,
    algorithm: Any,
    population: Any,
    uplink: Any,
    downlink: Any,
    sampler: Any,
    behaviour: Any,
) -> None:
    """Refuses the first argument that is of another type.

    Raises:
      TypeError: says how to make one of the right type.
    """
    checks.instance(
        "algorithm",
        algorithm,
        Algorithm,
        "make one, for example with fedavg(Task(loss), ...)",
    )
    check_population(population)
    for name, channel in (("uplink", uplink), ("downlink", downlink)):
        if channel is not None:
            checked_channel(name, channel)
    checks.instance(
        "sampler", sampler, Sampler, "make one with population.samplers", optional=True
    )
    checks.instance(
        "behaviour",
        behaviour,
        Behaviour,
        "write Behaviour(most_steps=..., drops=...)",
        optional=True,
    )


def check_population(population: Any) -> None:
    """Refuses what is no population, whole or dealt over hosts.

    Raises:
      TypeError: says how to make one.
    """
    if not isinstance(population, DealtPopulation):
        made = (
            "make one with Population.from_clients(...) or Population.from_arrays(...)"
        )
        checks.instance("population", population, Population, made)


def check_delta(delta: Tree) -> None:
    """Refuses a trainable tree that is empty, or that holds what is no finite array.

    Args:
      delta: the trainable tree.

    Raises:
      ValueError: it is empty, or holds NaN or infinity.
      TypeError: a leaf is no array of numbers.
    """
    leaves = jax.tree.leaves_with_path(delta)
    if not leaves:
        raise ValueError(
            f"expected a trainable tree, got delta={delta!r} without a single "
            "array: nothing to train"
        )
    for path, leaf in leaves:
        where = trees.path_of(path) or "its only leaf"
        if not _is_array(leaf):
            raise TypeError(
                f"expected arrays of numbers in delta, got {_in_words(leaf)} at "
                f"{where}; leave it out of the trainable tree, or put it into the "
                "backbone"
            )
        is_finite = jnp.isfinite(leaf)
        if not bool(is_finite.all()):
            raise ValueError(f"delta holds NaN or infinity at {where}")


def check_state(state: Any, server: Any) -> None:
    """Refuses what is not a state of this simulator.

    Args:
      state: what was given.
      server: shapes of the server's part.

    Raises:
      TypeError, ValueError: another type, or a server part of other shapes.
    """
    made = (
        "start with state = simulator.init(delta), and go on from the state that run "
        "returned"
    )
    checks.instance("state", state, SimulationState, made)
    if problem := trees.difference(server, state.carry.server):
        raise ValueError(
            f"this state is of another algorithm or model than the simulator's: {problem}; {made}"
        )


def _is_array(leaf: Any) -> bool:
    """Whether jax takes it as an array of numbers; a key of jax.random is none."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, (bool, int, float))
    return dtype == jnp.bool_ or jnp.issubdtype(dtype, jnp.number)


def _in_words(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    return f"{dtype}{list(leaf.shape)}" if dtype is not None else checks.shown(leaf)
