"""Which samplers suit methods that keep something of every client."""

from collections.abc import Callable

import jax
import numpy as np

from fedjax_fm.population import samplers
from fedjax_fm.types import Sampler, Setting

N_DRAWS = 16  # cohorts that are looked at


def meets_everyone(method: str, kept: str) -> Callable:
    """`Algorithm.sampler` of a method whose server divides by all N clients.

    Refuses a cohort that is always the same and not everybody: what was never met stays
    as it began, and the server's mean over all is that of other clients than those who
    train. Of samplers with a plan of their own (a trace, a pass) this is not known.

    Args:
      method: its name, for the message.
      kept: what the server keeps of every client, for the message.

    Returns:
      `(chosen, setting) -> Sampler`, the chosen one.
    """

    def sampler(chosen: Sampler | None, setting: Setting) -> Sampler:
        if chosen is None:
            return samplers.uniform(setting.n_clients, setting.cohort_size)
        met = _always_the_same(chosen)
        if met is not None and len(met) < setting.n_clients:
            missing = min(set(range(setting.n_clients)) - met)
            raise ValueError(
                f"{method}: the sampler always draws the same {len(met)} of "
                f"{setting.n_clients} clients, and never client {missing}, while {kept} "
                "is a mean over all; make a population of those who train, or sample "
                "from all"
            )
        return chosen

    return sampler


def _always_the_same(sampler: Sampler) -> set[int] | None:
    """The one cohort of a sampler without state; None if there are several, or a state.

    Draws of a sampler without state are independent, so that a random one is not taken
    for a fixed one: by chance sixteen cohorts of N - 1 are equal once in N^15.
    """
    state = sampler.init()
    if jax.tree.leaves(state):
        return None
    first = None
    for i in range(N_DRAWS):
        ids, n_active, _ = sampler.draw(state, jax.random.key(i))
        drawn = set(np.asarray(ids)[: int(n_active)].tolist())
        first = drawn if first is None else first
        if drawn != first:
            return None
    return first
