"""What every method promises about the task that it is given: its losses are looked at,
and its weights count.
"""

import importlib
import importlib.util
import pkgutil

import jax
import numpy as np
import pytest
import rows
import split_problem
from contract import Row, simulator

import fedjax_fm as ffm
from fedjax_fm.types import Task

# Their losses are their own: they are given networks, not a task.
OF_NETWORKS = {"fada", "fedclip", "federated_policy", "fedmkt"}
HOMES = {
    name: f"rows.{module.name}"
    for module in pkgutil.iter_modules(rows.__path__)
    for name in importlib.import_module(f"rows.{module.name}").ROWS
    if name not in OF_NETWORKS
}


def read_again(home: str) -> dict[str, Row]:
    """The rows of a module, with the tasks that it makes when it is read."""
    spec = importlib.util.find_spec(home)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ROWS


ROUNDS = 2


def problem_of(name: str, monkeypatch, change, weight=None):
    """The row's problem, its losses changed by `change(losses)` and its examples
    weighed by `weight(batch)`.
    """
    plain = split_problem.split(0.0)  # noise would differ from row to row

    def make_task(loss):
        def changed(delta, backbone, batch, key):
            losses, metrics = loss(delta, backbone, batch, key)
            return change(losses), metrics

        return Task(changed, weight)

    def make_split(*_):
        def head(client, features, batch, key):
            losses, metrics = plain.head(client, features, batch, key)
            return change(losses), metrics

        return plain._replace(head=head, weight=weight)

    monkeypatch.setattr(ffm, "Task", make_task)
    monkeypatch.setattr(split_problem, "split", make_split)
    return read_again(HOMES[name])[name].make()


@pytest.mark.parametrize("name", sorted(HOMES))
def test_losses_of_another_shape_are_refused(name, monkeypatch):
    """A column would broadcast to a square against the mask; other shapes are in
    tests/engine/test_losses.py.
    """
    problem = problem_of(name, monkeypatch, lambda losses: losses[:, None])
    one = simulator(problem)

    def first_round():
        one.run(one.init(problem.delta), 1)

    found = r"float32\[\d+\], got float32\[\d+, 1\]; drop the axes of length 1"
    with pytest.raises(ValueError, match=f"expected one loss per example: {found}"):
        first_round()


def times(k: int, n: int) -> np.ndarray:
    """How often client k holds each of its n examples: 1, 2 or 3 times."""
    return np.array([1 + (k + i) % 3 for i in range(n)])


def test_there_are_weights_to_be_seen():
    assert len({tuple(times(k, 2)) for k in range(6)}) == 3


@pytest.mark.parametrize("name", sorted(HOMES))
def test_an_example_of_weight_w_counts_as_one_held_w_times(name, monkeypatch):
    """Full batches: the weighted population and the one that repeats its rows train the
    same delta. The methods' own training loops, the LoRA rules', the two of nested
    widths and FedKSeed's, FedBERT's heads and distillation's."""
    weighted = problem_of(
        name, monkeypatch, lambda losses: losses, lambda batch: batch["times"]
    )
    clients = [
        {name: array[:2] for name, array in client.items()}
        for client in weighted.clients
    ]
    counts = [
        times(k, len(next(iter(client.values())))) for k, client in enumerate(clients)
    ]
    by_weight = [
        client | {"times": count.astype(np.float32)}
        for client, count in zip(clients, counts, strict=True)
    ]
    repeated = [
        {name: np.repeat(array, count, axis=0) for name, array in client.items()}
        for client, count in zip(clients, counts, strict=True)
    ]
    found = trained(weighted, by_weight)
    monkeypatch.undo()
    plain = problem_of(name, monkeypatch, lambda losses: losses)
    row = read_again(HOMES[name])[name]

    def close(x, y):
        return np.testing.assert_allclose(x, y, rtol=row.rtol, atol=row.atol)

    jax.tree.map(close, found, trained(plain, repeated))


def trained(problem, clients):
    one = simulator(problem, clients=clients)
    state, metrics = one.run(one.init(problem.delta), ROUNDS)
    return state.delta, metrics["loss"]
