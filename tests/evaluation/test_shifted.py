"""FedDPA's test-time shift: every input its own mix, against single models and numpy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.algorithms.feddpa import Adapters, feddpa_t
from fedjax_fm.evaluation import Instances, by_instance, evaluate, shifted_scores

TASKS = ("sums", "names", "colours")
rng = np.random.default_rng(0)
CENTRES = 4 * np.eye(3, 6).astype(np.float32)
OPTIMA = rng.normal(size=(3, 6)).astype(np.float32)


def rows(task, n, seed):
    """Inputs around the task's centre, with the task's own linear answer."""
    noise = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    x = CENTRES[task] + 0.3 * noise
    return {"x": x, "y": x @ OPTIMA[task]}


def loss(w, backbone, batch, key):
    return (batch["x"] @ w - batch["y"]) ** 2, {}


def loss_of_both(adapters, backbone, batch, key):
    g, p, a = adapters
    prediction = (1 - a) * (batch["x"] @ g) + a * (batch["x"] @ p)
    return (prediction - batch["y"]) ** 2, {}


def features(private, backbone, batch, key):
    return batch["x"]


BOTH = ffm.Task(loss_of_both)
ADAPTERS = Adapters(
    shared=jnp.asarray(OPTIMA[1]), private=jnp.asarray(OPTIMA[0]), mix=0.5
)
LOCAL = {"x": rows(0, 5, 1)["x"]}


def mixes(x, weighs):
    def unit(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    omega = 0.5 * (unit(x) @ unit(LOCAL["x"]).T).mean(axis=1)
    return omega if weighs == "private" else 1 - omega


@pytest.mark.parametrize("weighs", ["private", "shared"])
def test_every_example_has_its_own_mix(weighs):
    arrays = rows(0, 3, 2)
    for name, more in rows(1, 3, 3).items():
        arrays[name] = np.concatenate([arrays[name], more])
    task = by_instance(BOTH, features, omega_weighs=weighs)
    found = evaluate(task, Instances(ADAPTERS, LOCAL), (), arrays, batch_size=4)
    a = mixes(arrays["x"], weighs)
    np.testing.assert_allclose(found["mix"], a, rtol=1e-5)
    weights = (1 - a)[:, None] * OPTIMA[1] + a[:, None] * OPTIMA[0]
    expected = (np.sum(arrays["x"] * weights, axis=1) - arrays["y"]) ** 2
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-3, atol=1e-5)


def test_no_omega_is_the_shared_adapter_alone():
    arrays = rows(0, 4, 2)
    task = by_instance(BOTH, features, omega_max=0.0)
    found = evaluate(task, Instances(ADAPTERS, LOCAL), (), arrays)
    alone = evaluate(ffm.Task(loss), ADAPTERS.shared, (), arrays)
    np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-6)


def test_the_size_of_features_does_not_matter():
    arrays = rows(2, 4, 2)

    def larger(*given):
        return 7 * features(*given)

    delta = Instances(ADAPTERS, LOCAL)
    scores = [
        evaluate(by_instance(BOTH, one), delta, (), arrays)["loss"]
        for one in (features, larger)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_the_table_of_clients_and_tasks():
    """Three clients of FedDPA-T, one a task: the table is that of single evaluations."""
    clients = [rows(k, 20, 10 + k) for k in range(3)]
    how = {"local_steps": 5, "batch_size": 20}
    method = feddpa_t(ffm.Task(loss), BOTH, optax.sgd(0.02), **how)
    population = ffm.Population.from_clients(clients)
    one = ffm.Simulator(method, population, cohort_size=3, devices=1)
    state, _ = one.run(one.init(jnp.zeros(6)), 20)

    def models(client):
        return one.model(state, client)

    local = [{"x": client["x"][:5]} for client in clients]
    tests = {name: rows(k, 10, 20 + k) for k, name in enumerate(TASKS)}
    given = (BOTH, models, local, tests, TASKS)
    found = shifted_scores(*given, features=features, score="loss")
    for k in range(3):
        delta = Instances(models(k)[0], local[k])
        for t, name in enumerate(TASKS):
            scores = evaluate(by_instance(BOTH, features), delta, (), tests[name])
            np.testing.assert_allclose(
                found.table[k, t], scores["loss"].mean(), rtol=1e-6
            )
    np.testing.assert_array_equal(found.own, np.diag(found.table))
    others = (found.table.sum(1) - np.diag(found.table)) / 2
    np.testing.assert_allclose(found.shifted, others)
    assert found.tasks == TASKS
    # a fixed mix of one half for all, where what is asked resembles nothing of one's own
    fixed = shifted_scores(*given, features=None, score="loss")
    assert found.shifted.mean() < fixed.shifted.mean()
    for k in range(3):
        adapters, backbone = models(k)
        scores = evaluate(BOTH, adapters, backbone, tests[TASKS[0]])
        np.testing.assert_allclose(fixed.table[k, 0], scores["loss"].mean(), rtol=1e-6)


def test_impossible_arguments_are_refused():
    tests = {name: rows(k, 2, 0) for k, name in enumerate(TASKS)}

    def models(client):
        return ADAPTERS, ()

    def scores(tests=tests, own=("sums",), local=(LOCAL,), score="loss"):
        how = {"features": features, "score": score}
        return shifted_scores(BOTH, models, local, tests, own, **how)

    with pytest.raises(ValueError, match=r"two tasks or more, got \['sums'\]"):
        scores({"sums": tests["sums"]})
    with pytest.raises(ValueError, match=r"own tasks among .* got \['other'\]"):
        scores(own=["other"])
    with pytest.raises(ValueError, match="each of 1 clients, got 2"):
        scores(local=[LOCAL, LOCAL])
    with pytest.raises(ValueError, match=r"score to be one of .*got score='f1'"):
        scores(score="f1")
    with pytest.raises(TypeError, match=r"features\(private.*features=None"):
        by_instance(BOTH, None)
    assert scores().table.shape == (1, 3)
