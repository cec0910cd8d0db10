"""A run in a folder, used from a program: seeds, plans and configurations of a run that goes on."""

import io

import jax
import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from rich.console import Console
from run_folder import run_rounds

import fedjax_fm as ffm
from fedjax_fm.runs import OtherRun, RunFolder, RunFolderError


def simulator_of(**how):
    _, backbone = make_trees()
    algorithm = ffm.fedavg(
        ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=4
    )
    population = ffm.Population.from_clients(make_clients())
    return ffm.Simulator(
        algorithm, population, backbone=backbone, **({"cohort_size": 6} | how)
    )


def go_on(folder, rounds, delta=None, **how):
    said = io.StringIO()
    state = run_rounds(
        simulator_of(**how),
        make_trees()[0] if delta is None else delta,
        rounds,
        folder,
        label="mlp",
        console=Console(file=said, width=200),
        evaluate_every=2,
    )
    return state, said.getvalue()


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {}, "mlp")


def test_a_run_goes_on_with_the_layout_it_was_begun_with(folder):
    """The layout decides the order of float sums; here the second part would choose another."""
    _, said = go_on(folder, 2, devices=2, block_size=1)
    assert "layout: 2 devices × 3 blocks × 1 clients" in said
    _, said = go_on(folder, 4, devices=1)
    assert "layout: 2 devices × 3 blocks × 1 clients" in said
    assert [row["round"] for row in folder.metrics()] == [1, 2, 3, 4]


def test_another_seed_or_model_is_refused(folder):
    go_on(folder, 2)
    with pytest.raises(
        OtherRun, match="was begun as another one; then → now: seed: 0 → 1"
    ):
        go_on(folder, 4, seed=1)
    wider = {"w": np.zeros((3, 5), np.float32), "v": np.zeros(5, np.float32)}
    with pytest.raises(OtherRun, match=r"delta\['v'\]: float32\[4\] → float32\[5\]"):
        run_rounds(
            ffm.Simulator(
                simulator_of().algorithm,
                ffm.Population.from_clients(make_clients()),
                backbone={"w": np.zeros((3, 5), np.float32)},
                cohort_size=6,
            ),
            wider,
            4,
            folder,
            label="mlp",
            console=Console(file=io.StringIO()),
        )
    assert len(folder.metrics()) == 2


def test_the_folder_of_a_newer_version_is_refused_by_its_format(folder):
    go_on(folder, 2)
    mark = folder.path / "format.json"
    folder.write_json("format.json", {"format": 2, "fedjax_fm": "9.0"})
    newer = r"newer fedjax_fm \(9\.0\).*of format 2"
    with pytest.raises(RunFolderError, match=newer):
        go_on(folder, 3)
    mark.unlink()  # as it was before there were versions
    _, said = go_on(folder, 3)
    assert "warning" not in said


def test_a_run_that_is_done_is_not_done_again(folder):
    first, _ = go_on(folder, 3)
    before = (folder.path / "metrics.jsonl").read_bytes()
    again, _ = go_on(folder, 3)
    jax.tree.map(np.testing.assert_array_equal, first.carry, again.carry)
    assert (folder.path / "metrics.jsonl").read_bytes() == before


def test_the_callers_delta_is_not_taken(folder):
    delta = jax.tree.map(jax.numpy.asarray, make_trees()[0])
    go_on(folder, 2, delta=delta)
    jax.tree.map(np.testing.assert_array_equal, delta, make_trees()[0])
