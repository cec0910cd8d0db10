"""FedAdagrad, FedYogi and FedAdam of the paper, against a loop of its algorithm 2 in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.algorithms import server_optimizers

RATE = 0.1
DEFAULTS = {
    "adagrad": (0.0, None),
    "adam": (0.9, 0.99),
    "yogi": (0.9, 0.99),
}  # beta1, beta2 of the paper, appendix D
TAU = 1e-3


def paper(name, start, changes, *, rate=RATE, beta1=None, beta2=None, tau=TAU, v0=None):
    """All x of algorithm 2 (Reddi et al. 2020), given Delta_t, the mean of (client's
    end - start).
    """
    beta1 = DEFAULTS[name][0] if beta1 is None else beta1
    beta2 = DEFAULTS[name][1] if beta2 is None else beta2
    x, m, v, found = (
        np.asarray(start, np.float64),
        0.0,
        tau**2 if v0 is None else v0,
        [],
    )
    for change in np.asarray(changes, np.float64):
        m = beta1 * m + (1 - beta1) * change
        if name == "adagrad":
            v = v + change**2
        elif name == "yogi":
            v = v - (1 - beta2) * change**2 * np.sign(v - change**2)
        else:
            v = beta2 * v + (1 - beta2) * change**2
        x = x + rate * m / (np.sqrt(v) + tau)
        found.append(x)
    return np.stack(found)


def drawn(scale=1.0, rounds=6):
    """(x, Delta_t): sizes over six decades, zeros among them, so that Yogi's sign takes
    all its values.
    """
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.integers(-5, 1, (rounds, 8))
    changes = scale * sizes * rng.choice([-1, 0, 1], (rounds, 8), p=[0.4, 0.2, 0.4])
    return rng.normal(size=8), changes.astype(np.float32)


def walk(optimizer, start, changes):
    """All x of an optax optimizer, which is given the mean of (start - end)."""
    x = jnp.asarray(start, jnp.float32)
    state, found = optimizer.init(x), []
    for change in changes:
        updates, state = jax.jit(optimizer.update)(-jnp.asarray(change), state, x)
        x = x + updates
        found.append(x)
    return np.stack(found)


@pytest.mark.parametrize(
    "how", [{}, {"b1": 0.5, "tau": 0.1, "initial": 0.2}, {"tau": 1e-6}], ids=str
)
@pytest.mark.parametrize("name", DEFAULTS)
def test_is_the_papers_algorithm_two(name, how):
    start, changes = drawn()
    names = {"b1": "beta1", "tau": "tau", "initial": "v0"}
    expected = paper(
        name, start, changes, **{names[key]: value for key, value in how.items()}
    )
    found = walk(getattr(server_optimizers, name)(RATE, **how), start, changes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_beta2_is_honoured(name):
    start, changes = drawn()
    found = walk(getattr(server_optimizers, name)(RATE, b2=0.7), start, changes)
    np.testing.assert_allclose(
        found, paper(name, start, changes, beta2=0.7), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", DEFAULTS)
def test_is_not_what_optax_has_under_that_name(name):
    """Bias correction, epsilon and first accumulators differ, most of all in the first rounds."""
    start, changes = drawn()
    theirs = {
        "adam": optax.adam(RATE, b1=0.9, b2=0.99, eps=TAU),
        "yogi": optax.yogi(RATE, b1=0.9, b2=0.99, eps=TAU),
        "adagrad": optax.adagrad(RATE, initial_accumulator_value=TAU**2, eps=TAU),
    }[name]
    ours, others = (
        walk(getattr(server_optimizers, name)(RATE), start, changes),
        walk(theirs, start, changes),
    )
    assert np.abs(ours - others).max() > 0.01 * RATE


@pytest.mark.parametrize("name", DEFAULTS)
def test_without_a_change_only_momentum_moves(name):
    optimizer = getattr(server_optimizers, name)(RATE)
    found = walk(optimizer, np.zeros(3), np.zeros((3, 3)))
    np.testing.assert_array_equal(found, np.zeros((3, 3)))
    changes = np.stack([np.ones(2), np.zeros(2), np.zeros(2)])
    np.testing.assert_allclose(
        walk(optimizer, np.zeros(2), changes),
        paper(name, np.zeros(2), changes),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", DEFAULTS)
def test_in_federated_averaging(name):
    """Two rounds through the simulator; the mean of the clients' changes is what plain
    averaging adds.
    """
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients(sizes=(4, 4, 4)))

    def rounds(optimizer, start, n_rounds):
        algorithm = ffm.fedavg(
            ffm.Task(mlp_loss), optax.sgd(0.05), optimizer, local_steps=1, batch_size=4
        )
        one = ffm.Simulator(
            algorithm, population, backbone=backbone, cohort_size=3, devices=1
        )
        return one.run(one.init(start), n_rounds)[0].delta

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    optimizer = getattr(server_optimizers, name)(RATE)
    changes, at = [], delta
    for number in (1, 2):
        changes.append(flat(rounds(None, at, 1)) - flat(at))
        at = rounds(optimizer, delta, number)
    expected = paper(name, flat(delta), np.stack(changes))[-1]
    np.testing.assert_allclose(flat(at), expected, rtol=1e-3, atol=1e-4)


def test_a_schedule_of_rounds_is_followed():
    start, changes = drawn()
    schedule = optax.piecewise_constant_schedule(RATE, {2: 0.5})
    found = walk(server_optimizers.adam(schedule), start, changes)
    steps = np.diff(
        np.concatenate([start[None], paper("adam", start, changes)]), axis=0
    )
    halved = np.where(np.arange(len(steps)) >= 2, 0.5, 1.0)[:, None] * steps
    np.testing.assert_allclose(
        found, start + np.cumsum(halved, axis=0), rtol=1e-4, atol=1e-5
    )
