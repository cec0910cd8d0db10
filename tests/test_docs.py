"""The worked example of docs/architecture.md runs, and is the method that it says it is."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def fedprox():
    names = {"__name__": "architecture"}
    exec(
        compile(
            re.search(r"```python\n(.*?)```", TEXT, re.S).group(1),
            "architecture.md",
            "exec",
        ),
        names,
    )
    return names["fedprox"]


def after(algorithm, rounds=3):
    delta, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients())
    simulator = ffm.Simulator(
        algorithm, population, backbone=backbone, cohort_size=5, seed=2, devices=2
    )
    state, metrics = simulator.run(simulator.init(delta), rounds)
    return state.delta, metrics


def distance(a, b):
    return (
        sum(
            float(np.sum((x - y) ** 2))
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )
        ** 0.5
    )


def test_the_worked_example_is_fedprox(fedprox):
    task, how = ffm.Task(mlp_loss), {"local_steps": 4, "batch_size": 4}
    start, _ = make_trees()
    plain, expected = after(ffm.fedavg(task, optax.sgd(0.05), **how))
    same, metrics = after(fedprox(task, optax.sgd(0.05), 0.0, **how))
    assert distance(plain, same) < 1e-6
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    held, _ = after(fedprox(task, optax.sgd(0.05), 10.0, **how))
    assert distance(held, start) < 0.7 * distance(plain, start)


def test_the_figure_is_there():
    assert (
        Path(__file__).resolve().parent.parent / "docs" / "round.svg"
    ).stat().st_size > 5000
    assert "(round.svg)" in TEXT
