"""A simulation of Flower itself, its nodes as processes of Ray: the rounds are ours.

Skipped where Flower and Ray are not installed: pip install 'flwr[simulation]'.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("ray")

HELPERS = Path(__file__).resolve().parent.parent / "helpers"
PROGRAM = """
import sys
sys.path.insert(0, {helpers!r})
from bridge_problem import METHODS, N, clients, close, federation_of, remote
from flwr.simulation import run_simulation
from fedjax_fm.bridges import flower

federation = federation_of(METHODS[{name!r}]())
seen = []

def done(state, history):
    seen.extend([state, history])

run_simulation(
    server_app=flower.server_app(federation, 3, timeout=300, done=done),
    client_app=flower.client_app(federation, clients().__getitem__),
    num_supernodes=N,
    backend_config={{"client_resources": {{"num_cpus": 1}}}},
)
state, history = seen
expected, plain, _ = remote(federation, 3)
delta = federation.algorithm.delta
close(delta(state.server), delta(expected.server))
assert [row["uplink_bytes"] for row in history] == [row["uplink_bytes"] for row in plain]
print("the same rounds")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_a_simulation_of_flower_does_the_same_rounds(name):
    program = PROGRAM.format(helpers=str(HELPERS), name=name)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "the same rounds" in done.stdout, done.stderr[-2000:]
