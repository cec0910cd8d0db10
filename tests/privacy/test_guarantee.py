"""What a private method was accounted for travels with it: the simulator draws so,
stops there, and says what is spent.
"""

import json
import logging
import warnings

import dp_accounting as dp
import jax
import numpy as np
import optax
import pytest
from dp_accounting import rdp
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import privacy
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg
from fedjax_fm.population import samplers
from fedjax_fm.privacy import banded, binary_tree, independent, square_root_coefficients

N, RATE, ROUNDS, DELTA = 40, 0.1, 12, 1e-5
POISSON = samplers.poisson(N, RATE)


def clients(n=N):
    return make_clients(sizes=(3,) * n)


def method(multiplier=1.0, noise=None, **how):
    return dp_fedavg(
        ffm.Task(mlp_loss),
        optax.sgd(0.05),
        noise=noise or independent(),
        noise_multiplier=multiplier,
        clip_norm=0.5,
        local_steps=1,
        batch_size=3,
        **how,
    )


def accounted(sampler=POISSON, multiplier=1.0, rounds=ROUNDS, noise=None, **how):
    return method(
        multiplier, noise, accounting=privacy.Accounting(sampler, rounds, DELTA), **how
    )


def simulator(algorithm, sampler=POISSON, n=N, **how):
    delta, backbone = make_trees()
    how = {"cohort_size": 4, "devices": 1} | how
    one = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(clients(n)),
        backbone=backbone,
        sampler=sampler,
        **how,
    )
    return one, delta


def by_hand(sampler, multiplier, rounds):
    """dp_accounting's own answer."""
    law = sampler.law
    accountant = rdp.RdpAccountant()
    if isinstance(law, samplers.poisson(2, 0.5).law.__class__):
        event = dp.PoissonSampledDpEvent(law.rate, dp.GaussianDpEvent(multiplier))
    elif law is not None:
        accountant = rdp.RdpAccountant(
            neighboring_relation=dp.NeighboringRelation.REPLACE_ONE
        )
        event = dp.SampledWithoutReplacementDpEvent(
            law.n_clients, law.cohort_size, dp.GaussianDpEvent(multiplier / 2)
        )
    else:
        event = dp.GaussianDpEvent(multiplier)
    return accountant.compose(dp.SelfComposedDpEvent(event, rounds)).get_epsilon(DELTA)


@pytest.mark.parametrize(
    "sampler",
    [POISSON, samplers.uniform(N, 4), samplers.cyclic(N, 4)],
    ids=["p", "u", "c"],
)
def test_epsilon_of_each_round_is_in_the_metrics(sampler):
    one, delta = simulator(accounted(sampler, 1.5), sampler)
    state, metrics = one.run(one.init(delta), 5)
    expected = [by_hand(sampler, 1.5, t) for t in range(1, 6)]
    np.testing.assert_allclose(metrics["epsilon"], expected, rtol=1e-6)
    assert metrics["epsilon"].dtype == np.float64
    _, more = one.run(state, 2)
    np.testing.assert_allclose(
        more["epsilon"], [by_hand(sampler, 1.5, t) for t in (6, 7)], rtol=1e-6
    )
    json.dumps(metrics["epsilon"].tolist())


@pytest.mark.parametrize(
    ("noise", "sampler"),
    [
        (binary_tree(4), samplers.spaced(N, 4, 4)),
        (binary_tree(3, completion=True), samplers.spaced(N, 4, 5)),
        (banded(square_root_coefficients(4)), samplers.spaced(N, 4, 4, 2)),
        (banded(square_root_coefficients(12)), samplers.spaced(N, 4, 1, 1)),
        (independent(), samplers.spaced(N, 4, 1)),
    ]
    if "completion" in binary_tree.__code__.co_varnames
    else [(binary_tree(4), samplers.spaced(N, 4, 4))],
)
def test_epsilon_of_correlated_noise_after_each_round_is_that_of_so_many_rounds(
    noise, sampler
):
    one, delta = simulator(accounted(sampler, 3.0, noise=noise), sampler)
    _, metrics = one.run(one.init(delta), ROUNDS)
    expected = [
        privacy.spent(sampler, noise, 3.0, t, DELTA).epsilon
        for t in range(1, ROUNDS + 1)
    ]
    np.testing.assert_allclose(metrics["epsilon"], expected, rtol=1e-9)
    bound = privacy.sensitivity(noise.strategy(ROUNDS), sampler.law)
    whole = (
        rdp.RdpAccountant().compose(dp.GaussianDpEvent(3.0 / bound)).get_epsilon(DELTA)
    )
    assert metrics["epsilon"][-1] == pytest.approx(whole, rel=1e-6)


def test_a_resumed_run_has_spent_what_an_unbroken_one_has():
    one, delta = simulator(accounted())
    _, whole = one.run(one.init(delta), ROUNDS)
    state, first = one.run(one.init(delta), 5)
    again, _ = simulator(accounted())
    leaves = [
        np.asarray(x) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    saved = jax.tree.unflatten(jax.tree.structure(again.init(delta)), leaves)
    _, second = again.run(jax.tree.map(jax.numpy.asarray, saved), ROUNDS - 5)
    assert (
        np.concatenate([first["epsilon"], second["epsilon"]]).tolist()
        == whole["epsilon"].tolist()
    )


def test_a_multiplier_brings_what_it_was_made_for():
    z = privacy.multiplier_for(4.0, POISSON, independent(), ROUNDS, DELTA)
    assert isinstance(z, float)
    assert (z.accounted.law, z.accounted.rounds, z.accounted.delta) == (
        POISSON.law,
        ROUNDS,
        DELTA,
    )
    one, delta = simulator(method(z))
    _, metrics = one.run(one.init(delta), ROUNDS)
    assert metrics["epsilon"][-1] == pytest.approx(
        privacy.spent(POISSON, independent(), z, ROUNDS, DELTA).epsilon
    )
    assert 3.99 < metrics["epsilon"][-1] <= 4.0
    assert type(2 * z) is float  # other noise, nothing known of it
    assert method(2 * z).privacy.epsilon is None
    assert method(float(z)).privacy.epsilon is None
    assert json.loads(json.dumps(z)) == float(z)


@pytest.mark.parametrize(
    ("sampler", "names"),
    [
        (None, [r"Poisson\(rate=0.1\)", r"WithoutReplacement\(n_clients=40, cohort_size=4\)", r"samplers.poisson\(40, 0.1\)"]),
        (samplers.poisson(N, 0.11), [r"rate=0.1\)", r"rate=0.11"]),
        (samplers.uniform(N, 4), ["WithoutReplacement"]),
        (samplers.spaced(N, 4, 5), ["Spaced"]),
        (samplers.cyclic(N, 4), ["nothing"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_hand", [False, True])
def test_another_sampler_than_the_accounted_one_is_refused(
    sampler, names, by_hand, monkeypatch
):
    made = accounted() if by_hand else method(_multiplier())
    for name in names:
        with pytest.raises(ValueError, match=name):
            simulator(made, sampler)


def _multiplier():
    return privacy.multiplier_for(
        8.0, samplers.cyclic(N, 4)._replace(law=POISSON.law), independent(), 2, DELTA
    )


def test_laws_of_other_kinds_with_equal_numbers_differ():
    """As tuples `Spaced(40, 4)` and `WithoutReplacement(40, 4)` are equal."""
    made = accounted(samplers.uniform(N, 4))
    with pytest.raises(ValueError, match=r"WithoutReplacement.*Spaced"):
        simulator(made, samplers.spaced(N, 4, 40, 4))


def test_a_population_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"40.*41|41.*40"):
        simulator(accounted(samplers.uniform(N, 4)), samplers.uniform(N, 4), n=N + 1)


def test_more_rounds_than_accounted_are_refused():
    one, delta = simulator(accounted())
    state, _ = one.run(one.init(delta), 10)
    with pytest.raises(ValueError, match=r"12 rounds.*10.*3"):
        one.run(state, 3)
    state, _ = one.run(state, 2)
    with pytest.raises(ValueError, match="12 rounds"):
        one.run(state, 1)
    one.run(state, 0)


@pytest.mark.parametrize(
    ("sampler", "right", "wrong"),
    [
        (POISSON, 4, 5),
        (samplers.poisson(N, 0.06), 2, 4),
        (samplers.uniform(N, 4), 4, 40),
    ],
)
@pytest.mark.parametrize("with_accounting", [True, False])
def test_a_cohort_size_that_is_not_the_samplers_mean_is_refused(
    sampler, right, wrong, with_accounting
):
    made = accounted(sampler) if with_accounting else method()
    simulator(made, sampler, cohort_size=right)
    with pytest.raises(ValueError, match=rf"cohort_size={wrong}.*cohort_size={right}"):
        simulator(made, sampler, cohort_size=wrong)


def test_a_sampler_of_this_law_and_another_object_is_the_same():
    simulator(accounted(), samplers.poisson(N, 4 / N, capacity=30))


def test_noise_must_be_the_one_that_was_accounted_for():
    sampler = samplers.spaced(N, 4, 4)
    z = privacy.multiplier_for(4.0, sampler, binary_tree(4), ROUNDS, DELTA)
    method(z, binary_tree(4))  # equal by value
    for other in (binary_tree(2), independent(), banded([1.0, 0.5])):
        with pytest.raises(ValueError, match="other noise"):
            method(z, other)
    with pytest.raises(ValueError, match="twice"):
        method(
            z, binary_tree(4), accounting=privacy.Accounting(sampler, ROUNDS + 1, DELTA)
        )
    method(z, binary_tree(4), accounting=privacy.Accounting(sampler, ROUNDS, DELTA))


def test_what_cannot_be_accounted_for_is_refused_by_the_factory():
    with pytest.raises(ValueError, match=r"samplers\.spaced"):
        accounted(POISSON, noise=binary_tree(4))
    with pytest.raises(ValueError, match="noise_multiplier=0"):
        accounted(multiplier=0.0)


def test_the_summary_says_what_is_guaranteed():
    one, delta = simulator(accounted())
    epsilon = by_hand(POISSON, 1.0, ROUNDS)
    for _ in range(2):
        (line,) = [line for line in repr(one).splitlines() if "privacy:" in line]
        for part in (
            f"epsilon {epsilon:.3g}",
            "delta 1e-05",
            "12 rounds",
            "one client more or less",
            "Poisson sampling",
        ):
            assert part in line
        one.init(delta)
    assert "diagnostics" in repr(one)
    unaccounted, _ = simulator(method())
    assert "noise is added, but nothing is accounted" in repr(unaccounted)
    none, _ = simulator(method(0.0))
    assert "noise_multiplier=0" in repr(none)
    plain, _ = simulator(
        ffm.fedavg(ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=3)
    )
    assert "privacy" not in repr(plain)


def test_methods_without_accounting_report_no_epsilon():
    for made in (method(), method(0.0)):
        one, delta = simulator(made)
        _, metrics = one.run(one.init(delta), 1)
        assert "epsilon" not in metrics


def test_what_is_released_is_named():
    """Everything else of the metrics is exact: what a simulator sees and a deployment would not."""
    made = accounted(adaptive=AdaptiveClip(count_noise=3.0))
    one, delta = simulator(made)
    _, metrics = one.run(one.init(delta), 2)
    assert set(made.privacy.released) == {"clip_norm", "within_clip"} <= set(metrics)
    assert set(metrics) - set(made.privacy.released) >= {"loss", "examples", "clients"}
    assert set(method().privacy.released) == {"clip_norm"}
    assert method(0.0).privacy.released == ()


def test_adaptive_methods_are_accounted_as_a_whole():
    """The multiplier is what update and count are worth together, so the epsilon is
    that of the multiplier.
    """
    one, delta = simulator(accounted(adaptive=AdaptiveClip(count_noise=3.0)))
    _, metrics = one.run(one.init(delta), 3)
    np.testing.assert_allclose(
        metrics["epsilon"], [by_hand(POISSON, 1.0, t) for t in (1, 2, 3)], rtol=1e-6
    )


def test_a_round_that_goes_wrong_spends_nothing():
    bad = clients()
    bad[3]["x"] = np.full_like(bad[3]["x"], np.nan)
    everyone = samplers.fixed(list(range(N)))
    _, delta = simulator(method())
    _, backbone = make_trees()
    one = ffm.Simulator(
        accounted(everyone),
        ffm.Population.from_clients(bad),
        backbone=backbone,
        cohort_size=N,
        sampler=everyone,
        devices=1,
    )
    with pytest.raises(ffm.NonFiniteClient) as raised:
        one.run(one.init(delta), 3)
    assert len(raised.value.metrics.get("epsilon", ())) == raised.value.round == 0


def test_sweeps_are_held_to_it_too():
    one, delta = simulator(accounted())
    swept = ffm.sweep(one, delta, 3, seeds=(1, 2))
    np.testing.assert_allclose(
        swept.metrics["epsilon"],
        [[by_hand(POISSON, 1.0, t) for t in (1, 2, 3)]] * 2,
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match="12 rounds"):
        ffm.sweep(one, delta, 13, seeds=(1, 2))

    def of(rate):
        return dp_fedavg(
            ffm.Task(mlp_loss),
            optax.sgd(rate),
            noise=independent(),
            noise_multiplier=1.0,
            clip_norm=0.5,
            local_steps=1,
            batch_size=3,
            accounting=privacy.Accounting(POISSON, 2, DELTA),
        )

    swept = ffm.sweep(one, delta, 2, hyper={"rate": (0.01, 0.1)}, algorithm=of)
    np.testing.assert_allclose(
        swept.metrics["epsilon"],
        [[by_hand(POISSON, 1.0, t) for t in (1, 2)]] * 2,
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match="2 rounds"):
        ffm.sweep(one, delta, 3, hyper={"rate": (0.01, 0.1)}, algorithm=of)
    other = samplers.poisson(N, 0.2)

    def of_noise(z):
        return accounted(multiplier=z)

    swept = ffm.sweep(one, delta, 2, hyper={"z": (1.0, 2.0)}, algorithm=of_noise)
    expected = [[by_hand(POISSON, z, t) for t in (1, 2)] for z in (1.0, 2.0)]
    np.testing.assert_allclose(swept.metrics["epsilon"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="Poisson"):
        ffm.sweep(
            simulator(method(), other, cohort_size=8)[0],
            delta,
            2,
            hyper={"rate": (0.01,)},
            algorithm=of,
        )


@pytest.mark.parametrize("target", [8.0, 0.7])
def test_calibration_is_silent(target, caplog, capfd):
    """The accountant says of each order that did not converge that it leaves it out:
    dozens of lines, and nothing to do.
    """
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = privacy.multiplier_for(
            target, samplers.poisson(1000, 0.02), independent(), 200, DELTA
        )
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    event = dp.PoissonSampledDpEvent(0.02, dp.GaussianDpEvent(float(found)))
    own = (
        rdp.RdpAccountant()
        .compose(dp.SelfComposedDpEvent(event, 200))
        .get_epsilon(DELTA)
    )
    assert privacy.spent(
        samplers.poisson(1000, 0.02), independent(), found, 200, DELTA
    ).epsilon == pytest.approx(own, rel=1e-6)
    assert 0.99 * target < own <= target


def test_other_words_of_the_accountant_are_heard(caplog):
    """Only the one message is dropped, and only while we calibrate."""
    from absl import logging as absl_logging

    privacy.multiplier_for(8.0, samplers.poisson(100, 0.2), independent(), 2, DELTA)
    with caplog.at_level(logging.WARNING):
        absl_logging.warning(
            "alpha=2. Excluding this order from the epsilon computation."
        )
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("sampler", "relation"),
    [
        (POISSON, "one client more or less"),
        (samplers.uniform(N, 4), "one client's data replaced"),
        (samplers.spaced(N, 4, 12), "one client's contribution there or zero"),
        (samplers.cyclic(N, 4), "one client's contribution there or zero"),
    ],
)
def test_neighbours_are_those_of_the_sampler(sampler, relation):
    """Where taking a client out would change who else is drawn, its contribution is
    zero instead.
    """
    assert privacy.spent(sampler, independent(), 2.0, 3, DELTA).relation == relation
    assert accounted(sampler, 2.0).privacy.relation == relation


@pytest.mark.parametrize(
    "sampler",
    [POISSON, samplers.uniform(N, 4), samplers.spaced(N, 4, 3), samplers.cyclic(N, 4)],
)
def test_no_noise_spends_everything(sampler):
    assert privacy.spent(sampler, independent(), 0.0, 2, DELTA).epsilon == np.inf
    assert privacy.spent(sampler, independent(), 0.0, 0, DELTA).epsilon == 0.0
