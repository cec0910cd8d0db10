"""`fedjax-fm bench engine` with measurements stubbed out, and once for real at the smoke size."""

import json
from pathlib import Path

import pytest

from fedjax_fm.cli import main
from fedjax_fm.experiments.bench import command, environments, floor
from fedjax_fm.experiments.bench.environments import PeerError, python_of
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.study import command as studies

REQUIRED = {
    "name",
    "seconds",
    "peer",
    "peer_seconds",
    "ratio",
    "floor_seconds",
    "compile_seconds",
    "peak_rss_bytes",
    "floor_engine",
    "processor",
}


def bench(*words):
    """The command's exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "engine", *map(str, words)])
    return stopped.value.code


@pytest.fixture
def stubbed(monkeypatch):
    """No process is started: FedJAX is twice as slow as we are, PyTorch does not run."""

    def measure(name, data, ours, theirs=None, repeats=5):
        mine = {"seconds": 0.5, "compile_seconds": 1.0, "peak_rss_bytes": 10**8}
        if theirs is None:
            return mine
        if theirs == ["torch"]:
            raise PeerError("ended with code 1: [no] torch")
        return mine | {
            "peer_seconds": 1.0,
            "ratio": 2.0,
            "peer_compile_seconds": 3.0,
            "relative_distance": 1e-6,
        }

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "theirs", lambda peer, cache: [peer])
    rate = floor.Rate(flop_per_second=1e9, one_core=5e8, engine="XLA")
    monkeypatch.setattr(floor, "rate_of", lambda workload, data: rate)


def test_a_failing_peer_has_a_row_and_the_command_goes_on(stubbed, capsys):
    assert (
        bench(
            "--peers",
            "--json",
            "--smoke",
            "--only",
            "cifar-cnn",
            "tiny-round",
            "ragged",
        )
        == 1
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(row) >= REQUIRED for row in rows)
    assert [(row["name"], row["peer"], row["ratio"]) for row in rows] == [
        ("cifar-cnn", "FedJAX jit 0.0.17", 2.0),
        ("cifar-cnn", "PyTorch loop", None),
        ("tiny-round", "FedJAX jit 0.0.17", 2.0),
        ("ragged", None, None),
    ]
    assert [row["peer_error"] for row in rows] == [
        None,
        "ended with code 1: [no] torch",
        None,
        None,
    ]
    assert all(row["floor_seconds"] > 0 for row in rows)


def test_table(stubbed, capsys):
    assert bench("--smoke") == 0
    assert "clients-1e6" in capsys.readouterr().out
    assert bench("--smoke", "--peers", "--only", "cifar-cnn") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "cifar-cnn, PyTorch loop: ended with code 1: [no] torch" in printed
    assert "2.00" in printed


def test_for_real(capsys):
    assert bench("--smoke", "--json", "--repeats", 1, "--only", "tiny-round") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row["seconds"] > row["floor_seconds"] > 0
    assert row["compile_seconds"] > 0
    assert row["peak_rss_bytes"] > 1e7
    assert row["peer"] is row["peer_seconds"] is row["ratio"] is None


def test_wrong_words(capsys):
    assert bench("--only", "mlp-100") == 2
    assert "did you mean 'mlp-1000'" in " ".join(capsys.readouterr().err.split())
    assert bench("--repeats", 0) == 2
    assert "repeats=0" in capsys.readouterr().err


def test_peers_are_refused_at_once_where_their_scripts_are_not(
    stubbed, monkeypatch, tmp_path, capsys
):
    """A wheel goes without them."""
    monkeypatch.setattr(environments, "ADAPTERS", tmp_path / "peers")
    assert bench("--peers", "--smoke", "--only", "cifar-cnn") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "in the repository only" in said
    assert "leave out --peers" in said
    assert (
        bench("--peers", "--smoke", "--json", "--only", "ragged") == 0
    )  # has no peers
    assert bench("--smoke", "--json", "--only", "cifar-cnn") == 0


def test_bench_is_no_study():
    assert "bench" not in studies.summaries()
    assert "quickstart" in studies.summaries()
    with pytest.raises(UsageError, match="unknown study 'bench'"):
        studies.find("bench")


def test_an_environment_is_made_once_and_again_for_other_pins(tmp_path, monkeypatch):
    installed = []
    monkeypatch.setattr(
        environments,
        "_pip",
        lambda python, requirements: installed.append(requirements),
    )
    monkeypatch.setattr(
        environments.venv, "create", lambda folder, **how: make_python(folder)
    )
    for _ in range(2):
        assert python_of("torch", tmp_path).is_file()
    assert len(installed) == 1
    monkeypatch.setitem(
        environments.PEERS,
        "torch",
        environments.PEERS["torch"]._replace(requirements=("torch==9",)),
    )
    python_of("torch", tmp_path)
    assert installed[1:] == [("torch==9",)]


def test_what_cannot_be_installed_is_the_peers_error(tmp_path, monkeypatch):
    missing = environments.Peer(
        "nobody", "with_torch.py", ("./no-such-folder-or-package",)
    )
    monkeypatch.setitem(environments.PEERS, "nobody", missing)
    with pytest.raises(
        PeerError, match=r"pip install \./no-such-folder-or-package failed"
    ):
        python_of("nobody", tmp_path)
    assert not (tmp_path / "nobody" / "requirements.txt").exists()


def make_python(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "python").touch()
