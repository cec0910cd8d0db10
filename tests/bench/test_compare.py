"""The protocol with processes that stand in for both sides: they add numbers instead of
training.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

import fedjax_fm.experiments.bench as bench
from fedjax_fm.experiments.bench.compare import distance, measure
from fedjax_fm.experiments.bench.environments import PeerError
from fedjax_fm.experiments.bench.protocol import Data
from fedjax_fm.experiments.bench.side import Side

FAKE = """
import os, sys, time
sys.path.insert(0, {peers!r})
import protocol

def build(workload, data):
    parameters, calls = dict(data.start), 0
    def run(rounds):
        nonlocal calls
        calls += 1
        begun = time.time()
        print("noise on standard output")
        {body}
        time.sleep(0.02)
        with open({log!r}, "a") as log:
            log.write(f"{{begun}} {{time.time()}} {name}\\n")
        parameters["w"] = parameters["w"] + {step}
    return run, lambda: parameters

protocol.serve(build)
"""


@pytest.fixture
def data():
    return Data(
        {"x": np.ones((6, 2), np.float32)},
        np.arange(4) * 2,
        {"w": np.zeros(3, np.float32)},
        batch_size=2,
    )


@pytest.fixture
def fake(tmp_path):
    """fake(name, body, step) -> the command of a side."""

    def make(name="peer", body="pass", step=1.0):
        script, log = tmp_path / f"{name}.py", str(tmp_path / "log.txt")
        peers = str(Path(bench.__file__).parent / "peers")
        script.write_text(
            FAKE.format(peers=peers, body=body, step=step, log=log, name=name)
        )
        return [sys.executable, str(script)]

    return make


def test_sides_take_turns_and_never_overlap(fake, data, tmp_path):
    row = measure("any", data, fake("ours"), fake("peer", "time.sleep(0.1)"), repeats=3)
    assert row["ratio"] == pytest.approx(row["peer_seconds"] / row["seconds"])
    assert row["peer_seconds"] > 0.1 > row["seconds"] > 0.02
    assert row["relative_distance"] == 0
    assert row["peak_rss_bytes"] > 1e6
    spans = [line.split() for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [name for *_, name in spans] == [
        "ours",
        "peer",
    ] * 4  # the first call of each, then the turns
    times = [float(t) for begun, ended, _ in spans for t in (begun, ended)]
    assert times == sorted(times)


def test_seconds_are_of_one_round(fake, data):
    row = measure(
        "any", data._replace(rounds=10), fake("ours", "time.sleep(0.05)"), repeats=2
    )
    assert 0.007 < row["seconds"] < 0.05
    assert "peer_seconds" not in row


def test_shuffled_batches_are_compared_on_a_full_batch_copy(fake, data, tmp_path):
    row = measure(
        "any", data._replace(batch_size=1), fake("ours"), fake("peer"), repeats=1
    )
    assert row["relative_distance"] == 0
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2 + 4


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_crash_says_what_the_peer_said(fake, data, when):
    peer = fake(
        "peer", f"if calls > {0 if when == 'first' else 1}: sys.exit('out of patience')"
    )
    with pytest.raises(PeerError, match=r"ended with code 1: .*out of patience"):
        measure("any", data, fake("ours"), peer, repeats=2)


def test_our_own_crash_is_not_the_peers(fake, data):
    with pytest.raises(RuntimeError, match="out of patience"):
        measure(
            "any",
            data,
            fake("ours", "sys.exit('out of patience')"),
            fake("peer"),
            repeats=1,
        )


def test_another_result_is_refused(fake, data):
    for step in (1.01, "float('nan')"):
        with pytest.raises(PeerError, match="computes something else"):
            measure("any", data, fake("ours"), fake("peer", step=step), repeats=1)


def test_silence_and_nonsense_and_nothing_to_start(fake, data, tmp_path):
    data.save(tmp_path / "data.npz")
    with pytest.raises(PeerError, match="no answer within 1 s"):
        Side(fake("peer", "time.sleep(60)"), "any", tmp_path / "data.npz", timeout=1)
    with pytest.raises(
        PeerError, match=r"expected a JSON object with 'first_seconds', got 'hello'"
    ):
        Side([sys.executable, "-c", "print('hello')"], "any", tmp_path / "data.npz")
    with pytest.raises(PeerError, match="cannot start"):
        Side([str(tmp_path / "nobody")], "any", tmp_path / "data.npz")


def test_distance_is_relative_to_the_way_gone():
    start = {"w": np.full(4, 100.0), "b": np.zeros(1)}
    ours, theirs = (
        {"w": start["w"] + 1, "b": np.zeros(1)},
        {"w": start["w"] + 1.5, "b": np.zeros(1)},
    )
    assert distance(ours, theirs, start) == pytest.approx(0.5)
    with pytest.raises(PeerError, match="parameters"):
        distance(ours, {"w": theirs["w"]}, start)
    with pytest.raises(PeerError, match="another shape"):
        distance(ours, theirs | {"b": np.zeros(2)}, start)
