"""Random channels draw anew for every client, round, exchange, passage of a loop and
leaf: errors of a cohort average out.

Equal messages from m clients through an unbiased channel have a mean whose variance is
1/m of one message's. Where clients share a key the mean is as bad as one message, and
nothing else in a run would tell."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_fm as ffm
from fedjax_fm import channels
from fedjax_fm.algorithms import weighted_mean
from fedjax_fm.channels import (
    chain,
    drive,
    eden,
    natural,
    per_leaf,
    quantize,
    random_k,
    ternary,
    top_k,
)
from fedjax_fm.engine import clients as clients_of_engine
from fedjax_fm.engine import round as round_of_engine
from fedjax_fm.engine.keys import Purpose, derive
from fedjax_fm.types import Algorithm, Batches, Channel, ClientOutput, Exchange, Repeat

N_CLIENTS, ROUNDS, N_ENTRIES = 16, 30, 48
SLOTS = (
    "first",
    "second",
    "passage 0",
    "passage 1",
)  # exchanges of a round: two, and one that is passed twice
ALONE = SLOTS[:1]  # a round of one exchange
MESSAGE = np.random.default_rng(0).uniform(0.5, 1.5, N_ENTRIES).astype(
    np.float32
) * np.float32(np.where(np.arange(N_ENTRIES) % 3, 1, -1))

RANDOM = {
    "random_k": lambda: random_k(0.4),
    "quantize": lambda: quantize(3),
    "quantize, l2": lambda: quantize(4, "l2", None),
    "ternary": lambda: ternary(16),
    "natural": natural,
    "eden": lambda: eden(2),
    "eden, mse": lambda: eden(1, "mse", 128),
    "drive": drive,
    "chain": lambda: chain(top_k(0.5), quantize(2)),
    "chain of random ones": lambda: chain(random_k(0.5), quantize(3)),
    "per_leaf": lambda: per_leaf(("a", quantize(3)), otherwise=quantize(3)),
}
# Without a key's help, or with a state that carries errors on.
NOT_RANDOM = {
    "anchored", "bernoulli_mask", "block_dropout", "cast", "error_feedback", "identity", "int_blocks", "nf4", "nnadq", "sign",
    "threshold", "top_k",
}  # fmt: skip


# Functions of layer_bits, no channels.
HELPERS = {"bit_widths", "noise_energies", "noise_that_costs", "rounded"}


class Seen(NamedTuple):
    """A server that changes nothing and writes down what it was sent."""

    delta: dict
    history: jax.Array  # f32[ROUNDS * exchanges, 2, N_ENTRIES]
    count: jax.Array  # i32[]


def watch(slots: tuple[str, ...], echo: bool) -> Algorithm:
    """Every client sends MESSAGE in two leaves, or with `echo` what it was sent;
    exchanges as `slots` says.
    """
    fixed = {"a": jnp.asarray(MESSAGE), "b": jnp.asarray(MESSAGE)}

    def client(backbone, message):
        def one(mine, state, data, key):
            return ClientOutput(upload=mine if echo else fixed, weight=jnp.float32(1))

        return one

    def server(state, aggregate, key):
        mean = jnp.stack([aggregate.value["a"], aggregate.value["b"]])
        history = state.history.at[state.count].set(mean)
        return Seen(state.delta, history, state.count + 1), {}

    def init(delta, key, setting):
        return Seen(fixed, jnp.zeros((ROUNDS * len(slots), 2, N_ENTRIES)), jnp.int32(0))

    exchange = Exchange(
        broadcast=lambda state: state.delta,
        client=client,
        server=server,
        reduce=weighted_mean(),
        batches=Batches(1, steps=1),
    )
    return Algorithm(
        init=init,
        exchanges=(exchange,)
        if slots == ALONE
        else (exchange, exchange, Repeat(2, (exchange,))),
    )


def history_of(
    uplink: Channel | None = None, downlink: Channel | None = None, slots=SLOTS, **how
) -> np.ndarray:
    """f64[ROUNDS, slots, leaves, entries]: the means that the server was given."""
    population = ffm.Population.from_clients(
        [{"x": np.zeros((1, 1), np.float32)}] * N_CLIENTS
    )
    simulator = ffm.Simulator(
        watch(slots, echo=uplink is None),
        population,
        cohort_size=N_CLIENTS,
        uplink=uplink,
        downlink=downlink,
        **({"devices": 1} | how),
    )
    state, _ = simulator.run(simulator.init({"a": MESSAGE, "b": MESSAGE}), ROUNDS)
    means = np.asarray(state.carry.server.history, np.float64)
    return means.reshape(ROUNDS, len(slots), 2, N_ENTRIES)


def variance_of_one(channel: Channel, draws: int = 3000) -> float:
    """Of one message, summed over entries, under keys that nobody shares."""
    tree = {"a": MESSAGE, "b": MESSAGE}

    def send(key):
        return channel.decode(channel.encode(channel.init(tree), tree, key)[0])

    sent = jax.jit(jax.vmap(send))(jax.random.split(jax.random.key(99), draws))
    return float(
        sum(
            np.asarray(leaf, np.float64).var(axis=0, ddof=1).sum()
            for leaf in sent.values()
        )
    )


@functools.cache
def of_one_quantised() -> float:
    return variance_of_one(quantize(3))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Of the errors of two series [rounds, ...], all entries together."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float((x * y).sum() / np.sqrt(max((x * x).sum() * (y * y).sum(), 1e-30)))


def dependences(means: np.ndarray, of_one: float, n_averaged: int) -> list[str]:
    """What is not as with independent draws."""
    found = []
    for slot, name in enumerate(SLOTS[: means.shape[1]]):
        ratio = n_averaged * means[:, slot].var(axis=0, ddof=1).sum() / of_one
        if ratio > 1.3:
            found.append("clients")
        if ratio < 0.75:
            found.append("rounds")
        if abs(correlation(means[1:, slot], means[:-1, slot])) > 0.15:
            found.append("rounds")
        if abs(correlation(means[:, slot, 0], means[:, slot, 1])) > 0.15:
            found.append("leaves")
        for other in range(slot):
            if abs(correlation(means[:, slot], means[:, other])) > 0.15:
                found.append(f"{SLOTS[other]} and {name}")
    return sorted(set(found))


@pytest.mark.parametrize("name", RANDOM)
def test_the_errors_of_a_cohort_average_out(name):
    channel = RANDOM[name]()
    assert (
        dependences(
            history_of(channel, slots=ALONE), variance_of_one(channel), N_CLIENTS
        )
        == []
    )


LAYOUTS = {
    "one by one": {"block_size": 1},
    "blocks of three": {"block_size": 3},
    "two devices": {"devices": 2, "block_size": 4},
    "pmap": {"devices": 2, "parallel": "pmap", "block_size": 8},
    "streamed": {"data": "host", "states": "host"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_every_layout(layout):
    means = history_of(quantize(3), slots=ALONE, **LAYOUTS[layout])
    assert dependences(means, of_one_quantised(), N_CLIENTS) == []


def test_in_every_exchange_and_passage():
    assert dependences(history_of(quantize(3)), of_one_quantised(), N_CLIENTS) == []


@pytest.mark.parametrize("name", ["quantize", "natural"])
def test_the_server_draws_once_an_exchange(name):
    """All clients of an exchange are sent the same, so the mean of what they got varies
    as one message does.
    """
    channel = RANDOM[name]()
    assert dependences(history_of(None, channel), variance_of_one(channel), 1) == []


def test_every_channel_is_in_the_table_or_said_not_to_be_random():
    factories = {
        name
        for name in channels.__all__
        if name.islower() and not name.endswith(("bits", "lengths"))
    } - HELPERS
    in_table = {
        make.__name__
        for make in (chain, drive, eden, natural, per_leaf, quantize, random_k, ternary)
    }
    assert factories == in_table | NOT_RANDOM
    assert {name.split(",")[0].split(" ")[0] for name in RANDOM} == in_table


def one_key_for_all(key, purpose, *names):
    return derive(key, purpose, *(() if purpose == Purpose.UPLINK else names))


def one_key_for_two(key, purpose, *names):
    return derive(
        key,
        purpose,
        *((names[0] // 2, *names[1:]) if purpose == Purpose.UPLINK else names),
    )


def one_key_for_all_rounds(key, purpose, *names):
    return derive(
        jax.random.key(0) if purpose == Purpose.UPLINK else key, purpose, *names
    )


def one_key_for_both_exchanges(key, purpose, *names):
    return derive(key, purpose, *(names[:1] if purpose == Purpose.UPLINK else names))


def one_key_for_all_passages(key, purpose, *names):
    return derive(key, purpose, *(() if purpose == Purpose.REPEAT else names))


def one_key_for_leaves(channel: Channel) -> Channel:
    """Every leaf as a message of its own, all under one key."""

    def init(shapes):
        return jax.tree.map(channel.init, shapes)

    def encode(state, tree, key):
        return jax.tree.map(lambda leaf: channel.encode((), leaf, key)[0], tree), state

    def decode(payload):
        return {name: channel.decode(part) for name, part in payload.items()}

    return Channel(
        init=init,
        encode=encode,
        decode=decode,
        bits=lambda payload: sum(channel.bits(part) for part in payload.values()),
    )


PLANTED = {
    "clients": (one_key_for_all, "clients"),
    "pairs of clients": (one_key_for_two, "clients"),
    "rounds": (one_key_for_all_rounds, "rounds"),
    "exchanges": (one_key_for_both_exchanges, "first and second"),
    "passages": (one_key_for_all_passages, "passage 0 and passage 1"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_shared_key_would_be_seen(bug, monkeypatch):
    """The bugs that the tests above are for, planted."""
    planted, expected = PLANTED[bug]
    monkeypatch.setattr(clients_of_engine, "derive", planted)
    monkeypatch.setattr(round_of_engine, "derive", planted)
    assert expected in dependences(
        history_of(quantize(3)), of_one_quantised(), N_CLIENTS
    )


def test_a_key_that_leaves_share_would_be_seen():
    means = history_of(one_key_for_leaves(quantize(3)), slots=ALONE)
    assert "leaves" in dependences(means, of_one_quantised(), N_CLIENTS)
