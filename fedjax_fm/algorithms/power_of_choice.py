"""Power-of-Choice: Towards Understanding Biased Client Selection in Federated Learning.

Cho, Wang, Joshi, 2020, arXiv 2010.01243, algorithm pow-d:

    candidates:  d clients, drawn with the probabilities p_k      the simulator's sampler
                 are sent w, send F_k(w)                                    `_ask`
    cohort:      the m of them with the largest F_k(w) take part         `for_chosen`

Who takes part depends on w, which a `Sampler` does not see. So it is an exchange in front
of a method's own, which select those who were chosen.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.algorithms.chosen import NOBODY, ChoiceState, for_chosen
from fedjax_fm.algorithms.losses import checked
from fedjax_fm.algorithms.parts import Stream, stream
from fedjax_fm.algorithms.passes import loss_over
from fedjax_fm.algorithms.reduce import stack
from fedjax_fm.population import samplers
from fedjax_fm.types import (
    Algorithm,
    Batches,
    ClientOutput,
    Exchange,
    Sampler,
    Setting,
    Stack,
    Task,
)


class _Choice(NamedTuple):
    """The hyper-parameters, checked."""

    algorithm: Algorithm
    task: Task
    cohort_size: int  # m
    batch_size: int

    def delta(self, state: ChoiceState):
        """What candidates are sent."""
        return self.algorithm.delta(state.method)


def power_of_choice(
    algorithm: Algorithm, task: Task, *, cohort_size: int, batch_size: int
) -> Algorithm:
    """A method in which those candidates take part whose loss is largest.

    The simulator's `cohort_size` is d, the number of candidates, and its sampler draws
    them: `samplers.weighted(population.sizes, d)` is the paper's; without one they are
    drawn uniformly. With d = m this changes nothing but the bytes; with d = N the m
    largest losses of all take part. The paper takes the plain mean of the m models: with
    `fedavg` clients count by their examples once more.

    Sends, beside what the method sends to and from m clients: down w to all d, up one
    number of 4 bytes from each. Parts of the method's message that are w itself are not
    billed to the chosen again, as they have it (behind a lossy downlink they work from
    the server's).

    Metrics: `candidate_loss`, the candidates' mean of F_k(w), each counting as one.

    Args:
      algorithm: what the chosen do, for example `fedavg(...)`.
      task: whose loss decides.
      cohort_size: m, at least 1, at most the simulator's `cohort_size`.
      batch_size: examples whose losses a candidate computes at once.

    Returns:
      An algorithm whose server state is `ChoiceState`; clients keep what the method
      keeps.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; a method
        that promises privacy; later, a simulator with fewer candidates than m, or a
        method that chooses its clients itself.

    References:
      Cho et al. 2020, arXiv 2010.01243, section 3.

    Example:
      >>> import optax, fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2 / 2, {}))
      >>> plain = ffm.fedavg(task, optax.sgd(0.5), local_steps=1, batch_size=1)
      >>> method = power_of_choice(plain, task, cohort_size=1, batch_size=1)
      >>> clients = [{"x": jnp.array([x])} for x in (1.0, 4.0, -2.0)]
      >>> population = ffm.Population.from_clients(clients)
      >>> simulator = ffm.Simulator(method, population, cohort_size=3)
      >>> state, metrics = simulator.run(simulator.init(jnp.float32(0)), 1)
      >>> float(state.delta), metrics["uplink_bytes"].tolist()  # half way to 4
      (2.0, [16])
    """
    _check_method(algorithm)
    checks.whole("cohort_size", cohort_size, least=1)
    batches = Batches(batch_size, epochs=1).checked()
    choice = _Choice(
        algorithm=algorithm,
        task=checked(task),
        cohort_size=cohort_size,
        batch_size=batches.batch_size,
    )
    rest = tuple(for_chosen(algorithm, cohort_size))

    def init(delta, key, setting):
        method = algorithm.init(delta, key, setting._replace(cohort_size=cohort_size))
        return ChoiceState(method, jnp.full(cohort_size, NOBODY, jnp.int32))

    def model(state, client, backbone):
        if algorithm.model is None:
            return choice.delta(state), backbone
        return algorithm.model(state.method, client, backbone)

    return algorithm._replace(
        init=init,
        exchanges=(_ask(choice), *rest),
        delta=choice.delta,
        model=model,
        sampler=_enough_candidates(choice),
    )


def _check_method(algorithm: Algorithm) -> None:
    hint = "make one, for example with fedavg(...)"
    checks.instance("algorithm", algorithm, Algorithm, hint)
    if algorithm.privacy is not None:
        raise ValueError(
            "expected a method without a guarantee of privacy: choosing clients by "
            "their losses is not what it was accounted for"
        )


def _enough_candidates(choice: _Choice) -> Callable[..., Sampler]:
    """`Algorithm.sampler`: the chosen one, if it draws at least m and the method takes it."""
    algorithm, least = choice.algorithm, choice.cohort_size

    def sampler(chosen: Sampler | None, setting: Setting) -> Sampler:
        if chosen is None:
            chosen = samplers.uniform(setting.n_clients, setting.cohort_size)
        if chosen.capacity < least:
            raise ValueError(
                f"expected at least cohort_size={least} candidates, got a sampler "
                f"of {chosen.capacity}; the simulator's cohort_size is their number"
            )
        if algorithm.sampler and algorithm.sampler(chosen, setting) is not chosen:
            raise ValueError(
                "expected a method that takes any sampler, got one that chooses its "
                "clients itself"
            )
        return chosen

    return sampler


def _ask(choice: _Choice) -> Exchange:
    """The exchange in front: who has the largest losses."""

    def client(backbone, message):
        def one(delta, state, data, key):
            key = stream(key, Stream.WHOLE_PASS)
            total, count = loss_over(choice.task, delta, backbone, data, key)["loss"]
            mean = total / jnp.where(count > 0, count, 1)
            one = jnp.float32(1)
            return ClientOutput(
                upload=mean,
                weight=one,
                state=state,
                metrics={"candidate_loss": (mean, one)},
            )

        return one

    def largest(found: Stack, setting):
        losses, _ = found.values
        ranked = jnp.where(found.active, losses, -jnp.inf)
        _, places = jax.lax.top_k(ranked, choice.cohort_size)
        return jnp.where(found.active[places], found.ids[places], NOBODY)

    return Exchange(
        broadcast=choice.delta,
        client=client,
        server=lambda state, found, key: (state._replace(chosen=found.value), {}),
        reduce=stack(largest),
        batches=Batches(choice.batch_size, epochs=1),
    )
