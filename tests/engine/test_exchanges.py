"""Rounds of several exchanges: some clients only, a part for each, again and again; and
bytes that the data decide.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mlp_problem import SIZES, everyone, make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import weighted_mean
from fedjax_fm.engine.billing import limbs, of_limbs
from fedjax_fm.types import (
    Algorithm,
    Batches,
    Channel,
    ClientOutput,
    Exchange,
    Repeat,
    Unbilled,
)

N = len(SIZES)
LAYOUTS = [
    {"devices": 1, "block_size": N},
    {"devices": 1, "block_size": 1},
    {"devices": 2, "block_size": 2},
    {"devices": 4, "block_size": 1},
    {"devices": 2, "parallel": "pmap", "block_size": 2},
]


class State(NamedTuple):
    delta: dict


def whole_gradient(delta, backbone, data):
    """Of a client whose data fit one batch."""
    batch, mask = data.batch(data.repeat)
    return jax.grad(
        lambda d: (
            jnp.sum(jnp.where(mask, mlp_loss(d, backbone, batch, None)[0], 0))
            / data.n_examples
        )
    )(delta)


def descent(rate, takes=None, seen=None):
    """One exchange: every client sends its gradient, the server steps by the mean."""

    def client(backbone, message):
        def one(delta, state, data, key):
            count = jnp.float32(data.n_examples)
            metrics = {
                "count": (count, jnp.float32(1)),
                **({"seen": seen(data, key)} if seen else {}),
            }
            return ClientOutput(
                upload=whole_gradient(delta, backbone, data),
                weight=count,
                state=state + 1,
                metrics=metrics,
            )

        return one

    def server(state, aggregate, key):
        return State(
            jax.tree.map(lambda w, g: w - rate * g, state.delta, aggregate.value)
        ), {}

    return Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=Batches(max(SIZES), steps=1),
        selects=takes,
    )


def simulator(exchanges, uplink=None, **how):
    delta, backbone = make_trees()
    algorithm = Algorithm(
        init=lambda delta, key, setting: State(delta),
        exchanges=tuple(exchanges),
        client_init=lambda delta, key: jnp.int32(0),
    )
    population = ffm.Population.from_clients(make_clients())
    how = {"cohort_size": N, "sampler": everyone(N), "uplink": uplink} | how
    return ffm.Simulator(algorithm, population, backbone=backbone, **how), delta


def run(exchanges, rounds=1, uplink=None, **how):
    one, delta = simulator(exchanges, uplink, **how)
    return one.run(one.init(delta), rounds)


def by_hand(delta, groups, rate):
    """Steps by the example-weighted mean gradient of each group of clients in turn."""
    _, backbone = make_trees()
    clients = make_clients()
    for group in groups:
        total = jax.tree.map(jnp.zeros_like, delta)
        for k in group:
            batch = jax.tree.map(jnp.asarray, clients[k])
            gradient = jax.grad(
                lambda d, batch=batch: jnp.sum(mlp_loss(d, backbone, batch, None)[0])
            )(delta)
            total = jax.tree.map(jnp.add, total, gradient)
        n = sum(SIZES[k] for k in group)
        delta = jax.tree.map(lambda w, g, n=n: w - rate * g / n, delta, total)
    return delta


def close(a, b, rtol=2e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b
    )


def odd(message, client, key):
    return client % 2 == 1


def large(message, client, key):
    return client >= 6


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_only_those_who_take_an_exchange_are_computed(layout):
    state, metrics = run(
        [descent(0.1, odd), descent(0.2, large), descent(0.05)], **layout
    )
    groups = [[1, 3, 5, 7], [6, 7], range(N)]
    delta, _ = make_trees()
    for group, rate in zip(groups, (0.1, 0.2, 0.05), strict=True):
        delta = by_hand(delta, [group], rate)
    close(state.delta, delta)
    # Each client's state counts its exchanges.
    assert state.carry.clients.tolist() == [1, 2, 1, 2, 1, 2, 2, 3]
    one_way = 4 * (12 + 4)
    assert metrics["uplink_bytes"] == metrics["downlink_bytes"] == one_way * (4 + 2 + 8)
    assert metrics["clients"] == N
    assert metrics["examples"] == sum(SIZES)
    # A metric that several exchanges report is the mean over all reports.
    assert metrics["count"] == pytest.approx(
        sum(SIZES[k] for g in groups for k in g) / 14
    )


def test_those_who_take_nothing_do_not_count():
    state, metrics = run(
        [descent(0.1, odd), descent(0.2, large)], devices=2, block_size=2
    )
    assert metrics["clients"] == 5
    assert metrics["examples"] == sum(SIZES[k] for k in (1, 3, 5, 6, 7))
    assert state.carry.clients.tolist() == [0, 1, 0, 1, 0, 1, 1, 2]


def test_blocks_of_others_cost_nothing():
    """Whoever is not taken runs no step: a client that would loop for ever is never started."""
    calls = []

    def seen(data, key):
        jax.debug.callback(lambda k: calls.append(int(k)), data.id)
        return jnp.float32(0), jnp.float32(1)

    state, _ = run([descent(0.1, large, seen)], devices=2, block_size=1)
    jax.block_until_ready(state.delta)
    jax.effects_barrier()
    assert sorted(set(calls)) == [6, 7]


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_repeat_is_as_many_rounds(layout):
    state, metrics = run([Repeat(3, (descent(0.1), descent(0.2, odd)))], **layout)
    delta, _ = make_trees()
    for _ in range(3):
        delta = by_hand(by_hand(delta, [range(N)], 0.1), [[1, 3, 5, 7]], 0.2)
    close(state.delta, delta)
    assert state.carry.clients.tolist() == [3, 6] * 4
    assert metrics["uplink_bytes"] == 4 * 16 * 3 * (8 + 4)
    assert metrics["clients"] == N


def test_repeat_is_never_unrolled():
    traces = []

    def seen(data, key):
        traces.append(1)
        return jnp.float32(data.repeat), jnp.float32(1)

    _, metrics = run([Repeat(50, (descent(0.01, seen=seen),))], devices=1)
    assert metrics["seen"] == pytest.approx(24.5)  # passages are numbered 0 to 49
    assert len(traces) < 12


def test_each_passage_draws_anew_and_shuffles_stay():
    def seen(data, key):
        return jax.random.uniform(key), jnp.float32(1)

    def mean_of(times):
        return run([Repeat(times, (descent(0.0, seen=seen),))], devices=1)[1]["seen"][0]

    once, twice = mean_of(1), mean_of(2)
    assert once != twice
    # One epoch in passages of one batch each meets every example once.
    sizes, batch_size = (8,) * 4, 2

    def one_batch(backbone, message):
        def one(delta, state, data, key):
            batch, mask = data.batch(data.repeat)
            return ClientOutput(
                upload={"seen": jnp.sum(jnp.where(mask, batch["y"], 0))},
                weight=jnp.float32(1),
            )

        return one

    exchange = Exchange(
        broadcast=lambda state: Unbilled(()),
        client=one_batch,
        server=lambda state, aggregate, key: (
            State({"seen": state.delta["seen"] + aggregate.value["seen"]}),
            {},
        ),
        reduce=weighted_mean(),
        batches=Batches(batch_size, steps=1),
    )
    algorithm = Algorithm(
        init=lambda delta, key, setting: State(delta),
        exchanges=(Repeat(4, (exchange,)),),
    )
    clients = make_clients(sizes=sizes)
    one = ffm.Simulator(algorithm, ffm.Population.from_clients(clients), cohort_size=4)
    state, metrics = one.run(one.init({"seen": jnp.float32(0)}), 1)
    assert state.delta["seen"] == pytest.approx(
        np.mean([c["y"].sum() for c in clients]), rel=1e-5
    )
    assert metrics["downlink_bytes"] == 0


class Versions(NamedTuple):
    delta: jax.Array  # [3, 5], one row a version


def versions(address):
    def client(backbone, message):
        def one(mine, state, data, key):
            return ClientOutput(
                upload={"got": mine["row"].sum() + 0.0 * mine["number"]},
                weight=jnp.float32(1),
            )

        return one

    exchange = Exchange(
        broadcast=lambda state: {"rows": state.delta},
        client=client,
        server=lambda state, aggregate, key: (state, {"got": aggregate.value["got"]}),
        reduce=weighted_mean(),
        batches=Batches(4, steps=1),
        address=address,
    )
    return Algorithm(
        init=lambda delta, key, setting: Versions(delta), exchanges=(exchange,)
    )


def test_an_address_is_what_its_client_gets_and_pays_for():
    def address(message, state, client):
        return {
            "row": message["rows"][client % 3],
            "number": Unbilled(jnp.float32(client)),
        }

    table = jnp.arange(15.0).reshape(3, 5)
    population = ffm.Population.from_clients(make_clients())
    one = ffm.Simulator(
        versions(address), population, cohort_size=N, sampler=everyone(N)
    )
    _, metrics = one.run(one.init(table), 1)
    assert metrics["downlink_bytes"] == N * 5 * 4
    assert metrics["got"] == pytest.approx(
        np.mean([table[k % 3].sum() for k in range(N)])
    )
    with pytest.raises(ValueError, match="give downlink=None"):
        ffm.Simulator(
            versions(address), population, cohort_size=N, downlink=channels.quantize(4)
        ).init(table)


def by_the_data() -> Channel:
    """Sends the positive entries only, as if they had been packed."""
    plain = channels.identity()

    def bits(payload):
        return sum(
            32 * jnp.sum(x > 0, dtype=jnp.uint32) for x in jax.tree.leaves(payload)
        )

    return plain._replace(bits=bits)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bytes_that_the_data_decide_are_counted(layout):
    delta, backbone = make_trees()
    expected = 0
    for client in make_clients():
        batch = jax.tree.map(jnp.asarray, client)
        gradient = jax.grad(
            lambda d, batch=batch: jnp.mean(mlp_loss(d, backbone, batch, None)[0])
        )(delta)
        expected += 4 * sum(int((x > 0).sum()) for x in jax.tree.leaves(gradient))
    one, delta = simulator(
        [descent(0.1)], by_the_data(), downlink=by_the_data(), **layout
    )
    _, metrics = one.run(one.init(delta), 1)
    assert metrics["uplink_bytes"] == expected
    assert metrics["downlink_bytes"] == N * 4 * sum(
        int((x > 0).sum()) for x in jax.tree.leaves(delta)
    )
    assert "at most" in repr(one)


def silence():
    """An exchange in which nothing travels."""

    def client(backbone, message):
        return lambda mine, state, data, key: ClientOutput(
            upload=(), weight=jnp.float32(1), state=state
        )

    def server(state, aggregate, key):
        return (state, {})

    return Exchange(
        broadcast=lambda state: Unbilled(state.delta),
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=Batches(max(SIZES), steps=1),
    )


@pytest.mark.parametrize(
    "channel",
    [lambda: channels.error_feedback(channels.top_k(0.5)), by_the_data],
    ids=["lossy", "by the data"],
)
def test_what_sends_nothing_passes_no_channel(channel):
    """A lossy channel has nothing to select from; the other exchange goes as it goes by itself."""
    expected, seen = run([descent(0.1)], 2, channel(), downlink=channel())
    state, metrics = run([silence(), descent(0.1)], 2, channel(), downlink=channel())
    close(state.delta, expected.delta, rtol=1e-6)
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(metrics[name], seen[name])


def test_a_residual_of_entries_that_change_is_refused():
    lossy = channels.top_k(0.5)
    moving = descent(0.1)._replace(same_entries=False)
    run([moving], 1, lossy)
    inside = channels.per_leaf(otherwise=channels.error_feedback(lossy))
    for uplink in (channels.error_feedback(lossy), inside):
        run([descent(0.1)], 0, uplink)
        with pytest.raises(ValueError, match="exchange 0: the entries of an upload"):
            run([moving], 0, uplink)


def test_byte_sums_beyond_32_bits_are_exact():
    sizes = np.array([0, 1, 2047, 2048, 5_000_000, 2**31, 2**32 - 1], np.uint32)
    sums = np.asarray(jax.vmap(limbs)(jnp.asarray(sizes))).astype(np.uint32)
    assert of_limbs(sums).tolist() == sizes.tolist()
    assert (
        of_limbs(np.sum(np.repeat(sums, 300_000, axis=0), axis=0, dtype=np.uint32))
        == int(sizes.astype(int).sum()) * 300_000
    )


def test_a_round_that_goes_wrong_in_a_later_exchange_leaves_no_trace():
    def broken(backbone, message):
        def one(delta, state, data, key):
            bad = jnp.where(data.id == 3, jnp.nan, 1.0)
            return ClientOutput(
                upload=jax.tree.map(lambda x: x * bad, delta),
                weight=jnp.float32(1),
                state=state + 10,
            )

        return one

    one, delta = simulator(
        [descent(0.1), descent(0.1)._replace(client=broken)], devices=2, block_size=2
    )
    start = one.init(delta)
    with pytest.raises(ffm.NonFiniteClient, match="client 3") as error:
        one.run(start, 2)
    jax.tree.map(np.testing.assert_array_equal, error.value.state.carry, start.carry)


def test_spilled_states_pass_through_several_exchanges():
    exchanges = [descent(0.1, odd), Repeat(2, (descent(0.2),))]
    expected, _ = run(exchanges, rounds=2, devices=1)
    spilled, _ = run(exchanges, rounds=2, states="host", data="host", devices=2)
    close(spilled.delta, expected.delta)
    np.testing.assert_array_equal(spilled.carry.clients.rows[0], expected.carry.clients)
