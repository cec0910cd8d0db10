"""MOON: its first round, its loss as the paper writes it, bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drift_problem import run

import fedjax_fm as ffm
from fedjax_fm.algorithms import moon
from fedjax_fm.algorithms.moon import _contrasted

ETA, TAU = 0.1, 0.5
WALK = {"local_steps": 3, "batch_size": 4}
RNG = np.random.default_rng(0)
START = RNG.normal(size=(3, 4)).astype(np.float32)
DATA = [
    {
        "x": RNG.normal(size=(n, 3)).astype(np.float32),
        "y": RNG.normal(size=n).astype(np.float32),
    }
    for n in (4, 2, 3)
]


def features(w, backbone, batch, key):
    return jnp.tanh(batch["x"] @ w)


def loss(w, backbone, batch, key):
    return (features(w, backbone, batch, key).sum(1) - batch["y"]) ** 2, {}


TASK = ffm.Task(loss)


def make(mu=2.0, **how):
    how = {"features": features, "temperature": TAU} | how
    return moon(TASK, optax.sgd(ETA), mu=mu, **how, **WALK)


def literal(w, sent, previous, x, scales=(1.0, 1.0, 1.0)):
    """Equation (3) of the paper, for one row at a time."""

    def of_row(row):
        models = (w, sent, previous)
        pairs = zip(scales, models, strict=True)
        z, z_g, z_p = (s * jnp.tanh(row @ m) for s, m in pairs)

        def cosine(a, b):
            return a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)

        near, far = jnp.exp(cosine(z, z_g) / TAU), jnp.exp(cosine(z, z_p) / TAU)
        return -jnp.log(near / (near + far))

    return jax.vmap(of_row)(x)


def test_the_first_time_it_is_fedavg():
    """Exactly: the contrast of a model with itself has no gradient."""
    plain, before, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), DATA, start=START)
    state, metrics, _ = run(make(), DATA, start=START)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6, atol=1e-7)
    assert metrics["contrast"][0] == pytest.approx(np.log(2), rel=1e-6)
    assert metrics["loss"][0] == pytest.approx(before["loss"][0] + 2 * np.log(2))
    assert metrics["uplink_bytes"].tolist() == before["uplink_bytes"].tolist()


def test_later_rounds_are_those_of_the_paper():
    state, metrics, _ = run(make(), DATA, 3, start=START)
    w, own = jnp.asarray(START), [None] * 3
    sizes = np.array([4, 2, 3])
    for _ in range(3):
        ends = []
        for k, client in enumerate(DATA):
            sent, previous = w, w if own[k] is None else own[k]

            def mean(v, client=client, sent=sent, previous=previous):
                contrast = literal(v, sent, previous, client["x"])
                return jnp.mean(loss(v, (), client, None)[0] + 2.0 * contrast)

            v = w
            for _ in range(3):
                v = v - ETA * jax.grad(mean)(v)
            own[k] = v
            ends.append(v)
        w = jnp.tensordot(sizes / sizes.sum(), jnp.stack(ends), 1).astype(jnp.float32)
    np.testing.assert_allclose(state.delta, w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.carry.clients.delta, own, rtol=1e-4, atol=1e-5)
    assert metrics["contrast"][2] != pytest.approx(np.log(2), abs=1e-3)


def test_a_client_that_comes_late_compares_with_what_it_is_sent():
    """Client 2 is first drawn in the second round, after w has moved."""
    cohorts = {"per_round": 2}  # 01, 20, ...
    state, _, simulator = run(make(), DATA, 1, start=START, **cohorts)
    assert state.carry.clients.exists.tolist() == [True, True, False]
    after, _ = simulator.run(state, 1)
    v = state.delta
    for _ in range(3):
        v = v - ETA * jax.grad(lambda u: jnp.mean(loss(u, (), DATA[2], None)[0]))(v)
    np.testing.assert_allclose(after.carry.clients.delta[2], v, rtol=1e-5, atol=1e-6)


def test_without_weight_it_is_fedavg():
    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), DATA, 3, start=START)
    state, _, _ = run(make(mu=0.0), DATA, 3, start=START)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6, atol=1e-7)


def test_the_contrast_has_bounds_and_knows_no_lengths():
    trees = [jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32) for _ in range(3)]
    batch = {name: jnp.asarray(array) for name, array in DATA[0].items()}

    def contrast(scale):
        def scaled(w, *rest):
            return scale * features(w, *rest)

        task = _contrasted(TASK, scaled, 1.0, TAU)(trees[1], trees[2])
        return task.loss(trees[0], (), batch, None)[1]["contrast"]

    expected = literal(*trees, batch["x"], scales=(0.01, 30.0, 1.0))
    for scale in (1e-6, 1.0, 1e6):
        np.testing.assert_allclose(contrast(scale), expected, rtol=1e-4)
    low, high = np.log1p(np.exp(-2 / TAU)), np.log1p(np.exp(2 / TAU))
    assert ((contrast(1.0) > low) & (contrast(1.0) < high)).all()


def test_features_of_zero_do_no_harm():
    def dead(w, backbone, batch, key):
        return jnp.maximum(batch["x"] @ w - 1e6, 0)

    plain, _, _ = run(ffm.fedavg(TASK, optax.sgd(ETA), **WALK), DATA, 2, start=START)
    state, _, _ = run(make(features=dead), DATA, 2, start=START)
    np.testing.assert_allclose(state.delta, plain.delta, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [None, "hidden", 3])
def test_features_are_a_function(bad):
    with pytest.raises(TypeError, match=r"expected features as .*the layer before"):
        make(features=bad)


def test_features_have_a_row_for_each_example():
    def averaged(w, *rest):
        return features(w, *rest).mean(0)

    with pytest.raises(ValueError, match=r"expected features float\[4, D\], .*float32"):
        run(make(features=averaged), DATA, start=START)
