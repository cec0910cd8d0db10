"""HeteroFL against a plain loop that slices and scatters by lists of indices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from width_models import LABELS, MODELS, SIZES, descent, mlp, where

import fedjax_fm as ffm
from fedjax_fm.algorithms.heterofl import heterofl, masked_cross_entropy, owned_labels
from fedjax_fm.population import samplers

STEPS, RATE = 2, 0.3
EVERYONE = range(len(SIZES))
HOW = {"local_steps": STEPS, "batch_size": 8}
RATES = (0.5, 0.25, 0.5, 0.7, 0.25, 0.7, 0.5)  # nobody holds the whole


def run(model, rates, rounds=1, task=None, ids=EVERYONE, clients=None, **how):
    algorithm = heterofl(
        task or ffm.Task(model.loss),
        optax.sgd(RATE),
        model.prefixes,
        rates,
        **(HOW | how),
    )
    population = ffm.Population.from_clients(clients or model.clients())
    simulator = ffm.Simulator(
        algorithm,
        population,
        cohort_size=len(ids),
        sampler=samplers.fixed(ids),
        devices=1,
        block_size=2,
    )
    start = simulator.init(model.delta)
    return start, *simulator.run(start, rounds)


def scattered(model, rates, weights, clients, loss_of=None, ids=EVERYONE):
    """(sum of weight * w_k, sum of weights) of each entry, in f64."""
    sums, counts = (
        jax.tree.map(lambda x: np.zeros(x.shape), model.delta) for _ in range(2)
    )
    train = {
        rate: descent(loss_of(rate) if loss_of else model.loss, RATE, STEPS)
        for rate in {rates[k] for k in ids}
    }
    for k in ids:
        at = where(model.prefixes, rates[k])
        part = train[rates[k]](
            jax.tree.map(lambda x, at: x[at], model.delta, at), clients[k]
        )
        for total, add in ((sums, part), (counts, jax.tree.map(np.ones_like, part))):
            jax.tree.map(
                lambda t, at, x, w=weights[k]: np.add.at(
                    t, at, w * np.asarray(x, np.float64)
                ),
                total,
                at,
                add,
            )
    return sums, counts


def check_average(model, delta, sums, counts):
    """Conserved where somebody holds an entry, the same bits where nobody does."""
    for new, old, total, count in zip(
        *map(jax.tree.leaves, (delta, model.delta, sums, counts)), strict=True
    ):
        np.testing.assert_allclose(
            count * np.asarray(new, np.float64) * (count > 0),
            total,
            rtol=2e-5,
            atol=1e-5,
        )
        np.testing.assert_array_equal(np.asarray(new)[count == 0], old[count == 0])


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_is_the_mean_over_the_clients_that_hold_it(name):
    model = MODELS[name]()
    rates = RATES if name == "mlp" else np.minimum(RATES, 0.5)
    _, state, metrics = run(model, rates)
    sums, counts = scattered(model, rates, np.ones(len(SIZES)), model.clients())
    check_average(model, state.delta, sums, counts)
    held = np.concatenate([count.ravel() for count in jax.tree.leaves(counts)])
    assert set(held) == (
        {0, 2, 5, 7} if name == "mlp" else {0, 5, 7}
    )  # nobody, some, all seven
    nbytes = sum(
        4 * s.size
        for rate in rates
        for s in jax.tree.leaves(model.prefixes.shapes(rate))
    )
    assert (
        metrics["uplink_bytes"].tolist()
        == metrics["downlink_bytes"].tolist()
        == [nbytes]
    )
    assert metrics["clients"].tolist() == [len(SIZES)]
    assert metrics["examples"].tolist() == [sum(SIZES)]


def test_clients_may_count_by_their_examples():
    model, ids = mlp(), (0, 3, 4)
    _, state, metrics = run(model, RATES, ids=ids, weighted=True)
    check_average(
        model, state.delta, *scattered(model, RATES, SIZES, model.clients(), ids=ids)
    )
    assert metrics["clients"].tolist() == [3]


def test_rates_of_one_are_fedavg():
    """Weighted, the library's own over three rounds; unweighted, its uniform form."""
    model, n = mlp(), len(SIZES)

    def fedavg(weight):
        algorithm = ffm.fedavg(ffm.Task(model.loss, weight), optax.sgd(RATE), **HOW)
        population = ffm.Population.from_clients(model.clients())
        simulator = ffm.Simulator(
            algorithm,
            population,
            cohort_size=n,
            sampler=samplers.fixed(range(n)),
            devices=1,
        )
        return simulator.run(simulator.init(model.delta), 3)

    def close(a, b):
        return jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b
        )

    expected, seen = fedavg(None)
    _, state, metrics = run(model, np.ones(n), 3, weighted=True)
    close(state.delta, expected.delta)
    for name in ("loss", "examples", "uplink_bytes", "downlink_bytes"):
        np.testing.assert_allclose(metrics[name], seen[name], rtol=1e-5)
    # By 1 / n_k an example, every client's weights add up to its number of steps.
    clients = [
        {**c, "n": np.full(len(c["y"]), len(c["y"]), np.float32)}
        for c in model.clients()
    ]
    uniform = ffm.fedavg(
        ffm.Task(model.loss, lambda batch: 1 / batch["n"]), optax.sgd(RATE), **HOW
    )
    simulator = ffm.Simulator(
        uniform,
        ffm.Population.from_clients(clients),
        cohort_size=n,
        sampler=samplers.fixed(range(n)),
        devices=1,
    )
    expected, _ = simulator.run(simulator.init(model.delta), 2)
    _, state, _ = run(model, {1.0: 2.0}, 2)
    close(state.delta, expected.delta)


def test_dynamic_rates_are_drawn_anew_each_round():
    model, widths = mlp(), np.array([1.0, 0.5, 0.25])
    shares = {0.25: 3.0, 1.0: 1.0, 0.5: 2.0}
    many = [
        *model.clients(),
        *([{"x": np.zeros((1, 3), np.float32), "y": np.zeros(1, np.int32)}] * 5993),
    ]
    start, state, metrics = run(model, shares, clients=many)
    first, second = (np.asarray(s.carry.server.tiers) for s in (start, state))
    # A round is that of the fixed rates that were drawn.
    _, fixed, same = run(model, widths[first], clients=many)
    jax.tree.map(np.testing.assert_array_equal, state.delta, fixed.delta)
    assert metrics["uplink_bytes"] == same["uplink_bytes"]
    assert len(set(first[: len(SIZES)])) > 1
    np.testing.assert_array_equal(fixed.carry.server.tiers, first)
    for tiers in (first, second):
        np.testing.assert_allclose(
            np.bincount(tiers, minlength=3) / 6000, [1 / 6, 2 / 6, 3 / 6], atol=0.025
        )
    assert np.mean(first == second) == pytest.approx(14 / 36, abs=0.03)  # independent


def test_the_scaler_knows_its_width():
    """The authors' Scaler: activations divided by the width while training."""
    model = mlp()

    def loss_of(width):
        def logits(p, batch, _):
            x = jax.nn.relu((batch["x"] @ p["w1"] + p["b1"][None]) / width)
            return jax.nn.relu(x @ p["w2"] / width) @ p["out"] + p["bias"][None]

        return model._replace(logits=logits).loss

    _, state, _ = run(model, RATES, task=lambda width: ffm.Task(loss_of(width)))
    check_average(
        model,
        state.delta,
        *scattered(model, RATES, np.ones(len(SIZES)), model.clients(), loss_of),
    )


def masked_loss(model):
    def loss(delta, backbone, batch, key):
        return masked_cross_entropy(
            model.logits(delta, batch, 1.0), batch["y"], batch["owned"]
        ), {}

    return loss


def test_rows_of_the_classifier_are_averaged_over_their_owners():
    model = mlp()
    clients = [
        {**c, "y": c["y"] % 3 + (k == 1)} for k, c in enumerate(model.clients())
    ]  # label 4: nobody's
    population = ffm.Population.from_clients(clients)
    labels = owned_labels(population, "y", LABELS)
    assert labels.tolist() == [[v in c["y"] for v in range(LABELS)] for c in clients]
    assert 0 < labels[:, 3].sum() + labels[:, 0].sum() < 2 * len(SIZES)
    _, state, _ = run(
        model, RATES, task=ffm.Task(masked_loss(model)), clients=clients, labels=labels
    )
    sums, counts = (
        jax.tree.map(lambda x: np.zeros(x.shape), model.delta) for _ in range(2)
    )
    train = descent(masked_loss(model), RATE, STEPS)
    for k, client in enumerate(clients):
        at = where(model.prefixes, RATES[k])
        part = jax.tree.map(lambda x, at: x[at], model.delta, at)
        with_owned = {
            **client,
            "owned": np.repeat(labels[k : k + 1], len(client["y"]), axis=0),
        }
        new = train(part, with_owned)
        # Nothing is learned about labels that the client lacks.
        np.testing.assert_array_equal(
            new["out"][:, ~labels[k]], part["out"][:, ~labels[k]]
        )
        for name in model.delta:
            owned = labels[k].astype(float) if name in ("out", "bias") else 1.0
            np.add.at(sums[name], at[name], owned * np.asarray(new[name], np.float64))
            np.add.at(counts[name], at[name], owned * np.ones(new[name].shape))
    check_average(model, state.delta, sums, counts)
    assert set(counts["bias"]) == set(labels.sum(axis=0).astype(float))
    assert counts["bias"][4] == 0


def test_masked_cross_entropy_sets_absent_logits_to_zero():
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    owned = np.array([True, False, True, True, False])
    labels = np.array([0, 2, 3, 2])
    filled = np.where(owned, logits, 0.0)
    expected = np.log(np.exp(filled).sum(axis=1)) - filled[np.arange(4), labels]
    found = masked_cross_entropy(
        jnp.asarray(logits), jnp.asarray(labels), jnp.repeat(owned[None], 4, axis=0)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(
        found,
        np.log(np.exp(logits[:, owned]).sum(axis=1)) - logits[np.arange(4), labels],
    )


def test_settings_that_make_no_sense_are_errors():
    model = mlp()

    def make(rates, **how):
        return heterofl(
            ffm.Task(model.loss), optax.sgd(0.1), model.prefixes, rates, **(HOW | how)
        )

    for rates, message in (
        ([1.0, 1.5], r"expected 0 < width <= 1, got width=1.5"),
        ([0.5, 0.0], r"expected 0 < width <= 1, got width=0.0"),
        ([[1.0]], r"expected one rate for each client, got rates of shape \[1, 1\]"),
        (
            {1.0: 0.5, 0.5: 0.0},
            r"expected shares > 0 of at least one width, got {1.0: 0.5, 0.5: 0.0}",
        ),
        ({}, "expected shares > 0 of at least one width, got {}"),
    ):
        with pytest.raises(ValueError, match=message):
            make(rates)
    with pytest.raises(
        ValueError, match=r"expected labels of bool\[clients, 5\].*got bool\[7, 4\]"
    ):
        make(RATES, labels=np.ones((7, 4), bool))
    with pytest.raises(
        ValueError, match="rates are those of 7 clients, the population has 9"
    ):
        run(model, RATES, clients=model.clients((*SIZES, 1, 1)))
    with pytest.raises(
        ValueError, match="labels are those of 6 clients, the population has 7"
    ):
        run(model, RATES, labels=np.ones((6, LABELS), bool))
    with pytest.raises(
        ValueError,
        match=r"not like the one.*w1: expected float32\[3, 7\], got float32\[3, 8\]",
    ):
        run(
            model._replace(delta={**model.delta, "w1": np.zeros((3, 8), np.float32)}),
            RATES,
        )
    clients = [{**c, "owned": c["y"]} for c in model.clients()]
    with pytest.raises(ValueError, match="the examples have one of that name"):
        run(model, RATES, clients=clients, labels=np.ones((7, LABELS), bool))
    with pytest.raises(ValueError, match="expected integers from 0 to 2 in 'y'"):
        owned_labels(ffm.Population.from_clients(model.clients()), "y", 3)
