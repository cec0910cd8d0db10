"""Whole rounds of robust rules on low-rank updates: products, and factors where they may be."""

import jax
import jax.numpy as jnp
import lora_problem
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm import robust
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.algorithms.lora_rules.factors import Pair, split
from fedjax_fm.testing import fixed_cohort

EACH = {
    "krum": robust.krum(1),
    "multi_krum": robust.multi_krum(1),
    "geometric_median": robust.geometric_median(iterations=60),
}


def rounds(name, rule, rounds=1, factors=False, lie=None, most_weight=None, **how):
    """(simulator, state, metrics) of a rule on eight clients with low-rank factors."""
    if name in ("flora", "fedex_lora"):
        how["scaling"] = lora_problem.SCALING
    plain = getattr(lora_rules, name)(
        ffm.Task(lora_problem.loss), optax.sgd(0.1), **lora_problem.HOW, **how
    )
    method = plain if lie is None else with_lie(plain, lie)
    if rule is not None:
        method = robust.robust(method, rule, factors=factors, most_weight=most_weight)
    delta, backbone = lora_problem.make_trees(squares=name == "fed_sb")
    simulator = ffm.Simulator(
        method,
        ffm.Population.from_clients(lora_problem.make_clients()),
        backbone=backbone,
        cohort_size=8,
        devices=1,
    )
    state, metrics = simulator.run(simulator.init(delta), rounds)
    return simulator, state, metrics


def with_lie(algorithm, lie, liar=3):
    """The method whose client 3 sends factors that the lie makes of those it has."""
    (exchange,) = algorithm.exchanges

    def client(backbone, message):
        inner = exchange.client(backbone, message)

        def one(mine, state, data, key):
            output = inner(mine, state, data, key)
            start = mine.trained if hasattr(mine, "trained") else mine
            told = {
                layer: lie(start.pairs[layer], pair)
                for layer, pair in output.upload.pairs.items()
            }
            other = output.upload.__class__(
                told, output.upload.rest, output.upload.form
            )
            upload = jax.tree.map(
                lambda x, y: jnp.where(data.id == liar, y, x), output.upload, other
            )
            return output._replace(upload=upload)

        return one

    return algorithm._replace(exchanges=(exchange._replace(client=client),))


def rescaled(start, moved, c=1e3):
    """(c B, A / c): the product of an honest client, and factors far from everyone's."""
    a, b = start.a + moved.a, start.b + moved.b
    return Pair(a / c - start.a, c * b - start.b)


def kernels(simulator, state):
    delta, backbone = simulator.model(state)
    return [np.asarray(x) for x in lora_problem.kernels(delta, backbone)]


@pytest.mark.parametrize("name", ["flora", "flexlora", "fedex_lora", "ffa_lora"])
def test_the_mean_by_the_clients_weights_is_the_method(name):
    plain = rounds(name, None, rounds=2)
    weighed = rounds(name, robust.mean(), rounds=2, most_weight=1e6)
    capped = rounds(name, robust.mean(), rounds=2)
    gaps = []
    for w, x, y in zip(
        *(kernels(*found[:2]) for found in (plain, weighed, capped)), strict=True
    ):
        np.testing.assert_allclose(w, x, rtol=1e-4, atol=1e-5)
        gaps.append(np.abs(w - y).max())
    assert max(gaps) > 1e-3  # the clients' sizes differ
    np.testing.assert_array_equal(plain[2]["uplink_bytes"], weighed[2]["uplink_bytes"])


@pytest.mark.parametrize("name", ["flora", "flexlora", "fedex_lora"])
def test_rescaled_factors_of_one_product_are_no_attack(name):
    """(c B, A / c) changes nothing where products count."""
    honest = rounds(name, EACH["multi_krum"])
    lied = rounds(name, EACH["multi_krum"], lie=rescaled)
    for x, y in zip(kernels(*honest[:2]), kernels(*lied[:2]), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3)


def test_rescaled_factors_move_the_mean_of_factors_anywhere():
    """FedIT by itself: one liar of eight with the product of an honest client."""
    honest, lied = rounds("fedit", None), rounds("fedit", None, lie=rescaled)
    far = [
        np.abs(x - y).max()
        for x, y in zip(kernels(*honest[:2]), kernels(*lied[:2]), strict=True)
    ]
    assert max(far) > 10


@pytest.mark.parametrize("rule", sorted(EACH))
def test_a_liar_of_large_products_is_left_out(rule):
    def large(start, moved):
        return Pair(1e12 * jnp.ones_like(moved.a), moved.b)

    honest = rounds("flora", EACH[rule])
    lied = rounds("flora", EACH[rule], lie=large)
    for x, y in zip(kernels(*honest[:2]), kernels(*lied[:2]), strict=True):
        assert np.abs(x - y).max() < 1


def test_krum_takes_one_clients_product():
    """FLoRA with Krum adds one client's product, that of float64 by hand."""
    simulator, state, _ = rounds("flora", robust.krum(1))
    alone, updates = [], []
    delta, backbone = lora_problem.make_trees()
    start = lora_problem.kernels(jax.tree.map(jnp.zeros_like, delta), backbone)
    for k in range(8):
        plain = lora_rules.flora(
            ffm.Task(lora_problem.loss),
            optax.sgd(0.1),
            scaling=lora_problem.SCALING,
            **lora_problem.HOW,
        )
        one = ffm.Simulator(
            plain,
            ffm.Population.from_clients(lora_problem.make_clients()),
            backbone=backbone,
            sampler=fixed_cohort([k]),
            cohort_size=1,
            devices=1,
        )
        after, _ = one.run(one.init(delta), 1)
        alone.append(one.model(after)[1])
        head = np.ravel(after.delta["head"])
        merged = [
            (alone[-1][name]["base"]["kernel"] - backbone[name]["base"]["kernel"])
            / lora_problem.SCALING
            for name in lora_problem.LAYERS
        ]
        updates.append(np.concatenate([head, *map(np.ravel, merged)]))
    assert len(start) == 3
    x = np.stack(updates).astype(np.float64)
    gaps = ((x[:, None] - x[None]) ** 2).sum(-1)
    scores = [np.sort(np.delete(gaps[k], k))[: 8 - 1 - 2].sum() for k in range(8)]
    best = int(np.argmin(scores))
    found = simulator.model(state)[1]
    for name in lora_problem.LAYERS:
        np.testing.assert_allclose(
            found[name]["base"]["kernel"],
            alone[best][name]["base"]["kernel"],
            rtol=1e-4,
            atol=1e-5,
        )


# Refusals


@pytest.mark.parametrize("name", ["flora", "flexlora", "fedex_lora"])
@pytest.mark.parametrize(
    "rule",
    [robust.coordinate_median(), robust.bulyan(1), robust.sign_majority(0.1)],
    ids=["coordinate_median", "bulyan", "sign_majority"],
)
def test_coordinates_of_products_are_refused(name, rule):
    with pytest.raises(ValueError, match="never formed"):
        rounds(name, rule)


def test_both_factors_are_refused_unless_asked_for():
    with pytest.raises(ValueError, match="whose coordinates are no property"):
        rounds("fedit", robust.coordinate_median())
    _, state, _ = rounds("fedit", robust.coordinate_median(), factors=True)
    assert np.isfinite(np.asarray(state.delta["head"])).all()


@pytest.mark.parametrize("name", ["ffa_lora", "fed_sb"])
def test_one_factor_beside_a_common_one(name):
    """The median over clients of the factor that they send."""
    _, state, _ = rounds(name, robust.coordinate_median())
    ends = []
    for k in range(8):
        plain = getattr(lora_rules, name)(
            ffm.Task(lora_problem.loss), optax.sgd(0.1), **lora_problem.HOW
        )
        delta, backbone = lora_problem.make_trees(squares=name == "fed_sb")
        one = ffm.Simulator(
            plain,
            ffm.Population.from_clients(lora_problem.make_clients()),
            backbone=backbone,
            sampler=fixed_cohort([k]),
            cohort_size=1,
            devices=1,
        )
        ends.append(one.run(one.init(delta), 1)[0].delta)
    expected = jax.tree.map(lambda *x: np.median(np.stack(x), axis=0), *ends)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        state.delta,
        expected,
    )


def test_ranks_that_differ():
    _, state, _ = rounds("flora", EACH["krum"], ranks=lora_problem.MIXED)
    rows = state.carry.server.method.residual.newest["outer"].a.count
    ranks = set(lora_problem.MIXED)
    assert int(rows) in ranks  # of the one client that was taken
    assert split(state.delta).pairs
