"""FedKSeed against closed forms, numpy and MeZO written out; what travels, and what a
rebuild gives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms.fedkseed import direction, fedkseed, probabilities, replay
from fedjax_fm.directions import shift
from fedjax_fm.engine.billing import unwrapped
from fedjax_fm.types import Aggregate, Behaviour, ClientData

KEY = jax.random.key(4)
WHOLE = {"local_steps": 3, "batch_size": 12}


def client(algorithm, delta, n_steps, arrays, backbone=()):
    """(message, what one client sends) when it is called by hand; its one batch is all
    of `arrays`.
    """
    (exchange,) = algorithm.exchanges
    message = unwrapped(
        exchange.broadcast(algorithm.init(delta, jax.random.key(9), None))
    )
    n = len(next(iter(arrays.values())))

    def batch(i):
        return (jax.tree.map(jnp.asarray, arrays), jnp.ones(n, bool))

    data = ClientData(
        id=jnp.int32(0),
        round=jnp.int32(0),
        n_examples=jnp.int32(n),
        n_steps=jnp.int32(n_steps),
        batch=batch,
        repeat=jnp.int32(0),
    )
    return message, jax.jit(
        lambda message: exchange.client(backbone, message)(message, (), data, KEY)
    )(message)


def z_of(message, seeds, size):
    """f32[len(seeds), size], the directions of a delta that is one vector, by jax.random alone."""
    master = jax.random.wrap_key_data(message["master"])
    keys = [
        jax.random.fold_in(jax.random.fold_in(master, int(seed)), 0) for seed in seeds
    ]
    return np.stack([jax.random.normal(key, (size,)) for key in keys])


def simulate(algorithm, rounds=2, clients=None, **how):
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(clients or make_clients())
    simulator = ffm.Simulator(
        algorithm,
        population,
        backbone=backbone,
        **({"cohort_size": 6, "seed": 3, "devices": 1} | how),
    )
    return simulator, *simulator.run(simulator.init(delta), rounds)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_of_a_quadratic_the_scalar_is_the_slope_for_any_epsilon(epsilon):
    """f = w'Aw/2 - b'w: g = z'(Aw - b) at every w_k on the way; a linear part alone likewise."""
    rng = np.random.default_rng(0)
    a, b, eta, start = (
        rng.normal(size=(4, 4)),
        rng.normal(size=4),
        0.05,
        rng.normal(size=4),
    )
    a = a + a.T

    def loss(w, backbone, batch, key):
        return (0.5 * w @ jnp.float32(a) @ w - jnp.float32(b) @ w + 0 * batch["x"], {})

    algorithm = fedkseed(
        ffm.Task(loss), eta, n_seeds=16, epsilon=epsilon, local_steps=5
    )
    message, output = client(
        algorithm, jnp.float32(start), 5, {"x": np.zeros(1, np.float32)}
    )
    w = start
    for z, found in zip(
        z_of(message, output.upload["seed"], 4), output.upload["scalar"], strict=True
    ):
        slope = z @ (a @ w - b)
        np.testing.assert_allclose(found, slope, rtol=2e-5, atol=2e-5 / epsilon)
        w = w - eta * slope * z


def test_the_mean_of_g_z_is_the_gradient_of_the_smoothed_loss():
    """f = sum w^4: E f(w + eps z) has gradient 4 w^3 + 12 eps^2 w, far from 4 w^3 at eps = 1."""
    n, w = 20_000, np.array([0.5, -1.0, 0.25], np.float32)

    def loss(delta, backbone, batch, key):
        return (jnp.sum(delta**4) + 0 * batch["x"], {})

    algorithm = fedkseed(
        ffm.Task(loss), 1e-12, n_seeds=1 << 30, epsilon=1.0, local_steps=n
    )
    message, output = client(
        algorithm, jnp.asarray(w), n, {"x": np.zeros(1, np.float32)}
    )
    master = jax.random.wrap_key_data(message["master"])

    def keyed(seed):
        return jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(master, seed), 0), (3,)
        )

    products = output.upload["scalar"][:, None] * jax.vmap(keyed)(output.upload["seed"])
    error = products.mean(axis=0) - (4 * w**3 + 12 * w)
    assert (np.abs(error) < 5 * products.std(axis=0) / np.sqrt(n)).all()
    assert np.abs(products.mean(axis=0) - 4 * w**3).max() > 5


def test_with_distinct_seeds_it_is_mezo():
    """MeZO written out on whole trees: +z, -2z, back, step; the same seeds and batches."""
    delta, backbone = make_trees()
    arrays, eta, epsilon = make_clients(sizes=(12,))[0], 0.01, 1e-2
    algorithm = fedkseed(
        ffm.Task(mlp_loss),
        eta,
        n_seeds=1 << 20,
        epsilon=epsilon,
        local_steps=6,
        batch_size=12,
    )
    message, output = client(algorithm, delta, 6, arrays, backbone)
    seeds = np.asarray(output.upload["seed"])
    assert len(set(seeds)) == 6
    assert seeds.dtype == np.uint32
    w, scalars = delta, []

    def moved(w, c, z):
        return jax.tree.map(lambda x, y: x + c * y, w, z)

    loss = jax.jit(lambda w: jnp.mean(mlp_loss(w, backbone, arrays, None)[0]))
    for seed in seeds:
        key = jax.random.fold_in(jax.random.wrap_key_data(message["master"]), seed)
        leaves, structure = jax.tree.flatten(w)
        z = [
            jax.random.normal(jax.random.fold_in(key, i), x.shape)
            for i, x in enumerate(leaves)
        ]
        z = jax.tree.unflatten(structure, z)
        up = moved(w, epsilon, z)
        down = moved(up, -2 * epsilon, z)
        scalars.append(float(loss(up) - loss(down)) / (2 * epsilon))
        w = moved(moved(down, epsilon, z), -eta * scalars[-1], z)
    np.testing.assert_allclose(output.upload["scalar"], scalars, rtol=1e-3, atol=1e-4)
    ascending = jnp.zeros(1 << 20).at[seeds].add(output.upload["scalar"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        replay(delta, message["master"], ascending, eta),
        w,
    )


def test_a_replay_is_the_list_of_steps_bit_for_bit_in_its_order():
    delta = make_trees()[0]
    master = jax.random.key_data(KEY)
    accumulators = (
        jnp.zeros(50).at[jnp.array([41, 3, 17])].set(jnp.array([0.5, -2.0, 0.25]))
    )
    expected = delta
    step = jax.jit(lambda w, seed, c: shift(w, direction(master, seed), c))
    for seed in (3, 17, 41):
        expected = step(expected, seed, -jnp.float32(0.1) * accumulators[seed])
    found = jax.jit(lambda d, a: replay(d, master, a, 0.1))(delta, accumulators)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_servers_model_is_a_rebuild_from_the_first_one_in_the_span_of_the_directions():
    algorithm = fedkseed(
        ffm.Task(mlp_loss), 0.01, n_seeds=8, epsilon=1e-2, pro=True, **WHOLE
    )
    _, state, metrics = simulate(algorithm, rounds=6)
    server, start = state.carry.server, make_trees()[0]
    rebuilt = replay(start, server.master, server.accumulators, 0.01)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), rebuilt, state.delta
    )

    def flat(tree):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

    moved = flat(state.delta) - flat(start)
    nothing = jax.tree.map(jnp.zeros_like, start)
    z = np.stack(
        [flat(shift(nothing, direction(server.master, seed), 1.0)) for seed in range(8)]
    )
    assert z.shape == (8, 16)  # half of all dimensions
    assert np.linalg.norm(moved) > 0.05
    np.testing.assert_allclose(
        moved, -0.01 * np.asarray(server.accumulators) @ z, atol=2e-6
    )
    assert metrics["loss"][-1] < metrics["loss"][0]


def test_bytes_are_those_of_the_paper_whatever_the_model():
    task = ffm.Task(
        lambda delta, backbone, batch, key: (batch["x"] * jnp.mean(delta), {})
    )
    population = ffm.Population.from_clients([{"x": np.ones(3, np.float32)}] * 2)
    for size in (1, 100_000):
        for pro, down in ((False, 16_384), (True, 32_768)):
            simulator = ffm.Simulator(
                fedkseed(task, 3e-7, pro=pro), population, cohort_size=2, devices=1
            )
            assert simulator.bytes_per_client(simulator.init(jnp.zeros(size))) == (
                1600,
                down,
            )
    assert 1600 + 16_384 == 17_984


def test_pairs_are_weighted_or_added():
    """Slope of client k is c_k z for every seed: a_s = sum over its pairs of p_k g, or of g."""
    values, sizes, eta = (1.0, -2.0), (3, 1), 1e-3

    def loss(delta, backbone, batch, key):
        return (batch["c"] * delta, {})

    for weighted, shares in ((True, (0.75, 0.25)), (False, (1.0, 1.0))):
        algorithm = fedkseed(
            ffm.Task(loss),
            eta,
            n_seeds=1,
            epsilon=0.1,
            weighted=weighted,
            local_steps=3,
        )
        (exchange,) = algorithm.exchanges
        state = algorithm.init(jnp.float32(0.0), KEY, None)
        outputs = [
            client(algorithm, jnp.float32(0.0), 3, {"c": np.full(n, c, np.float32)})[1]
            for n, c in zip(sizes, values, strict=True)
        ]
        lifted = [
            exchange.reduce.lift(state, output.upload, output.weight)
            for output in outputs
        ]
        total = jax.tree.map(lambda *parts: sum(parts), *lifted)
        master = jax.random.key_data(jax.random.key(9))  # what `client` has begun with
        after, _ = exchange.server(
            state._replace(master=master),
            Aggregate(exchange.reduce.finish(total, None), jnp.int32(2)),
            KEY,
        )
        z = float(jax.random.normal(jax.random.fold_in(direction(master, 0), 0), ()))
        expected = sum(
            3 * share * c * z for share, c in zip(shares, values, strict=True)
        )
        assert float(after.accumulators[0]) == pytest.approx(expected, rel=1e-5)
        assert float(after.delta) == pytest.approx(-eta * expected * z, rel=1e-5)


def test_pro_draws_where_scalars_were_large():
    """Probabilities as the authors' code has them, from the pairs that were sent, and
    draws that follow them.
    """
    n_seeds, clip, n = 6, 0.7, 4000

    def loss(delta, backbone, batch, key):
        return (batch["x"] * jnp.sum(delta), {})

    settings = {"n_seeds": n_seeds, "epsilon": 0.1, "pro": True, "history_clip": clip}
    algorithm = fedkseed(ffm.Task(loss), 1e-6, local_steps=40, **settings)
    delta, arrays = jnp.zeros(1), {"x": np.ones(1, np.float32)}
    state = algorithm.init(delta, jax.random.key(9), None)
    for same in (state.history, (jnp.full(n_seeds, 3.2), jnp.full(n_seeds, 2.0))):
        np.testing.assert_allclose(
            probabilities(same), np.full(n_seeds, 1 / n_seeds), rtol=1e-6
        )

    _, output = client(algorithm, delta, 40, arrays)
    (exchange,) = algorithm.exchanges
    total = exchange.reduce.lift(state, output.upload, output.weight)
    after, _ = exchange.server(
        state, Aggregate(exchange.reduce.finish(total, None), jnp.int32(1)), KEY
    )
    history = {seed: [0.0] for seed in range(n_seeds)}
    for seed, scalar in zip(
        *(np.asarray(output.upload[name]) for name in ("seed", "scalar")), strict=True
    ):
        history[int(seed)].append(float(scalar))
    mean = np.array(
        [
            np.mean(np.abs(np.clip(history[seed], -clip, clip)))
            for seed in range(n_seeds)
        ]
    )
    assert mean.max() > 0.6 > 0.4 > mean.min()
    expected = np.exp((mean - mean.min()) / (mean.max() + 1e-10 - mean.min()))
    expected /= expected.sum()
    np.testing.assert_allclose(probabilities(after.history), expected, rtol=1e-5)

    more = fedkseed(ffm.Task(loss), 1e-6, local_steps=n, **settings)._replace(
        init=lambda *_: after
    )
    _, output = client(more, delta, n, arrays)
    found = np.bincount(output.upload["seed"], minlength=n_seeds) / n
    assert (np.abs(found - expected) < 5 * np.sqrt(expected / n)).all()
    assert expected.max() > 2 * expected.min()


def test_stragglers_send_empty_pairs():
    full = fedkseed(
        ffm.Task(mlp_loss), 0.01, n_seeds=32, epsilon=1e-2, pro=True, **WHOLE
    )
    one = Behaviour(most_steps=lambda client, round_index, key: jnp.int32(1))
    _, state, metrics = simulate(full, rounds=1, behaviour=one)
    server = state.carry.server
    assert int(np.sum(server.history[1] - 1)) == 6  # of 18
    assert 1 <= np.count_nonzero(server.accumulators) <= 6
    assert metrics["uplink_bytes"][0] == 6 * 3 * 8


def test_with_other_seeds_at_the_server_the_loss_does_not_fall():
    """Least squares in 100 dimensions: a random walk of the same lengths leads away, in
    every direction alike.
    """
    rng = np.random.default_rng(0)
    x, w = (
        rng.normal(size=(200, 100)).astype(np.float32),
        rng.normal(size=100).astype(np.float32),
    )
    clients = [{"x": part, "y": part @ w} for part in np.split(x, 5)]

    def loss(delta, backbone, batch, key):
        return ((batch["x"] @ delta - batch["y"]) ** 2, {})

    algorithm = fedkseed(
        ffm.Task(loss), 1e-3, n_seeds=1024, epsilon=1e-2, local_steps=10, batch_size=40
    )
    (exchange,) = algorithm.exchanges

    def confused(state, aggregate, key):
        after, metrics = exchange.server(
            state._replace(master=state.master + 1), aggregate, key
        )
        return after._replace(master=state.master), metrics

    control = algorithm._replace(exchanges=(exchange._replace(server=confused),))
    ends = []
    for method in (algorithm, control):
        simulator = ffm.Simulator(
            method, ffm.Population.from_clients(clients), cohort_size=5, devices=1
        )
        state, _ = simulator.run(simulator.init(jnp.zeros(100)), 30)
        ends.append(np.mean((x @ (state.delta - w)) ** 2) / np.mean((x @ w) ** 2))
    assert ends[0] < 0.4
    assert ends[1] > 1


def test_what_cannot_be_replayed_is_refused():
    task = ffm.Task(mlp_loss)
    with pytest.raises(
        ValueError,
        match=r"expected weight_decay=0, got weight_decay=0.01: sums over rounds cannot replay",
    ):
        fedkseed(task, 0.1, weight_decay=0.01)
    with pytest.raises(
        ValueError,
        match="expected one learning_rate > 0 for all rounds, got learning_rate=",
    ):
        fedkseed(task, lambda step: 0.1)  # type: ignore[arg-type]
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(
            ValueError, match="expected learning_rate > 0, got learning_rate="
        ):
            fedkseed(task, rate)
    for name, value in (("n_seeds", 0), ("epsilon", 0.0), ("history_clip", -1.0)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            fedkseed(task, 0.1, **{name: value})
    with pytest.raises(
        ValueError, match="expected a whole number batch_size >= 1, got batch_size=0"
    ):
        fedkseed(task, 0.1, batch_size=0)
