"""Packed clients, permutations and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm import Population
from fedjax_fm.engine.data import DeviceData, client_data, n_steps
from fedjax_fm.population import samplers
from fedjax_fm.population.permutation import permuted
from fedjax_fm.types import Batches


@pytest.mark.parametrize("n", [1, 2, 5, 63, 64, 65, 100, 257, 1000, 4097])
def test_permuted_is_a_bijection(n):
    for seed in range(3):
        got = permuted(jax.random.key(seed), jnp.int32(n), jnp.arange(n), n)
        assert sorted(got.tolist()) == list(range(n))


def test_permuted_gives_the_same_value_alone_as_among_others():
    key = jax.random.key(5)
    whole = permuted(key, jnp.int32(500), jnp.arange(500), 500)
    some = permuted(key, jnp.int32(500), jnp.array([3, 400]), 500)
    assert some.tolist() == [int(whole[3]), int(whole[400])]


@pytest.mark.parametrize("n", [10, 200])
def test_every_value_is_equally_likely_in_the_first_place(n):
    draws = 20_000
    firsts = jax.vmap(lambda key: permuted(key, jnp.int32(n), jnp.array([0]), n)[0])(
        jax.random.split(jax.random.key(0), draws)
    )
    counts = np.bincount(np.asarray(firsts), minlength=n)
    chi2 = np.sum((counts - draws / n) ** 2 / (draws / n))
    assert abs(chi2 - (n - 1)) < 5 * np.sqrt(2 * (n - 1))


def test_an_epoch_visits_every_example_once_and_the_next_in_another_order():
    n, size = 11, 4
    arrays = {"i": jnp.arange(100, 100 + 2 * n)}
    data = DeviceData(arrays, jnp.array([0, n, 2 * n]))
    view = client_data(
        data,
        client=jnp.int32(1),
        place=jnp.int32(1),
        active=jnp.bool_(True),
        round_index=jnp.int32(0),
        batches=Batches(size, epochs=2),
        round_key=jax.random.key(0),
        n_max=n,
    )
    assert int(view.n_steps) == 6
    epochs = []
    for epoch in range(2):
        seen = []
        for step in range(3):
            batch, mask = view.batch(jnp.int32(3 * epoch + step))
            assert (
                mask.tolist() == [True] * 4 if step < 2 else [True, True, True, False]
            )
            seen += np.asarray(batch["i"])[np.asarray(mask)].tolist()
            assert set(np.asarray(batch["i"]).tolist()) <= set(
                range(100 + n, 100 + 2 * n)
            )  # padding is the client's own
        assert sorted(seen) == list(range(100 + n, 100 + 2 * n))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_inactive_clients_have_nothing():
    data = DeviceData({"i": jnp.arange(3)}, jnp.array([0, 3]))
    view = client_data(
        data,
        client=jnp.int32(9),
        place=jnp.int32(9),
        active=jnp.bool_(False),
        round_index=jnp.int32(0),
        batches=Batches(2, steps=5),
        round_key=jax.random.key(0),
        n_max=3,
    )
    assert int(view.n_examples) == 0
    assert int(view.n_steps) == 0


def test_numbers_of_steps():
    sizes = jnp.array([0, 1, 4, 5])
    assert n_steps(sizes, Batches(4, epochs=3)).tolist() == [0, 3, 3, 6]
    assert n_steps(sizes, Batches(4, steps=7)).tolist() == [0, 7, 7, 7]


def test_uniform_cohorts_are_distinct_and_fair():
    sampler = samplers.uniform(20, 5)
    draw = jax.jit(jax.vmap(lambda key: sampler.draw((), key)[0]))
    cohorts = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
    assert all(len(set(row)) == 5 for row in cohorts.tolist())
    shares = np.bincount(cohorts.reshape(-1), minlength=20) / 4000
    assert np.abs(shares - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_from_clients_and_from_arrays_agree():
    clients = [{"x": np.arange(2 * k).reshape(k, 2)} for k in (2, 0, 3)]
    a = Population.from_clients(clients)
    b = Population.from_arrays({"x": a.arrays["x"]}, np.array([0, 2, 2, 5]))
    assert b.arrays["x"] is a.arrays["x"]  # no copy
    assert a.sizes.tolist() == b.sizes.tolist() == [2, 0, 3]
    np.testing.assert_array_equal(a.client(2)["x"], clients[2]["x"])
    assert "3 clients, 5 examples, 0 to 3 a client" in repr(a)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Population.from_clients([]), "at least one client"),
        (
            lambda: Population.from_clients([{"x": np.ones(2)}, {"z": np.ones(2)}]),
            r"client 1 has arrays \['z'\]",
        ),
        (
            lambda: Population.from_clients([{"x": np.ones(2), "y": np.ones(3)}]),
            "client 0: arrays must share",
        ),
        (
            lambda: Population.from_clients(
                [{"x": np.ones((2, 3))}, {"x": np.ones((2, 4))}]
            ),
            r"client 1: 'x'.*\(4,\)",
        ),
        (
            lambda: Population.from_arrays({"x": np.ones(4)}, [0, 3]),
            "rise from 0 to the number of examples 4",
        ),
        (
            lambda: Population.from_arrays({"x": np.ones(4)}, [0, 3, 2, 4]),
            "a fall in between",
        ),
        (lambda: Population.from_arrays({}, [0, 1]), "at least one array"),
    ],
)
def test_bad_populations_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
