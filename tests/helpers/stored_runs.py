"""Small runs that are stored before a format changes, and read by every later release.

python tests/helpers/stored_runs.py tests/runs/stored/VERSION

writes them as this release does: `study`, which lacks its last arms, `study-done`, the
same without a stop, `rounds` with a checkpoint of every kind of state after two rounds,
and `rounds.json`, the metrics of four rounds without a stop.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_fm as ffm
from fedjax_fm import callbacks, channels, cli

STOPPED_AT, ROUNDS = 2, 4
LEFT = ("shuffled", "untrained")  # arms that are still to be computed
COMMAND = ["run", "local_work", "--smoke", "--set", "embedding=2", "hidden=4"]


def loss(delta: Any, backbone: Any, batch: Any, key: Any) -> tuple[jax.Array, dict]:
    """Squared error of a linear model."""
    errors = batch["x"] @ delta["w"] + delta["b"][None] - batch["y"]
    return (errors**2).mean(-1), {}


def start() -> dict[str, np.ndarray]:
    """The weights before training."""
    return {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}


def simulator() -> ffm.Simulator:
    """Momentum at the server, residuals at the clients, a downlink with a state."""
    rng = np.random.default_rng(0)
    truth, people = rng.normal(size=(3, 2)), []
    for _ in range(6):
        x = rng.normal(size=(8, 3))
        people.append({"x": x.astype("f4"), "y": (x @ truth).astype("f4")})
    algorithm = ffm.fedavg(
        ffm.Task(loss),
        optax.sgd(0.05),
        optax.sgd(0.7, momentum=0.5),
        local_steps=2,
        batch_size=4,
    )
    lossy = channels.top_k(0.5)
    return ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(people),
        cohort_size=3,
        seed=5,
        devices=1,
        uplink=channels.error_feedback(lossy),
        downlink=channels.anchored(channels.identity(), lossy, every=3),
    )


def run(folder: Path | None, rounds: int) -> tuple[Any, dict[str, np.ndarray]]:
    """(state, metrics) after so many rounds; goes on with those in the folder."""
    ours = simulator()

    def look(round: int, state: Any, metrics: Any) -> dict[str, float]:
        return {"eval_norm": float(jnp.linalg.norm(state.delta["w"]))}

    looks: list[Any] = [look]
    if folder is not None:
        looks.append(callbacks.checkpoint(folder))
    return ours.run(ours.init(start()), rounds, every=1, callbacks=looks)


def store(place: Path) -> None:
    """Writes all of them."""
    run(place / "rounds", STOPPED_AT)
    shutil.rmtree(place / "rounds" / "checkpoint" / "1")
    for note in (place / "rounds" / "checkpoint").rglob("commit_success.txt"):
        note.write_text("Checkpoint commit was successful\n")  # without its path
    _, metrics = run(None, ROUNDS)
    columns = {name: np.asarray(x).tolist() for name, x in metrics.items()}
    (place / "rounds.json").write_text(json.dumps(columns, indent=1) + "\n")
    done, stopped = place / "study-done", place / "study"
    cli.main([*COMMAND, "--out", str(done)])
    shutil.rmtree(done / "programs", ignore_errors=True)
    for page in ("report.html", "RESULTS.md"):  # made again by the test
        (done / page).unlink()
    # What is there of a study that is killed in its fourth arm.
    shutil.copytree(done, stopped)
    (stopped / "results.json").unlink()
    for arm in LEFT:
        shutil.rmtree(stopped / "cells" / arm)
    shutil.rmtree(done / "cells")  # they are in results.json


if __name__ == "__main__":
    store(Path(sys.argv[1]))
