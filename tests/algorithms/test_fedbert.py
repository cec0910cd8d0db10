"""FedBERT's exact invariants (Tian et al. 2022), on a small model with tied ends, against the
model in one piece.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import split_problem
from split_problem import INSIDE, LENGTH, WIDTH

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.population import samplers
from fedjax_fm.split import unsplit
from fedjax_fm.types import Behaviour, Channel

SEED, BATCH = 3, 6  # a batch covers every client
CLIENTS = split_problem.clients()
N = len(CLIENTS)
SPLIT = split_problem.split()
SGD, ADAM, FROZEN = optax.sgd(0.5), optax.adam(0.02, eps=1e-3), optax.set_to_zero()
IN_TURN, HALF = samplers.cyclic(N, 1), channels.cast("bfloat16")


def lone(size):
    return split_problem.clients(sizes=(size,), seed=4)[0]


@functools.cache
def simulator(
    steps=2,
    client=SGD,
    server=SGD,
    n=N,
    cohort=N,
    alone=None,
    uplink=None,
    behaviour=None,
    sampler=None,
):
    return ffm.Simulator(
        fedbert(SPLIT, client, server, local_steps=steps, batch_size=BATCH),
        ffm.Population.from_clients([lone(alone)] if alone else CLIENTS[:n]),
        cohort_size=cohort,
        seed=SEED,
        devices=1,
        sampler=sampler or samplers.fixed(range(cohort)),
        uplink=uplink,
        behaviour=behaviour,
    )


def run(rounds=1, **how):
    one = simulator(**how)
    return one.run(one.init(split_problem.delta()), rounds)


def recorder() -> Channel:
    """Carries everything and keeps each client's last upload of every exchange."""
    return Channel(
        init=lambda shapes: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        encode=lambda state, tree, key: (tree, tree),
        decode=lambda payload: payload,
        bits=lambda payload: (
            8
            * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(payload))
        ),
    )


RECORDER = recorder()


def step_key(client, step, round_index=0):
    """Of one step of one client, from the engine's keys."""
    round_key = jax.random.fold_in(jax.random.key(SEED), round_index)
    return jax.random.fold_in(derive(round_key, Purpose.CLIENT, client, 0), step)


def mean_loss(delta, k, key):
    """Of the model in one piece over all rows of client k."""
    return jnp.mean(
        unsplit(SPLIT).loss(delta, (), jax.tree.map(jnp.asarray, CLIENTS[k]), key)[0]
    )


def close(a, b, **how):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, **{"rtol": 1e-5, "atol": 1e-6} | how
        ),
        a,
        b,
    )


def minus(a, b, factor=1.0):
    return jax.tree.map(lambda x, y: x - factor * y, a, b)


def test_gradients_at_both_cuts_are_those_of_the_model_in_one_piece():
    """Two steps, so that both passages are seen: what crosses the cuts in the second
    one is at parameters after the first.
    """
    delta = split_problem.delta()
    state, _ = run(uplink=RECORDER)
    server = state.carry.server
    sizes = np.array([len(client["ids"]) for client in CLIENTS])
    own = [mean_gradient(delta, k, step_key(k, 0)) for k in range(N)]
    body = minus(delta["server"], mixed([g["server"] for g in own], sizes), 0.5)
    for k, rows in enumerate(sizes):
        batch, key = jax.tree.map(jnp.asarray, CLIENTS[k]), step_key(k, 1)
        after = {
            "client": minus(delta["client"], own[k]["client"], 0.5),
            "server": body,
        }
        activations, context = SPLIT.embed(after["client"], batch, key)
        features = SPLIT.body(body, activations, context)

        def behind(z, a=after, b=batch, q=key):
            return jnp.mean(SPLIT.head(a["client"], z, b, q)[0])

        def before(x, c=context, f=behind, s=body):
            return f(SPLIT.body(s, x, c))

        sent, at_features = (
            state.carry.uplinks[2],
            state.carry.uplinks[3],
        )  # second activations, last gradients up

        def pick(x, k=k, n=rows):
            return x[k, :n]

        close(pick(sent[0]), activations)
        np.testing.assert_array_equal(pick(sent[1]), context)
        close(pick(server.features), features)
        close(pick(at_features), jax.grad(behind)(features))
        close(pick(server.gradients), jax.grad(before)(activations))


mean_gradient = jax.jit(jax.grad(mean_loss), static_argnums=1)


def mixed(trees, weights):
    return jax.tree.map(
        lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)) / sum(weights),
        *trees,
    )


def test_parallel_training_is_a_plain_loop():
    """Two rounds of all clients: client parts step alone and are averaged by examples,
    the body by its step's rows.
    """
    state, metrics = run(rounds=2, uplink=RECORDER)
    delta, sizes, losses = (
        split_problem.delta(),
        [len(client["ids"]) for client in CLIENTS],
        [],
    )
    for r in range(2):
        parts, total = [delta["client"]] * N, 0.0
        for i in range(2):
            at = [{"client": parts[k], "server": delta["server"]} for k in range(N)]
            keys = [step_key(k, i, r) for k in range(N)]
            total += (
                np.average(
                    [float(mean_loss(at[k], k, keys[k])) for k in range(N)],
                    weights=sizes,
                )
                / 2
            )
            gradients = [mean_gradient(at[k], k, keys[k]) for k in range(N)]
            parts = [minus(parts[k], gradients[k]["client"], 0.5) for k in range(N)]
            delta = {
                **delta,
                "server": minus(
                    delta["server"], mixed([g["server"] for g in gradients], sizes), 0.5
                ),
            }
        delta = {**delta, "client": mixed(parts, sizes)}
        losses.append(total)
    close(state.delta, delta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-4)
    cut, part = 4 * BATCH * LENGTH * WIDTH, 4 * (7 * WIDTH + 7)
    assert (
        metrics["uplink_bytes"] == N * (2 * (2 * cut + BATCH * LENGTH) + part)
    ).all()  # the recorder sends no bits
    assert (metrics["downlink_bytes"] == N * (2 * 2 * cut + part)).all()


def test_clients_in_turn_are_a_plain_loop():
    """Each starts from the body and the client part that the one before it left."""
    state, _ = run(rounds=N + 1, cohort=1, sampler=IN_TURN)
    delta = split_problem.delta()
    for r in range(N + 1):
        for i in range(2):
            delta = minus(
                delta, mean_gradient(delta, r % N, step_key(r % N, i, r)), 0.5
            )
    close(state.delta, delta, rtol=1e-4, atol=1e-5)


def test_one_client_is_centralised_training():
    """Several batches an epoch and Adam: one round of FedAvg on the model in one piece,
    which draws the same noise.
    """
    size = 2 * BATCH - 1
    state, metrics = run(steps=6, client=ADAM, server=ADAM, cohort=1, alone=size)
    whole = ffm.fedavg(unsplit(SPLIT), ADAM, local_steps=6, batch_size=BATCH)
    other = ffm.Simulator(
        whole,
        ffm.Population.from_clients([lone(size)]),
        cohort_size=1,
        seed=SEED,
        devices=1,
    )
    expected, also = other.run(other.init(split_problem.delta()), 1)
    close(state.delta, expected.delta, rtol=1e-4, atol=1e-5)
    for name in ("loss", "largest"):
        np.testing.assert_allclose(metrics[name], also[name], rtol=1e-4)


def test_identical_clients_are_one_client_and_optimizers_go_on():
    """Without noise, which differs from client to client: four clients for three rounds
    are Adam's six steps of one.
    """
    split = split_problem.split(0.0)
    algorithm = fedbert(split, ADAM, ADAM, local_steps=2, batch_size=BATCH)
    one = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients([CLIENTS[0]] * 4),
        cohort_size=4,
        seed=SEED,
        devices=1,
    )
    state, _ = one.run(one.init(split_problem.delta()), 3)
    batch, delta = jax.tree.map(jnp.asarray, CLIENTS[0]), split_problem.delta()
    gradient = jax.jit(
        jax.grad(
            lambda d: jnp.mean(unsplit(split).loss(d, (), batch, jax.random.key(0))[0])
        )
    )
    moments = ADAM.init(delta)
    for _ in range(6):
        updates, moments = ADAM.update(gradient(delta), moments, delta)
        delta = optax.apply_updates(delta, updates)
    close(state.delta, delta, rtol=1e-4, atol=1e-5)


def test_a_frozen_body_stays_bit_identical_and_clients_learn():
    state, _ = run(server=FROZEN, rounds=2)
    start = split_problem.delta()
    jax.tree.map(np.testing.assert_array_equal, state.delta["server"], start["server"])
    assert (
        np.abs(state.delta["client"]["table"] - start["client"]["table"]).max() > 1e-3
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_bytes_are_the_closed_form(steps):
    """4 B L h values a step and client, a bit for each place of the mask, and the
    client part both ways.
    """
    one = simulator(steps=steps)
    up, down = one.bytes_per_client(one.init(split_problem.delta()))
    cut, context, part = (
        4 * BATCH * LENGTH * WIDTH,
        -(-BATCH * LENGTH // 8),
        4 * (7 * WIDTH + 7),
    )
    assert up == steps * (2 * cut + context) + part
    assert down == steps * 2 * cut + part


def test_the_server_never_sees_labels_or_the_head():
    """What a server can read of a client is what passes the wire: shapes of all uploads
    of a round.
    """
    state, _ = run(uplink=RECORDER)
    shapes = [
        jax.tree.map(lambda x: x.shape[1:], upload) for upload in state.carry.uplinks
    ]
    cut, context = (BATCH, LENGTH, WIDTH), (BATCH, LENGTH)
    assert shapes == [
        (cut, context),
        cut,
        (cut, context),
        cut,
        {"table": (7, WIDTH), "bias": (7,)},
    ]
    assert state.delta["server"]["in"].shape == (WIDTH, INSIDE)


def test_stragglers_dropouts_and_rounds_without_clients():
    """Client 0 makes one of two steps, client 1 is lost: a loop without them. Then all
    are lost, and nothing moves, neither does Adam's momentum move the body."""
    slow = Behaviour(
        most_steps=lambda client, round_index, key: jnp.where(client == 0, 1, 2),
        drops=lambda client, round_index, key: (client == 1) | (round_index == 1),
    )
    one = simulator(server=ADAM, behaviour=slow, n=3, cohort=3)
    state, metrics = one.run(one.init(split_problem.delta()), 1)
    assert metrics["clients"][0] == 2
    delta, sizes = split_problem.delta(), {k: len(CLIENTS[k]["ids"]) for k in (0, 2)}
    parts, moments = dict.fromkeys(sizes, delta["client"]), ADAM.init(delta["server"])
    for i, there in enumerate([(0, 2), (2,)]):
        gradients = {
            k: mean_gradient({**delta, "client": parts[k]}, k, step_key(k, i))
            for k in there
        }
        for k in there:
            parts[k] = minus(parts[k], gradients[k]["client"], 0.5)
        gradient = mixed(
            [gradients[k]["server"] for k in there], [sizes[k] for k in there]
        )
        updates, moments = ADAM.update(gradient, moments, delta["server"])
        delta = {**delta, "server": optax.apply_updates(delta["server"], updates)}
    delta["client"] = mixed([parts[k] for k in sizes], list(sizes.values()))
    close(state.delta, delta, rtol=1e-4, atol=1e-5)
    after, metrics = one.run(state, 1)
    assert metrics["clients"][0] == 0
    for a, b in (
        (state.delta, after.delta),
        (state.carry.server.optimizer, after.carry.server.optimizer),
    ):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_lossy_cuts_still_train():
    """An uplink channel meets activations, gradients and client parts; flags pass as they are."""
    _, metrics = run(rounds=30, uplink=HALF, client=ADAM, server=ADAM)
    assert metrics["loss"][-1] < 0.7 * metrics["loss"][0]
    plain = simulator(client=ADAM, server=ADAM)
    up, _ = plain.bytes_per_client(plain.init(split_problem.delta()))
    assert metrics["uplink_bytes"][0] < 0.6 * N * up


def test_downlink_channels_and_impossible_settings_are_refused():
    one = ffm.Simulator(
        fedbert(SPLIT, SGD, SGD, local_steps=1, batch_size=2),
        ffm.Population.from_clients(CLIENTS),
        cohort_size=2,
        downlink=channels.cast(),
    )
    with pytest.raises(ValueError, match="give downlink=None"):
        one.init(split_problem.delta())
    with pytest.raises(ValueError, match="local_steps=0"):
        fedbert(SPLIT, SGD, SGD, local_steps=0, batch_size=2)
