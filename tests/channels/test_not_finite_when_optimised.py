"""No bad value passes in silence where XLA optimises, which it does not in the other
tests; see conftest.py.
"""

import os
import subprocess
import sys

PROGRAM = """
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import channels, kernels

CHANNELS = {
    "top_k": channels.top_k(0.1),
    "threshold, max": channels.threshold(0.5, "max"),
    "threshold, rms": channels.threshold(0.5, "rms"),
    "quantize": channels.quantize(4),
    "quantize, one bucket": channels.quantize(4, bucket_size=None),
    "quantize, l2": channels.quantize(4, "l2", None),
    "ternary": channels.ternary(),
    "sign": channels.sign(),
    "natural": channels.natural(),
    "eden": channels.eden(2),
    "int_blocks": channels.int_blocks(),
    "nf4": channels.nf4(),
    "cast": channels.cast("float8_e4m3fn", 32),
    "nnadq": channels.nnadq(),
}
KEY, X = jax.random.key(0), np.random.default_rng(0).normal(size=5000).astype(np.float32)


def uniform(x):
    return kernels.uniform_dequantize(*kernels.uniform_quantize(x, KEY, 4))


def through(channel):
    return lambda x: channel.decode(channel.encode((), x, KEY)[0])


for name, way in {name: through(channel) for name, channel in CHANNELS.items()}.items() | {("uniform", uniform)}:
    send = jax.jit(way)
    assert np.isfinite(send(X)).all(), name
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for place in (3, 200, 4999):
            x = X.copy()
            x[place] = bad
            if np.isfinite(send(x)).all():
                print(f"{name} lets {bad} pass at {place}")
"""


def test_no_bad_value_passes_in_silence():
    environment = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
