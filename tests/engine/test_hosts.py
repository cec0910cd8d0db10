"""Two processes that talk over gloo, as two hosts of a pod would: the same program, the
same numbers.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HELPERS = Path(__file__).resolve().parents[1] / "helpers"

HOST = """
import json, sys
import jax
number, n_hosts, port = map(int, sys.argv[1:])
if n_hosts > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", n_hosts, number)
import numpy as np
from mlp_problem import lossy, simulate
assert len(jax.devices()) == 2 * n_hosts
found = {}
for name, how in {"device": {}, "streamed": {"data": "host"}}.items():
    state, metrics = simulate(rounds=2, uplink=lossy(), devices=2 * n_hosts, block_size=2, **how)
    leaves = jax.tree.leaves((state.delta, state.carry.uplinks))
    found[name] = [np.asarray(x).tolist() for x in leaves] + [metrics["loss"].tolist(), metrics["uplink_bytes"].tolist()]
print(json.dumps(found))
"""


def hosts(n_hosts: int) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(HELPERS)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(number), str(n_hosts), str(port)],
            env=environment,
            cwd=HELPERS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(n_hosts)
    ]
    try:
        answers = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, said) in zip(started, answers, strict=True):
        assert process.returncode == 0, said[-3000:]
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in answers]


def test_two_hosts_agree_with_one():
    (alone,), both = hosts(1), hosts(2)
    for found in both:
        for way, leaves in found.items():
            for leaf, expected in zip(leaves, alone[way], strict=True):
                np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(leaves[-1], alone[way][-1])
    assert both[0] == both[1]
    assert alone["device"][-2] == pytest.approx(alone["streamed"][-2], rel=1e-5)
