"""A sweep's lanes are the runs that one would do one after the other."""

import jax
import numpy as np
import optax
import pytest
from mlp_problem import lossy, make_clients, make_trees, mlp_loss

import fedjax_fm as ffm

LOCAL = {"epochs": 2, "batch_size": 4}


def make(lr=0.05, momentum=0.9):
    return ffm.fedavg(
        ffm.Task(mlp_loss), optax.sgd(lr, momentum=momentum), optax.sgd(0.7), **LOCAL
    )


def simulator(algorithm=None, seed=0, **how):
    delta, backbone = make_trees()
    how = {"cohort_size": 6, "devices": 2, "block_size": 2, "uplink": lossy()} | how
    population = ffm.Population.from_clients(make_clients())
    return delta, ffm.Simulator(
        algorithm or make(), population, backbone=backbone, seed=seed, **how
    )


def close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
    )


def test_lanes_equal_single_runs():
    delta, swept = simulator()
    result = ffm.sweep(
        swept, delta, 3, seeds=(3, 8), hyper={"lr": (0.02, 0.1)}, algorithm=make
    )
    assert result.seeds.tolist() == [3, 8, 3, 8]
    assert result.hyper["lr"].tolist() == [0.02, 0.02, 0.1, 0.1]
    assert result.metrics["loss"].shape == (4, 3)
    for lane in range(4):
        _, alone = simulator(
            make(result.hyper["lr"][lane]), seed=int(result.seeds[lane])
        )
        state, metrics = alone.run(alone.init(delta), 3)
        close(jax.tree.map(lambda x, k=lane: x[k], result.delta), state.delta)
        for name, values in metrics.items():
            np.testing.assert_allclose(result.metrics[name][lane], values, rtol=1e-5)
    assert result.rounds.tolist() == [3] * 4


def test_a_lanes_state_gives_the_clients_own_models():
    """Of a method with personal models; the server's model says nothing of them."""

    def personal(lr=0.05):
        return ffm.algorithms.ditto(
            ffm.Task(mlp_loss), optax.sgd(lr), penalty=0.5, **LOCAL
        )

    delta, swept = simulator(personal())
    rates = {"lr": (0.02, 0.1)}
    result = ffm.sweep(swept, delta, 3, seeds=(5,), hyper=rates, algorithm=personal)
    for lane, rate in enumerate(rates["lr"]):
        _, alone = simulator(personal(rate), seed=5)
        state, _ = alone.run(alone.init(delta), 3)
        for client in (None, 0, 4):
            close(swept.model(result.state(lane), client), alone.model(state, client))
    with pytest.raises(ValueError, match="lane"):
        result.state(2)


def test_seeds_alone_and_more_rounds_than_a_dispatch():
    delta, swept = simulator(uplink=None)
    result = ffm.sweep(swept, delta, 66, seeds=(1, 2))
    _, alone = simulator(seed=2, uplink=None)
    state, metrics = alone.run(alone.init(delta), 66)
    close(jax.tree.map(lambda x: x[1], result.delta), state.delta)
    np.testing.assert_allclose(result.metrics["loss"][1], metrics["loss"], rtol=1e-4)


def test_a_lane_that_diverges_stops_alone():
    delta, swept = simulator(uplink=None)
    result = ffm.sweep(swept, delta, 4, hyper={"lr": (0.05, 1e20)}, algorithm=make)
    assert result.rounds.tolist()[0] == 4
    assert result.rounds.tolist()[1] < 4
    assert np.isfinite(result.metrics["loss"][0]).all()
    assert np.isnan(result.metrics["loss"][1, -1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.delta))


def test_impossible_sweeps():
    delta, swept = simulator()
    with pytest.raises(ValueError, match="give `hyper` and `algorithm` together"):
        ffm.sweep(swept, delta, 3, hyper={"lr": (0.1,)})
    with pytest.raises(ValueError, match="a value of each name"):
        ffm.sweep(swept, delta, 3, hyper={"lr": ()}, algorithm=make)
    delta, streamed = simulator(data="host")
    with pytest.raises(ValueError, match="data and states on the device"):
        ffm.sweep(streamed, delta, 3)
