"""Power-of-Choice: Towards Understanding Biased Client Selection in Federated Learning.

Cho, Wang, Joshi, 2020, arXiv 2010.01243, algorithm pow-d:

    candidates:  d clients, drawn with the probabilities p_k      the simulator's sampler
                 are sent w, send F_k(w)                                    `_ask`
    cohort:      the m of them with the largest F_k(w) take part            `_limited`

Who takes part depends on w, which a `Sampler` does not see. So it is an exchange in front
of a method's own, which select those who were chosen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
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
    Unbilled,
)

NOBODY = -1  # an id that no client has


class ChoiceState(NamedTuple):
    """Server state."""

    method: Any  # of the method behind it
    chosen: jax.Array  # i32[m], of this round; NOBODY where fewer candidates arrived


class _Choice(NamedTuple):
    """The hyper-parameters, checked."""

    algorithm: Algorithm
    task: Task
    cohort_size: int  # m
    batch_size: int

    def own_setting(self, setting: Setting) -> Setting:
        """The sizes as the method behind it sees them."""
        return setting._replace(cohort_size=self.cohort_size)

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
    rest = tuple(_limited_group(choice, group) for group in algorithm.exchanges)

    def init(delta, key, setting):
        method = algorithm.init(delta, key, choice.own_setting(setting))
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
            metrics = {"candidate_loss": (mean, jnp.float32(1))}
            return ClientOutput(mean, jnp.float32(1), state, metrics)

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


def _limited_group(choice: _Choice, group: Any) -> Any:
    """An exchange, or those of a `Repeat`, for the chosen alone."""
    if isinstance(group, Exchange):
        return _limited(choice, group)
    inner = tuple(_limited(choice, exchange) for exchange in group.exchanges)
    return group._replace(exchanges=inner)


class ForChosen(NamedTuple):
    """A message of the method, and whom it is for."""

    own: Any
    chosen: Any  # i32[m], not billed


def _limited(choice: _Choice, exchange: Exchange) -> Exchange:
    """One exchange of the method, for the chosen alone."""

    def broadcast(state):
        sent = {id(leaf) for leaf in jax.tree.leaves(choice.delta(state))}

        def mark(part):
            return Unbilled(part) if id(part) in sent else part

        own = exchange.broadcast(state.method)
        return ForChosen(jax.tree.map(mark, own), Unbilled(state.chosen))

    def client(backbone, message):
        one_of_method = exchange.client(backbone, message.own)

        def one(mine, state, data, key):
            own = mine.own if exchange.address is None else mine
            return one_of_method(own, state, data, key)

        return one

    def address(message, state, client):
        return exchange.address(message.own, state, client)

    def selects(message, client, key):
        is_chosen = jnp.any(message.chosen == client)
        if exchange.selects is None:
            return is_chosen
        return is_chosen & exchange.selects(message.own, client, key)

    def finish(total, setting):
        return exchange.reduce.finish(total, choice.own_setting(setting))

    def lift(state, sent, weight):
        return exchange.reduce.lift(state.method, sent, weight)

    def server(state, aggregate, key):
        method, metrics = exchange.server(state.method, aggregate, key)
        return state._replace(method=method), metrics

    return exchange._replace(
        broadcast=broadcast,
        client=client,
        server=server,
        reduce=exchange.reduce._replace(lift=lift, finish=finish),
        address=None if exchange.address is None else address,
        selects=selects,
    )
