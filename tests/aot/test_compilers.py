"""Rounds compiled by the real compilers for TPUs and GPUs; nothing is run.

They are installed apart, into `.venv-test/aot` (see the Makefile): with libtpu on its
path JAX would look for a TPU in every other test.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compilers import needs

SCRIPT = Path(__file__).with_name("compile_small.py")
DELTA = 512 * 8 * 4  # bytes of the trainable tree
# Beside it: the sum and the count of the loss and of the weights, and one vector of
# counts with a fault a device.
SCALARS = 3 * 4 + 2 * 4
KERNELS = [
    "top_k",
    "error_feedback",
    "downlink",
    "model",
    "model_and_downlink",
    "splash",
]


def compiled(topology, *cases):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), topology, *cases],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sums_of(report):
    return [one for one in report["collectives"] if one["op"] == "all-reduce"]


def check_sums(report, n_devices, more=0):
    """A round sends the trainable tree and a few numbers, however many clients it has."""
    (sums,) = sums_of(report)
    assert sums["axis"] == "clients"
    assert sums["level"] == "round"
    assert sums["operations"] == 2
    assert sums["bytes"] == DELTA + SCALARS + 4 * n_devices
    assert report["floor"] == round(2 * (n_devices - 1) / n_devices * DELTA)
    assert report["sent_each_round"] < report["floor"] + more + 300


def check_states(report, n_devices, cohort):
    """Rows of clients' states go to the device that computes them, and back."""
    (rows,) = [one for one in report["collectives"] if one["op"] != "all-reduce"]
    assert rows["op"] == "ragged-all-to-all"
    assert (rows["axis"], rows["level"], rows["operations"]) == ("clients", "round", 2)
    assert rows["bytes"] == 2 * cohort // n_devices * DELTA
    check_sums(report, n_devices, rows["sent"])


STATES = {"error_feedback": 16, "states_of_many": 512}  # clients a round


@needs("libtpu")
def test_for_tpus():
    found = compiled("v5e:2x4", "plain", "large_cohort", "states_of_many", *KERNELS)
    for name, cohort in STATES.items():
        check_states(found[name], 8, cohort)
    check_sums(found["plain"], 8)
    check_sums(found["large_cohort"], 8)
    for name in KERNELS:  # refused before: a kernel where XLA may split it
        assert found[name]["kernels"]["tpu_custom_call"] >= 1, name
    plain = found["plain"]
    assert plain["kernels"] == {}
    assert plain["fits"]
    assert plain["memory"] == int(15.75 * 2**30)
    # The state takes its own place: the server's weights and a few numbers.
    assert plain["donated"] >= plain["server"] == DELTA
    assert plain["temporaries"] < 4 << 20
    assert found["model"]["mesh"] == {"clients": 4, "model": 2}
    assert found["model"]["backbone"] == plain["backbone"] / 2


@needs("jax_cuda12_plugin")
def test_for_gpus():
    found = compiled("h100:8", "plain", "large_cohort", *STATES)
    for name, cohort in STATES.items():
        check_states(found[name], 8, cohort)
    check_sums(found["plain"], 8)
    check_sums(found["large_cohort"], 8)
    assert all(one["donated"] >= DELTA for one in found.values())
    assert all(one["fits"] for one in found.values())


@needs("libtpu")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "n_devices"), [("v4:2x2x1", 4), ("v5p:2x2x1", 4), ("v6e:2x4", 8)]
)
def test_for_other_tpus(topology, n_devices):
    found = compiled(topology, "plain", "top_k")
    check_sums(found["plain"], n_devices)
    assert found["top_k"]["kernels"]["tpu_custom_call"] >= 1


@needs("libtpu")
@pytest.mark.slow
def test_a_topology_that_there_is_not():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "v5e:3x5", "plain"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "libtpu knows no topology 'v5e:3x5'" in done.stderr
    assert "v5e:2x4" in done.stderr
