"""Numbers that no factory of privacy may be given: NaN, infinity, bool, text, out of bounds."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_values import Row, cases, is_refused, unlisted
from mlp_problem import mlp_loss

import fedjax_fm as ffm
from fedjax_fm import privacy
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg, update_noise
from fedjax_fm.population import samplers

POISSON = samplers.poisson(1000, 0.02)


def make(**how):
    how = {
        "noise": privacy.independent(),
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "batch_size": 4,
    } | how
    return dp_fedavg(ffm.Task(mlp_loss), optax.sgd(0.1), local_steps=1, **how)


def make_free(clip_norm):
    return make(clip_norm=clip_norm, noise_multiplier=0.0)


def make_adaptive(**values):
    return make(adaptive=AdaptiveClip(**values))


def accounting(rounds=10, delta=1e-5):
    return make(accounting=privacy.Accounting(POISSON, rounds, delta))


def clip_to(norm):
    return privacy.clip({"a": jnp.ones(3)}, norm)


def local_accounting(n_examples=10, rounds=3, delta=1e-5):
    found = privacy.LocalAccounting(n_examples, rounds, delta)
    return privacy.local_spent(1.0, found, batch_size=4)


LOCAL = {
    "noise_multiplier": 1.0,
    "accounting": privacy.LocalAccounting(10, 3, 1e-5),
    "batch_size": 4,
}
SPENT = {
    "sampler": POISSON,
    "noise": privacy.independent(),
    "noise_multiplier": 1.0,
    "rounds": 3,
    "delta": 1e-5,
}
SOUGHT = {
    "epsilon": 8.0,
    "sampler": POISSON,
    "noise": privacy.independent(),
    "rounds": 3,
    "delta": 1e-5,
}
ROWS = [
    Row(make, {"noise_multiplier": 1.0}, {"noise_multiplier": "real", "clip_norm": "real"}, "dp_fedavg"),
    Row(make_free, {"clip_norm": np.inf}, {"clip_norm": "real or infinite"}, "dp_fedavg without noise"),
    Row(make_adaptive, {"quantile": 0.5}, {"quantile": "real", "rate": "real", "count_noise": "real?"}, "adaptive"),
    Row(accounting, {"rounds": 10}, {"rounds": "whole", "delta": "real"}),
    Row(update_noise, {"noise_multiplier": 1.0, "count_noise": 2.0}, {"noise_multiplier": "real", "count_noise": "real"}),
    Row(privacy.spent, SPENT, {"noise_multiplier": "real", "rounds": "whole", "delta": "real"}),
    Row(privacy.multiplier_for, SOUGHT, {"epsilon": "real", "rounds": "whole", "delta": "real"}),
    Row(privacy.binary_tree, {"rounds_per_tree": 4}, {"rounds_per_tree": "whole", "completion": "flag"}),
    Row(privacy.square_root_coefficients, {"bands": 3}, {"bands": "whole"}),
    Row(privacy.local_spent, LOCAL, {"noise_multiplier": "real", "batch_size": "whole", "estimator": "choice", "passes": "whole?"}),
    Row(local_accounting, {}, {"n_examples": "whole", "rounds": "whole", "delta": "real"}),
    Row(clip_to, {"norm": 1.0}, {"norm": "real or infinite"}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _without_the_accountant(monkeypatch):
    """What is refused is refused before anything is accounted; the good values need no
    epsilon here.
    """
    if hasattr(privacy.accounting, "calibrated"):
        monkeypatch.setattr(privacy.accounting, "calibrated", lambda *_: 1.0)


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_bad_values_are_refused(row, parameter, value):
    is_refused(row, parameter, value)


def test_no_number_is_without_a_row():
    factories = [
        privacy.spent,
        privacy.multiplier_for,
        privacy.binary_tree,
        privacy.square_root_coefficients,
        privacy.local_spent,
    ]
    assert unlisted([*factories, update_noise], ROWS) == []


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: make(noise_multiplier=-0.1), "noise_multiplier >= 0"),
        (lambda: make(clip_norm=0.0), "clip_norm > 0"),
        (lambda: make_adaptive(quantile=1.5), "0 <= quantile <= 1"),
        (lambda: make_adaptive(rate=-1.0), "rate >= 0"),
        (lambda: accounting(rounds=0), "rounds >= 1"),
        (lambda: accounting(delta=0.0), "0 < delta < 1"),
        (lambda: make(noise="independent"), "noise='independent'"),
        (lambda: make(adaptive=0.5), "adaptive=0.5"),
        (lambda: make(accounting=(POISSON, 10, 1e-5)), "Accounting"),
        (
            lambda: privacy.spent("poisson", privacy.independent(), 1.0, 3, 1e-5),
            "sampler='poisson'",
        ),
        (lambda: privacy.spent(POISSON, "tree", 1.0, 3, 1e-5), "noise='tree'"),
        (lambda: privacy.banded([1.0, "0.5"]), "coefficients"),
        (lambda: privacy.banded([True, 0.5]), "coefficients"),
        (lambda: privacy.banded("abc"), "coefficients"),
        (lambda: privacy.banded([[1.0, 0.5]]), "coefficients"),
        (lambda: privacy.clip({"a": jnp.arange(3)}, 1.0), "a int32"),
        (lambda: privacy.clip({"a": jnp.ones(3, bool)}, 1.0), "a bool"),
        (lambda: privacy.clip({"a": jnp.ones(3, jnp.complex64)}, 1.0), "a complex64"),
        (lambda: privacy.clip({"a": jnp.ones(3)}, -1.0), "norm >= 0"),
    ],
)
def test_what_makes_no_sense_is_said(make_it, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_it()


def test_hyper_parameters_of_a_sweep_are_traced_values():
    """`ffm.sweep` makes the method from tracers: clip norm and noise may be swept, as
    optimizers' rates.
    """
    clients = [{"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.float32)}] * 6
    population = ffm.Population.from_clients(clients)
    delta = {"w": jnp.ones((3, 4)), "v": jnp.ones(4)}

    def simulator(algorithm):
        return ffm.Simulator(
            algorithm,
            population,
            backbone={"w": jnp.zeros((3, 4))},
            cohort_size=6,
            devices=1,
        )

    def of(clip_norm, noise_multiplier):
        return make(clip_norm=clip_norm, noise_multiplier=noise_multiplier)

    hyper = {"clip_norm": (0.01, 0.3), "noise_multiplier": (0.0, 0.5)}
    swept = ffm.sweep(simulator(make()), delta, 2, hyper=hyper, algorithm=of)
    for lane in range(4):
        alone = simulator(
            of(*(float(np.float32(swept.hyper[name][lane])) for name in hyper))
        )
        state, _ = alone.run(alone.init(delta), 2)
        np.testing.assert_allclose(
            swept.delta["w"][lane], state.delta["w"], rtol=2e-5, atol=1e-6
        )
