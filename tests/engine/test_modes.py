"""Streamed data, spilled states, pmap, a model axis, kept uploads, stragglers and
drop-outs: the same rounds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import (
    SIZES,
    everyone,
    lossy,
    make_clients,
    make_trees,
    mlp_loss,
    simulate,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import local_only
from fedjax_fm.algorithms.reduce import stack
from fedjax_fm.engine.state import HostStore

MODES = {
    "pmap": {"parallel": "pmap", "devices": 2},
    "streamed": {"data": "host"},
    "spilled": {"states": "host"},
    "streamed and spilled, two devices": {
        "data": "host",
        "states": "host",
        "devices": 2,
        "block_size": 2,
    },
    "model axis": {"devices": 4, "model_parallel": 2},
    "spilled under pmap": {"states": "host", "parallel": "pmap"},
}


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
    )


@pytest.mark.parametrize("mode", MODES)
def test_modes_agree_with_fused_rounds(mode):
    reference, expected = simulate(uplink=lossy())
    state, metrics = simulate(uplink=lossy(), **MODES[mode])
    close(reference.delta, state.delta)
    assert metrics.keys() == expected.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    if isinstance(state.carry.clients, HostStore):
        store = state.carry.clients
        ours, theirs = (
            (store.rows),
            (reference.carry.clients, reference.carry.uplinks),
        )
        close(
            jax.tree.map(lambda x: x[store.touched], ours),
            jax.tree.map(lambda x: x[store.touched], theirs),
        )
        assert store.touched.any()


@pytest.mark.parametrize(
    "mode", ["spilled", "streamed and spilled, two devices", "pmap"]
)
def test_private_adapters_survive_their_clients_absence(mode):
    def run(**how):
        delta, backbone = make_trees()
        algorithm = local_only(
            ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=2, batch_size=4
        )
        population = ffm.Population.from_clients(make_clients())
        simulator = ffm.Simulator(
            algorithm,
            population,
            backbone=backbone,
            cohort_size=3,
            **({"devices": 1} | how),
        )
        return simulator.run(simulator.init(delta), 6)[0]

    whole, other = run(), run(**MODES[mode])
    rows = other.carry.clients
    if isinstance(rows, HostStore):
        # Those who never came still hold the common start in the whole store, and
        # nothing at all in the other.
        never = ~rows.touched
        assert never.sum() + rows.touched.sum() == len(SIZES)
        close(
            jax.tree.map(lambda x: x[~never], whole.carry.clients),
            jax.tree.map(lambda x: x[~never], rows.rows[0]),
        )
        assert all((leaf[never] == 0).all() for leaf in jax.tree.leaves(rows.rows))
    else:
        close(whole.carry.clients, rows)


def test_a_spilled_state_cannot_be_used_twice():
    delta, backbone = make_trees()
    algorithm = local_only(
        ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=4
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(make_clients()),
        backbone=backbone,
        cohort_size=3,
        states="host",
    )
    start = simulator.init(delta)
    after, _ = simulator.run(start, 2)
    with pytest.raises(
        RuntimeError, match="of round 0, but its spilled store has gone on to round 2"
    ):
        simulator.run(start, 1)
    assert simulator.run(after, 1)[0].round == 3


def test_small_memory_streams_and_spills_by_itself():
    delta, backbone = make_trees()
    algorithm = local_only(
        ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=4
    )
    population = ffm.Population.from_clients(make_clients())
    simulator = ffm.Simulator(
        algorithm, population, backbone=backbone, cohort_size=3, memory=1000
    )
    state = simulator.init(delta)
    assert simulator.streams
    assert isinstance(state.carry.clients, HostStore)
    assert "streamed from the host" in repr(simulator)


def test_a_population_on_disk(tmp_path):
    clients = make_clients()
    population = ffm.Population.from_clients(clients)
    population.save(tmp_path / "population")
    opened = ffm.Population.open(tmp_path / "population")
    assert all(isinstance(array, np.memmap) for array in opened.arrays.values())
    for k in range(len(clients)):
        for name, array in opened.client(k).items():
            np.testing.assert_array_equal(array, clients[k][name])
    with pytest.raises(FileNotFoundError, match="is not a population"):
        ffm.Population.open(tmp_path)


def test_a_kept_cohort_gives_the_median():
    def median(stacked, setting):
        (sent, _), active, _ = stacked

        def value(x):
            return jnp.nanmedian(
                jnp.where(active.reshape(-1, *([1] * (x.ndim - 1))), x, jnp.nan), axis=0
            )

        return jax.tree.map(value, sent)

    def run(reduce, **how):
        plain = ffm.fedavg(
            ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=max(SIZES)
        )
        (exchange,) = plain.exchanges
        algorithm = plain._replace(exchanges=(exchange._replace(reduce=reduce),))
        delta, backbone = make_trees()
        population = ffm.Population.from_clients(make_clients())
        how = {"cohort_size": 8, "sampler": everyone(8)} | how
        simulator = ffm.Simulator(algorithm, population, backbone=backbone, **how)
        return delta, simulator.run(simulator.init(delta), 1)[0]

    uploads = []
    delta, backbone = make_trees()
    for client in make_clients():
        gradient = jax.grad(
            lambda d, c=client: mlp_loss(d, backbone, c, None)[0].mean()
        )(delta)
        uploads.append(jax.tree.map(lambda g: 0.05 * g, gradient))
    expected = jax.tree.map(
        lambda d, *u: d - np.median(np.stack(u), axis=0), delta, *uploads
    )
    for how in (
        {"devices": 1, "block_size": 1},
        {"devices": 2, "block_size": 3},
        {"parallel": "pmap", "devices": 2},
    ):
        _, state = run(stack(median), **how)
        close(state.delta, expected)
    # A cohort that is not full: the empty place is no upload of zeros.
    ids = jnp.array([4, 1, 6, 0], jnp.int32)
    three = ffm.Sampler(
        init=tuple, draw=lambda s, k: (ids, jnp.int32(3), s), capacity=4
    )
    _, state = run(stack(median), cohort_size=4, sampler=three, devices=2)
    close(
        state.delta,
        jax.tree.map(
            lambda d, *u: d - np.median(np.stack([u[k] for k in (4, 1, 6)]), axis=0),
            delta,
            *uploads,
        ),
    )
    # Nor is a client that drops out; and the rows say whose they are.
    lost = ffm.Behaviour(drops=lambda client, round, key: client == 4)
    _, state = run(
        stack(median), cohort_size=4, sampler=three, devices=2, behaviour=lost
    )
    close(
        state.delta, jax.tree.map(lambda d, *u: d - (u[1] + u[6]) / 2, delta, *uploads)
    )
    six = stack(
        lambda kept, setting: jax.tree.map(
            lambda x: x[jnp.argmax(kept.active & (kept.ids == 6))], kept.values[0]
        )
    )
    _, state = run(six, cohort_size=4, sampler=three, devices=2)
    close(state.delta, jax.tree.map(lambda d, *u: d - u[6], delta, *uploads))


def full_batch(behaviour, **how):
    local = {"local_steps": 3, "batch_size": max(SIZES)}
    return simulate(
        2, local=local, cohort_size=8, sampler=everyone(8), behaviour=behaviour, **how
    )


def test_a_dropped_client_counts_nothing_but_its_download():
    drops = ffm.Behaviour(drops=lambda client, round, key: client == 5)
    state, metrics = full_batch(drops, uplink=lossy())
    ids = jnp.array([0, 1, 2, 3, 4, 6, 7], jnp.int32)
    without = ffm.Sampler(
        init=tuple, draw=lambda s, k: (ids, jnp.int32(7), s), capacity=7
    )
    expected, counted = simulate(
        2,
        local={"local_steps": 3, "batch_size": max(SIZES)},
        cohort_size=8,
        sampler=without,
        uplink=lossy(),
    )
    close(state.delta, expected.delta)
    close(
        state.carry.uplinks, expected.carry.uplinks
    )  # client 5 keeps what it had: zeros
    assert metrics["clients"].tolist() == [7, 7]
    assert metrics["uplink_bytes"].tolist() == counted["uplink_bytes"].tolist()
    assert metrics["downlink_bytes"].tolist() == [
        8 * n // 7 for n in counted["downlink_bytes"].tolist()
    ]


def test_a_dropped_clients_nan_stops_nothing():
    clients = make_clients()
    clients[5]["x"][:] = np.nan
    drops = ffm.Behaviour(drops=lambda client, round, key: client == 5)
    state, _ = full_batch(drops, clients=clients)
    assert np.isfinite(state.delta["w"]).all()
    with pytest.raises(ffm.NonFiniteClient, match="client 5"):
        full_batch(None, clients=clients)


def test_stragglers_do_fewer_steps_or_none():
    budgets = jnp.array([3, 1, 0, 2, 9, 3, 1, 0])
    state, metrics = full_batch(
        ffm.Behaviour(most_steps=lambda client, round, key: budgets[client])
    )
    assert metrics["clients"].tolist() == [6, 6]
    delta, backbone = make_trees()
    clients = make_clients()
    v = delta
    optimizer, velocity = optax.sgd(0.05, momentum=0.9), None
    server, moment = optax.sgd(0.7), None
    moment = server.init(v)
    for _ in range(2):
        total, weight = jax.tree.map(jnp.zeros_like, v), 0
        for k, client in enumerate(clients):
            local, velocity = v, optimizer.init(v)
            for _ in range(min(int(budgets[k]), 3)):
                gradient = jax.grad(
                    lambda d, c=client: mlp_loss(d, backbone, c, None)[0].mean()
                )(local)
                updates, velocity = optimizer.update(gradient, velocity, local)
                local = optax.apply_updates(local, updates)
            n = SIZES[k] if budgets[k] > 0 else 0
            total = jax.tree.map(lambda t, a, b, n=n: t + n * (a - b), total, v, local)
            weight += n
        updates, moment = server.update(
            jax.tree.map(lambda t, w=weight: t / w, total), moment, v
        )
        v = optax.apply_updates(v, updates)
    close(state.delta, v)


def test_random_drops_are_named_by_seed_and_agree_across_layouts():
    drops = ffm.Behaviour(
        drops=lambda client, round, key: jax.random.bernoulli(key, 0.4)
    )
    a, seen = full_batch(drops)
    b, other = full_batch(drops, devices=2, block_size=2)
    close(a.delta, b.delta)
    assert seen["clients"].tolist() == other["clients"].tolist()
    assert 0 < seen["clients"].sum() < 16


@pytest.mark.parametrize("how", [{}, {"data": "host"}])
def test_more_clients_than_fit_stop_the_run(how):
    ids = jnp.arange(4, dtype=jnp.int32)
    counts = jnp.array([4, 3, 5])

    def draw(state, key):
        return ids, counts[state], state + 1

    sampler = ffm.Sampler(init=lambda: jnp.int32(0), draw=draw, capacity=4)
    with pytest.raises(
        ffm.CohortOverflow,
        match="round 2: the sampler drew more clients than its capacity of 4",
    ) as caught:
        simulate(3, sampler=sampler, **how)
    assert caught.value.state.round == 2
    assert len(caught.value.metrics["loss"]) == 2
    assert (
        int(caught.value.state.carry.sampler) == 2
    )  # the draw that failed is not taken as done


@pytest.mark.parametrize(
    "how", [{}, {"data": "host", "states": "host"}], ids=["device", "host"]
)
def test_an_id_that_no_client_has_stops_the_run(how):
    sampler = ffm.Sampler(
        init=tuple,
        draw=lambda state, key: (jnp.array([3, 8], jnp.int32), jnp.int32(2), state),
        capacity=2,
    )
    with pytest.raises(
        ffm.UnknownClient, match="round 0: the sampler drew an id outside of 0 to 7"
    ) as caught:
        simulate(2, sampler=sampler, **how)
    np.testing.assert_array_equal(caught.value.state.delta["w"], make_trees()[0]["w"])


def test_the_loss_of_a_round_without_anybody_is_unknown():
    nobody = ffm.Sampler(
        init=tuple,
        draw=lambda state, key: (jnp.zeros(2, jnp.int32), jnp.int32(0), state),
        capacity=2,
    )
    state, metrics = simulate(2, sampler=nobody)
    assert np.isnan(metrics["loss"]).all()
    assert (
        metrics["uplink_bytes"].tolist() == metrics["downlink_bytes"].tolist() == [0, 0]
    )
    np.testing.assert_array_equal(state.delta["w"], make_trees()[0]["w"])


def test_a_state_of_another_shape_is_refused():
    plain = ffm.fedavg(ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=4)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        one = exchange.client(backbone, message)
        return lambda *args: one(*args)._replace(state={"count": jnp.zeros(3)})

    algorithm = plain._replace(
        exchanges=(exchange._replace(client=client),),
        client_init=lambda delta, key: {"count": jnp.zeros(2)},
    )
    delta, backbone = make_trees()
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(make_clients()),
        backbone=backbone,
        cohort_size=2,
    )
    with pytest.raises(
        ValueError,
        match=r"next state of a client is not like.*count: expected float32\[2\], got float32\[3\]",
    ):
        simulator.init(delta)


def test_summary_and_layout_choices():
    delta, backbone = make_trees()
    algorithm = ffm.fedavg(
        ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=4
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(make_clients()),
        backbone=backbone,
        cohort_size=6,
    )
    assert "call init" in repr(simulator)
    with pytest.raises(RuntimeError, match="call `init"):
        simulator.run(None, 1)
    simulator.init(delta)
    # Six tiny clients: one block on one device, though eight are there.
    assert simulator.plan == ffm.engine.Plan(1, 6, 1)
    text = repr(simulator)
    for part in (
        "8 clients",
        "trainable parameters: 16",
        "64 B up, 64 B down",
        "1 device × 1 blocks × 6 clients",
    ):
        assert part in text


def test_impossible_modes_are_refused():
    with pytest.raises(
        ValueError, match="model_parallel to divide the 3 devices, got 2"
    ):
        simulate(devices=3, model_parallel=2)
    with pytest.raises(
        ValueError,
        match="expected data to be one of 'auto', 'device', 'host', got data='disk'",
    ):
        simulate(data="disk")
    with pytest.raises(
        ValueError, match="model_parallel=1 with parallel='pmap', got model_parallel=2"
    ):
        simulate(devices=4, model_parallel=2, parallel="pmap")


def test_a_second_start_is_not_the_first_ones():
    """First states of spilled clients come from the delta of their own run."""
    delta, backbone = make_trees()
    algorithm = local_only(
        ffm.Task(mlp_loss), optax.sgd(0.0), local_steps=1, batch_size=4
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(make_clients()),
        backbone=backbone,
        cohort_size=3,
        states="host",
    )
    for factor in (1.0, 2.0):
        start = jax.tree.map(lambda x, f=factor: f * x, delta)
        state, _ = simulator.run(simulator.init(start), 1)
        store = state.carry.clients
        for found, expected in zip(
            jax.tree.leaves(store.rows[0]), jax.tree.leaves(start), strict=True
        ):
            np.testing.assert_array_equal(
                found[store.touched], np.broadcast_to(expected, (3, *expected.shape))
            )
