"""The code of the pages runs, and the worked example is the method that it says it is."""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from study_arms import run_arm

import fedjax_fm as ffm

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [
    "index.md",
    "first-steps.md",
    *sorted(f"guides/{p.name}" for p in (DOCS / "guides").glob("*.md")),
]
# A tiny model and fewer clients, in the place of what a reader waits half a minute for.
MODEL, CLIENTS = "sentence-transformers/all-MiniLM-L6-v2", "num_partitions=101"
BLOCK = re.compile(r"(<!-- no-run: [^\n]+ -->\n+)?^```python\n(.*?)^```", re.S | re.M)


class Block(NamedTuple):
    """A block of code, padded so that an error names the line of the page."""

    code: str
    runs: bool


def blocks(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        lines_before = text[: found.start(2)].count("\n")
        yield Block("\n" * lines_before + found[2], found[1] is None)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, tiny_bert):
    monkeypatch.chdir(tmp_path)
    table = ffm.datasets.load_sentiment()
    few = table.select(range(0, len(table), 10))
    monkeypatch.setattr(ffm.datasets, "load_sentiment", lambda: few)
    names = {"__name__": "page"}
    found = list(blocks(page))
    assert found
    for block in found:
        code = block.code.replace(MODEL, str(tiny_bert))
        code = code.replace(CLIENTS, "num_partitions=21")
        code = compile(code, page, "exec")
        if block.runs:
            exec(code, names)


def test_planted():
    text = "a\n\n<!-- no-run: why -->\n```python\nx\n```\n\n```python\ny\n```\n"
    assert [(found[1] is None, found[2]) for found in BLOCK.finditer(text)] == [
        (False, "x\n"),
        (True, "y\n"),
    ]


@pytest.fixture(scope="module")
def fedprox():
    names = {"__name__": "page"}
    first = next(blocks("guides/method.md"))
    exec(compile(first.code, "method.md", "exec"), names)
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


def test_the_arms_of_the_study_run():
    names = {"__name__": "page"}
    exec(compile(next(blocks("guides/study.md")).code, "study.md", "exec"), names)
    study, config = names["STUDY"], names["Config"]().smoke()
    for arm in ("momentum", "shuffled"):
        scores, run = run_arm(study, config, arm)
        assert 0 <= scores["accuracy"] <= 1
        assert run.bytes["uplink_bytes"] > 0


@pytest.mark.parametrize("page", ["architecture.md", "concepts.md"])
def test_the_figure_is_there(page):
    assert (DOCS / "round.svg").stat().st_size > 5000
    assert "(round.svg)" in (DOCS / page).read_text(encoding="utf-8")
