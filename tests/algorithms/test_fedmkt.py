"""FedMKT's round by a loop in numpy, for two vocabularies, and what it sends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_network import run
from two_vocabularies import (
    CLIENT,
    HOW,
    LARGE,
    LONG,
    SERVER,
    SHORT,
    SMALL,
    TASK,
    TEXTS,
    TO_CLIENT,
    TO_SERVER,
    clients,
    logits,
    logits_of,
    losses_of,
    slope,
    softmax,
    start,
    transferred,
)

from fedjax_fm.algorithms import Alignment, Models, Reader, fedmkt
from fedjax_fm.algorithms.knowledge import (
    Knowledge,
    knowledge_of,
    transfer_losses,
    translated,
)

RATE, K, SHARE, HEAT = 0.3, 3, 0.8, 2.0
SIZES = (4, 2, 3)
CLIENTS = clients(SIZES)


def make(**how):
    how = {
        "top_k": K,
        "share": SHARE,
        "temperature": HEAT,
        "transfer_optimizer": optax.sgd(RATE),
        "transfer_batch_size": TEXTS,
        "local_steps": 2,
        "batch_size": 8,
    } | how
    return fedmkt(TASK, optax.sgd(RATE), **(HOW | how))


def after(rounds, method=None, delta=None):
    method = make() if method is None else method
    return run(method, CLIENTS, start() if delta is None else delta, rounds)


def test_against_a_loop_in_numpy():
    simulator, state, metrics = after(3)
    large = np.float64(start().server)
    small = [np.float64(start().client) for _ in CLIENTS]
    how = {"k": K, "share": SHARE, "temperature": HEAT, "rate": RATE}
    taught = []
    for _ in range(3):
        for k, own in enumerate(CLIENTS):
            for _ in range(2):
                small[k] = small[k] - RATE * slope(small[k], own)
        losses = np.array([losses_of(table, CLIENT.public) for table in small])
        best = losses.argmin(0)
        teacher = np.stack([logits_of(small[b], CLIENT.public)[i] for i, b in enumerate(best)])  # fmt: skip
        better = losses.min(0) < losses_of(large, SERVER.public)
        taught.append(better.mean())
        large = transferred(large, SERVER.public, teacher, TO_SERVER, better, **how)
        known, of_server = logits_of(large, SERVER.public), losses_of(large, SERVER.public)  # fmt: skip
        for k in range(3):
            better = of_server < losses_of(small[k], CLIENT.public)
            small[k] = transferred(small[k], CLIENT.public, known, TO_CLIENT, better, **how)  # fmt: skip
    assert 0 < max(taught) <= 1
    np.testing.assert_allclose(metrics["taught"], taught, rtol=1e-6)
    np.testing.assert_allclose(state.delta.server, large, rtol=1e-3, atol=1e-4)
    for k in range(3):
        own, _ = simulator.model(state, client=k)
        np.testing.assert_allclose(own, small[k], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(simulator.model(state)[0], state.delta.server)


def test_bytes_do_not_depend_on_the_models():
    _, _, metrics = after(1)

    def of(positions, k, n_tokens):
        bits = max(1, (n_tokens - 1).bit_length())
        values = TEXTS * positions * k
        return 4 * values + math.ceil(values * bits / 8) + 4 * TEXTS

    assert metrics["uplink_bytes"].tolist() == [3 * of(SHORT, K, SMALL)]
    assert metrics["downlink_bytes"].tolist() == [3 * of(LONG, K, LARGE)]


def reader_of(table, reader):
    return knowledge_of(reader, table, (), k=reader.n_tokens, batch_size=2)


def test_all_tokens_are_the_whole_divergence():
    """k = V and equal tokenizers: T^2 KL of the logits."""
    reader = CLIENT.checked("client")
    rng = np.random.default_rng(0)
    own, other = rng.normal(size=(2, SMALL, SMALL)).astype("f4")
    same = Alignment(
        jnp.tile(jnp.arange(SHORT), (TEXTS, 1)),
        jnp.arange(SMALL),
    )
    found = reader_of(other, reader)
    np.testing.assert_allclose(found.losses, losses_of(other, CLIENT.public), rtol=1e-5)
    worse = jnp.full(TEXTS, jnp.inf)
    target = translated(found, reader, same, worse)
    labels = reader.public["labels"]
    losses = transfer_losses(logits(own, (), reader.public), target, labels, HEAT)
    p = softmax(np.float64(logits_of(other, CLIENT.public)) / HEAT)
    q = softmax(np.float64(logits_of(own, CLIENT.public)) / HEAT)
    apart = HEAT**2 * (p * np.log(p / q)).sum(-1)
    real = CLIENT.public["labels"] != -100
    expected = [a[r].mean() for a, r in zip(apart, real, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)

    def total(table):
        scores = logits(table, (), reader.public)
        return jnp.sum(transfer_losses(scores, target, labels, HEAT))

    assert np.abs(jax.grad(total)(jnp.asarray(other))).max() < 1e-5  # its own teacher
    assert np.abs(jax.grad(total)(jnp.asarray(own))).max() > 1e-2


def test_other_orders_of_the_public_texts_only_move_rows():
    reader = CLIENT.checked("client")
    table = np.random.default_rng(1).normal(size=(SMALL, SMALL)).astype("f4")
    order = np.array([3, 1, 4, 0, 2])
    moved = reader._replace(public={k: x[order] for k, x in reader.public.items()})
    first, second = (knowledge_of(r, table, (), k=4, batch_size=2) for r in (reader, moved))  # fmt: skip
    np.testing.assert_array_equal(first.values[order], second.values)
    np.testing.assert_array_equal(first.losses[order], second.losses)


def test_worse_teachers_teach_nothing():
    """Clients that are surely wrong: the server learns from the public texts alone."""
    large = np.zeros((LARGE, LARGE), "f4")
    delta = Models(large, 30 * start().client)
    _, state, metrics = after(1, delta=delta)
    assert metrics["taught"].tolist() == [0]
    alone = large - RATE * (1 - SHARE) * slope(large, SERVER.public)
    np.testing.assert_allclose(state.delta.server, alone, rtol=1e-4, atol=1e-6)


def test_more_tokens_than_there_are_is_all_of_them():
    wide, more = (after(1, make(top_k=k))[1] for k in (LARGE, LARGE + 99))
    np.testing.assert_array_equal(wide.delta.server, more.delta.server)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"share": 2.0}, "share=2.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"to_client": TO_SERVER}, r"to_client.positions as whole numbers \[5, 3\]"),
        ({"to_client": TO_CLIENT._replace(tokens=np.full(LARGE, SMALL))}, "to_client.tokens from 0 to 3, got 4 to 4"),
        ({"client": CLIENT._replace(public={"seen": np.zeros((5, 3))})}, r"client.public with labels .* the columns \['seen'\]"),
        ({"client": CLIENT._replace(public=CLIENT.public | {"seen": np.zeros((2, 3))})}, "columns of different lengths"),
        ({"client": CLIENT._replace(n_tokens=0)}, "client.n_tokens=0"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        make(**how)


def test_kinds_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match="expected client to be a Reader"):
        make(client=3)
    with pytest.raises(TypeError, match="expected to_server to be an Alignment"):
        make(to_server=None)
    with pytest.raises(TypeError, match=r"expected the delta Models\(server, client\)"):
        after(1, delta=(np.zeros(2), np.zeros(2)))


def test_what_travels_is_a_reader_away_from_the_logits():
    """The packed tokens are those of the largest logits."""
    reader = Reader(logits, SERVER.public, LARGE).checked("server")
    table = np.random.default_rng(2).normal(size=(LARGE, LARGE)).astype("f4")
    found = knowledge_of(reader, table, (), k=2, batch_size=5)
    assert isinstance(found, Knowledge)
    same = Alignment(jnp.tile(jnp.arange(LONG), (TEXTS, 1)), jnp.arange(LARGE))
    target = translated(found, reader, same, jnp.zeros(TEXTS))
    expected = np.argsort(-logits_of(table, SERVER.public), axis=-1)[..., :2]
    np.testing.assert_array_equal(target.tokens, expected)
    assert not np.asarray(target.better).any()
