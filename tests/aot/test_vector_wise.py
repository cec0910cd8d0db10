"""N:M packing compiled by the real compilers for TPUs and GPUs.

Lowered and compiled, and run on neither: what it computes is tested on the CPU, in
`tests/sparsity`. It has no kernel of its own, so that nothing is in interpret mode, and
no hardware product for 2 of 4 is called.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compilers import needs

SCRIPT = Path(__file__).with_name("compile_vector_wise.py")
DENSE = 1024 * 2048 * 2  # bytes of a matrix in bf16


def check(topology):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), topology],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Half of the values, and three bits for each group of four; tiles may be padded.
    packed = DENSE // 2 + 1024 * 2048 // 4 * 3 // 8
    assert packed == DENSE * 8.75 / 16
    assert packed <= found["pack"]["outputs"] < 1.02 * packed
    assert packed <= found["unpack"]["arguments"] < 1.02 * packed
    assert found["unpack"]["outputs"] == DENSE
    # The product is given the packed matrix, and no dense one.
    rows = 256 * 1024 * 2
    assert found["product"]["arguments"] < 1.02 * packed + rows + 4096
    assert all(one["kernels"] == 0 for one in found.values())


@needs("libtpu")
@pytest.mark.slow
def test_for_tpus():
    check("v5e:2x4")


@needs("jax_cuda12_plugin")
@pytest.mark.slow
def test_for_gpus():
    check("h100:8")
