"""What trackers hold after a run, after one that was gone on with, and what they never hold.

Packages that are installed are used as they are; the others are stood in for by classes
with the same calls.
"""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import callbacks

ROOT = Path(__file__).resolve().parents[2]
DELTA, BACKBONE = make_trees()
TASK = ffm.Task(mlp_loss)
SIMULATOR = ffm.Simulator(
    ffm.fedavg(TASK, optax.sgd(0.02), local_steps=1, batch_size=8),
    ffm.Population.from_clients(make_clients(sizes=(6, 1, 4, 2))),
    backbone=BACKBONE,
    cohort_size=2,
    devices=1,
)
START = SIMULATOR.init(DELTA)
# What must never be written, under the names by which services know it.
SECRETS = {
    "HF_TOKEN": "hf_neverwritten0123456789abcdefghi",
    "HUGGING_FACE_HUB_TOKEN": "hf_neverwritten1123456789abcdefghi",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_TOKEN": "mlflow-never-written",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-never-written-either",
    "TRACKIO_WRITE_TOKEN": "trackio-never-written",
    "OPENAI_API_KEY": "sk-neverwritten",
}


def run(folder, to, rounds, checkpoints=None):
    looks = [callbacks.track(folder, to=to)]
    if checkpoints is not None:
        looks = [callbacks.checkpoint(checkpoints), *looks]
    return SIMULATOR.run(START, rounds, callbacks=looks)[1]


# tensorboardX


def scalars(folder):
    """{name: [(step, value)]} of all event files of a folder, in order of time."""
    records = pytest.importorskip("tensorboardX.record_writer")
    del records
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.rglob("events.*"), key=lambda p: p.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            n = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + n])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            content = content[12 + n + 4 :]
    return found


def test_tensorboard_files_hold_each_round(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    metrics = run(tmp_path / "one", ["tensorboard"], 3)
    found = scalars(tmp_path / "one" / "tensorboard")
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    np.testing.assert_allclose(
        [x for _, x in found["loss"]], metrics["loss"], rtol=1e-6
    )


def test_tensorboard_files_of_a_run_that_goes_on_hold_no_round_twice(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    run(tmp_path / "one", ["tensorboard"], 2, tmp_path / "kept")
    run(tmp_path / "one", ["tensorboard"], 4, tmp_path / "kept")
    found = scalars(tmp_path / "one" / "tensorboard")
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4]


# trackio, which reads its place when it is imported: in a process of its own

TRACKIO = """
import json, sys
sys.path[:0] = ["tests/callbacks", "tests/helpers"]
from test_trackers import run
for rounds in (2, 4):
    run({folder!r}, ["trackio"], rounds, {kept!r})
from trackio.sqlite_storage import SQLiteStorage
rows = SQLiteStorage.get_logs("fedjax_fm", "one")
print(json.dumps([[row["step"], row["loss"]] for row in rows]))
"""


def python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_trackio_holds_each_round_once(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    code = TRACKIO.format(folder=str(tmp_path / "one"), kept=str(tmp_path / "kept"))
    said = python(code, TRACKIO_DIR=str(tmp_path / "trackio"), HF_HUB_OFFLINE="1")
    assert said.returncode == 0, said.stderr
    rows = json.loads(said.stdout.splitlines()[-1])
    assert [step for step, _ in rows] == [1, 2, 3, 4]
    expected = run(tmp_path / "two", ["jsonl"], 4)["loss"]
    np.testing.assert_allclose([loss for _, loss in rows], expected, rtol=1e-6)


# Stand-ins


class Run:
    """A run of wandb or trackio: it keeps what it is told."""

    def __init__(self, **arguments):
        self.arguments, self.rows, self.finished = arguments, [], False
        self._next_step = 0

    def log(self, metrics, step=None):
        assert all(isinstance(value, int | float) for value in metrics.values())
        self.rows.append((step, metrics))
        self._next_step = step + 1

    def finish(self):
        self.finished = True


class Service:
    """The modules wandb and trackio: `init` opens a run, by its name once more."""

    def __init__(self):
        self.runs = {}

    def init(self, **arguments):
        name = arguments["name"]
        if arguments["resume"] == "never" or name not in self.runs:
            self.runs[name] = Run(**arguments)
        self.current = self.runs[name]
        return self.current

    def finish(self):
        self.current.finish()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_each_round_once(name, tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    run(tmp_path / "one", [name], 2, tmp_path / "kept")
    run(tmp_path / "one", [name], 3, tmp_path / "kept")
    (told,) = service.runs.values()
    assert [step for step, _ in told.rows] == [1, 2, 3]
    assert told.arguments["name"] == "one"
    assert told.finished
    assert "round" not in told.rows[0][1]


def test_trackio_is_not_told_again_what_a_killed_run_had_logged(tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "trackio", service)
    run(tmp_path / "one", ["trackio"], 2, tmp_path / "kept")
    (told,) = service.runs.values()
    told.log({"loss": 0.0}, step=3)  # and was killed before its checkpoint
    run(tmp_path / "one", ["trackio"], 5, tmp_path / "kept")
    assert [step for step, _ in told.rows] == [1, 2, 3, 4, 5]


class Mlflow:
    """The module mlflow: runs by their ids."""

    def __init__(self):
        self.runs, self.places, self.ended = {}, [], 0

    def set_tracking_uri(self, uri):
        self.places.append(uri)

    def start_run(self, run_name=None, run_id=None):
        run_id = run_id or f"id-{len(self.runs)}"
        self.current = self.runs.setdefault(run_id, [])
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def log_metrics(self, metrics, step):
        self.current.append((step, metrics))

    def end_run(self):
        self.ended += 1


def test_mlflow_goes_on_with_its_run(tmp_path, monkeypatch):
    service = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", service)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run(tmp_path / "one", ["mlflow"], 2, tmp_path / "kept")
    run(tmp_path / "one", ["mlflow"], 3, tmp_path / "kept")
    assert [step for step, _ in service.runs["id-0"]] == [1, 2, 3]
    assert service.ended == 2
    assert service.places[0].endswith("one/mlflow.db")
    run(tmp_path / "two", ["mlflow"], 1)
    assert [step for step, _ in service.runs["id-1"]] == [1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    run(tmp_path / "three", ["mlflow"], 1)
    assert len(service.places) == 3


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_package_that_is_missing_is_named_with_its_extra(name, tmp_path, monkeypatch):
    module = "tensorboardX" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf"{module}: pip install 'fedjax-fm\[{name}\]'"
    ):
        callbacks.track(tmp_path, to=[name])


# Secrets


def written(folder):
    """Every byte below a folder, names of files included."""
    paths = [path for path in folder.rglob("*")]
    parts = [path.read_bytes() for path in paths if path.is_file()]
    return b"\n".join([*parts, *(str(path).encode() for path in paths)])


def installed():
    names = {"tensorboard": "tensorboardX", "mlflow": "mlflow.store.db.utils"}
    found = ["jsonl"]
    for name in ("tensorboard", "trackio", "wandb", "mlflow"):
        try:
            __import__(names.get(name, name))
        except ImportError:
            continue
        found.append(name)
    return found


SECRET = """
import sys
sys.path[:0] = ["tests/callbacks", "tests/helpers"]
from test_trackers import run, installed
to = installed()
run({folder!r} + "/run", to, 2, {folder!r} + "/checkpoint")
from fedjax_fm.runs.provenance import environment
import json
with open({folder!r} + "/environment.json", "w", encoding="utf-8") as file:
    json.dump(environment(), file)
print(to)
"""


def test_a_secret_of_the_environment_lands_in_no_run_folder(tmp_path):
    places = {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    said = python(SECRET.format(folder=str(tmp_path)), **SECRETS, **places)
    assert said.returncode == 0, said.stderr
    content = written(tmp_path)
    assert b'"loss"' in content
    for name, secret in SECRETS.items():
        assert secret.encode() not in content, name
    for secret in SECRETS.values():
        assert secret not in said.stdout + said.stderr


def test_a_secret_that_was_written_is_found(tmp_path):
    secret = SECRETS["HF_TOKEN"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").write_text(json.dumps({"env": secret}))
    assert secret.encode() in written(tmp_path)


def test_a_real_wandb_run_stays_on_disk(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    code = (
        "import sys; sys.path[:0] = ['tests/callbacks', 'tests/helpers']\n"
        f"from test_trackers import run; run({str(tmp_path / 'one')!r}, ['wandb'], 2)"
    )
    said = python(code, WANDB_MODE="offline")
    assert said.returncode == 0, said.stderr
    assert list((tmp_path / "one").rglob("*.wandb"))


def test_a_real_mlflow_run_holds_each_round(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow is not installed in full")
    run(tmp_path / "one", ["mlflow"], 2, tmp_path / "kept")
    metrics = run(tmp_path / "one", ["mlflow"], 4, tmp_path / "kept")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'one' / 'mlflow.db'}")
    run_id = (tmp_path / "one" / "mlflow_run").read_text().strip()
    history = client.get_metric_history(run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    np.testing.assert_allclose([p.value for p in history], metrics["loss"], rtol=1e-6)
