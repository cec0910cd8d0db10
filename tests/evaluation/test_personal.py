"""Scores of personal models against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_fm as ffm
from fedjax_fm.evaluation import personal_scores, worst_decile


def squared(w, backbone, batch, key):
    gap = w - batch["x"]
    return gap**2, {"near": (abs(gap) < 1).astype(jnp.float32)}


TASK = ffm.Task(squared)
N, NEW = 24, (3, 20)


def problem(seed=0):
    """Rows of 24 clients, two of which have too few, and a model for each."""
    random = np.random.default_rng(seed)
    sizes = [2, *random.integers(5, 9, N - 2), 4]
    rows = [
        {"x": random.normal(k / 8, 1, n).astype(np.float32)}
        for k, n in enumerate(sizes)
    ]
    own = random.normal(np.arange(N) / 8, 0.3).astype(np.float32)
    return rows, own


def models_of(own, server=1.0):
    def models(client):
        return jnp.float32(server if client is None else own[client]), ()

    return models


def scored(rows, own, **how):
    population = ffm.Population.from_clients(rows)
    return personal_scores(TASK, models_of(own), population, **how)


@pytest.mark.parametrize(("score", "higher"), [("loss", False), ("near", True)])
def test_by_hand(score, higher):
    rows, own = problem()
    everyone = {"x": np.concatenate([one["x"] for one in rows])}
    how = {"score": score, "higher_is_better": higher, "new": NEW}
    found = scored(rows, own, everyone=everyone, **how)

    def values(w, x):
        gap = np.float64(w) - x
        return gap**2 if score == "loss" else np.abs(gap) < 1

    clients = [k for k in range(1, N - 1) if k not in NEW]
    mine = np.array([values(own[k], rows[k]["x"]).mean() for k in clients])
    servers = np.array([values(1.0, rows[k]["x"]).mean() for k in clients])
    for spread, expected in ((found.own, mine), (found.shared, servers)):
        assert spread.clients == len(clients) == 20
        np.testing.assert_allclose(spread.mean, expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(spread.deviation, expected.std(), rtol=1e-4)
        ordered = np.sort(expected)[:: 1 if higher else -1]
        np.testing.assert_allclose(spread.worst_decile, ordered[:2].mean(), rtol=1e-5)
        np.testing.assert_allclose(spread.worst, ordered[0], rtol=1e-5)
        sign = 1 if higher else -1
        assert sign * spread.worst_decile <= sign * spread.tenth <= sign * spread.mean
    all_rows = np.concatenate([values(own[k], rows[k]["x"]) for k in clients])
    np.testing.assert_allclose(found.own.pooled, all_rows.mean(), rtol=1e-5)
    fixed = np.argsort(servers if higher else -servers, kind="stable")[:2]
    np.testing.assert_allclose(found.own_on_shared_worst, mine[fixed].mean(), rtol=1e-5)
    new = np.mean([values(own[k], rows[k]["x"]).mean() for k in NEW])
    np.testing.assert_allclose(found.new.mean, new, rtol=1e-5)
    beyond = np.mean([values(own[k], everyone["x"]).mean() for k in clients])
    np.testing.assert_allclose(found.everyone.mean, beyond, rtol=1e-5)
    assert found.excluded == (0, N - 1)
    np.testing.assert_allclose(found.each[5], (mine[3], servers[3]), rtol=1e-5)
    assert sorted(found.each) == list(range(1, N - 1))


def test_equal_clients_have_no_spread():
    rows = [{"x": np.full(5, 2.0, np.float32)}] * 4
    found = scored(rows, np.zeros(4), score="loss", higher_is_better=False)
    assert found.own == (4, 4.0, 4.0, 0.0, 4.0, 4.0, 4.0)
    assert found.new is found.new_shared is found.everyone is None
    assert found.own_on_shared_worst == 4.0


def test_the_order_of_clients_changes_nothing():
    rows, own = problem()
    order = np.random.default_rng(1).permutation(N)
    how = {"score": "loss", "higher_is_better": False}
    one = scored(rows, own, **how)
    other = scored([rows[k] for k in order], own[order], **how)
    np.testing.assert_allclose(one.own, other.own, rtol=1e-6)
    np.testing.assert_allclose(
        one.own_on_shared_worst, other.own_on_shared_worst, rtol=1e-6
    )


def test_few_clients_have_one_worst():
    rows, own = problem()
    found = scored(rows[:8], own[:8], score="loss", higher_is_better=False)
    assert found.own.worst_decile == found.own.worst
    each = np.array([mine for mine, _ in found.each.values()])
    assert found.own.worst_decile == worst_decile(each, "loss")


def test_rows_count_as_the_task_weighs_them():
    rows = [
        {"x": np.array([0.0, 3.0], np.float32), "n": np.array([3.0, 1.0], np.float32)}
    ]
    task = ffm.Task(squared, weight=lambda batch: batch["n"])
    population = ffm.Population.from_clients(rows)
    how = {"score": "loss", "higher_is_better": False, "least_rows": 1}
    found = personal_scores(task, models_of(np.zeros(1)), population, **how)
    np.testing.assert_allclose(found.own.mean, 9 / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"score": "accuracy"}, "score='accuracy'"),
        ({"new": [N]}, f"new={N}"),
        ({"least_rows": 100}, "100 test rows"),
        ({"new": range(N)}, "no client that trained"),
        ({"higher_is_better": "no"}, "higher_is_better='no'"),
    ],
)
def test_what_is_refused(how, words):
    rows, own = problem()
    with pytest.raises((TypeError, ValueError), match=words):
        scored(rows, own, **({"score": "loss"} | how))
    population = ffm.Population.from_clients(rows)
    with pytest.raises(TypeError, match=r"simulator\.model"):
        personal_scores(TASK, (1.0, ()), population)
