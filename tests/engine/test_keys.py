"""No two things that a run draws have one key."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.engine.keys import Purpose, derive

OF_THE_RUN = (Purpose.INIT, Purpose.CLIENT_INIT)


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_names_of_a_run_do_not_meet():
    """Rounds, purposes, clients and exchanges by small numbers, where they would meet
    if they could.
    """
    seed = jax.random.key(0)
    found = {"of the run": bits(seed)}
    found[Purpose.INIT] = bits(derive(seed, Purpose.INIT))
    for client in range(12):
        found[Purpose.CLIENT_INIT, client] = bits(
            derive(seed, Purpose.CLIENT_INIT, client)
        )
    for number in range(12):
        round_key = jax.random.fold_in(seed, number)
        found["round", number] = bits(round_key)
        for purpose in set(Purpose) - set(OF_THE_RUN):
            found[number, purpose] = bits(derive(round_key, purpose))
            for client, index in itertools.product(range(4), range(2)):
                found[number, purpose, client, index] = bits(
                    derive(round_key, purpose, client, index)
                )
    repeated = {
        key for key, times in collections.Counter(found.values()).items() if times > 1
    }
    assert not [name for name, key in found.items() if key in repeated]


def test_the_first_states_are_not_drawn_with_a_cohorts_key():
    """Seen in a run: what `client_init` is given, beside the keys of the cohorts of its
    first rounds.
    """
    given = []
    plain = ffm.fedavg(
        ffm.Task(lambda d, b, batch, key: (d * batch["x"], {})),
        optax.sgd(0.1),
        local_steps=1,
        batch_size=1,
    )

    def client_init(delta, key):
        return jax.random.key_data(key)

    population = ffm.Population.from_clients([{"x": np.ones(1, np.float32)}] * 9)
    simulator = ffm.Simulator(
        plain._replace(client_init=client_init),
        population,
        cohort_size=2,
        devices=1,
        seed=3,
    )
    state = simulator.init(jnp.float32(0))
    given = {tuple(row) for row in np.asarray(state.carry.clients).tolist()}
    rounds = [jax.random.fold_in(jax.random.key(3), number) for number in range(30)]
    drawn = {bits(derive(key, Purpose.COHORT)) for key in rounds} | {
        bits(key) for key in rounds
    }
    assert len(given) == 9
    assert not given & drawn


def test_uploads_of_a_cohort_have_keys_of_their_own():
    """Equal updates of all clients, quantised to signs: the mean over m keys has a
    variance 1 / m of one's.
    """
    n = 64
    population = ffm.Population.from_clients([{"x": np.ones(1, np.float32)}] * n)
    task = ffm.Task(
        lambda delta, backbone, batch, key: (jnp.full(1, jnp.sum(delta * backbone)), {})
    )
    algorithm = ffm.fedavg(task, optax.sgd(1.0), local_steps=1, batch_size=1)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=512), jnp.float32)

    def spread(cohort_size):
        simulator = ffm.Simulator(
            algorithm,
            population,
            backbone=gradient,
            cohort_size=cohort_size,
            uplink=channels.quantize(bits=2),
            devices=1,
        )
        state, _ = simulator.run(simulator.init(jnp.zeros(512)), 1)
        return float(jnp.mean((state.delta + gradient) ** 2))

    assert spread(n) < 2 * spread(1) / n
