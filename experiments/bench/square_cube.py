"""The square-cube law: wider stages compute longer for each byte that leaves them.

    python -m fedjax_fm.experiments.bench.square_cube [--widths 128 256 512 1024]

A stage of a pipeline computes O(h^2) for each token and sends O(h): the ratio grows as h.
For every width h one JSON line has the operations of a stage of GPT-2's own blocks,
counted in its program, the bytes of activations and gradients at a cut, and the seconds
that forward and backward take on this machine, beside those of the bytes at the given
rate. Attention over T tokens costs O(T h) a token, so that the ratio doubles with h where
h is large beside T.

References:
  Ryabinin et al., SWARM Parallelism, 2023, arXiv 2301.11913, section 3.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import systems
from fedjax_fm.models import GPT2Config, GPT2LMHeadModel

SUMMARY = "How computation for each byte grows with the width of a stage."
REPEATS = 5


class Setup(NamedTuple):
    """Sizes beside the width.

    Attributes:
      layers: of a stage.
      tokens: of a text.
      rows: texts of a microbatch.
      bits: of an entry that is sent; 8 with quantised activations.
      rate: Mbit a second between stages.
    """

    layers: int
    tokens: int
    rows: int
    bits: int
    rate: float


def measured(widths: Sequence[int], setup: Setup) -> Iterator[dict[str, Any]]:
    """One row for each width.

    Args:
      widths: multiples of 64, a head's size.
      setup: all other sizes.

    Yields:
      Counts, seconds and ratios.
    """
    before: dict[str, Any] = {}
    for width in widths:
        row = _of_width(width, setup)
        if before:
            growth = row["flop_per_byte"] / before["flop_per_byte"]
            row["ratio_grew"] = growth
            row["seconds_ratio_grew"] = row["granularity"] / before["granularity"]
        before = row
        yield row


def _of_width(width: int, setup: Setup) -> dict[str, Any]:
    """The middle stage of three, forward and backward."""
    config = GPT2Config(
        vocab_size=64,
        n_positions=setup.tokens,
        n_embd=width,
        n_layer=3 * setup.layers,
        n_head=max(1, width // 64),
        n_inner=4 * width,
    )
    stage = systems.stages_of(GPT2LMHeadModel(config, nnx.Rngs(0)), 3)[1]
    shape = (setup.rows, setup.tokens, width)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def both_ways(own, x):
        y, pull = jax.vjp(lambda own, x: stage.apply(own, x, None), own, x)
        return pull(y)

    flop = systems.flop_of(both_ways, stage.parameters, hidden)
    sent = 2 * hidden.size * setup.bits / 8  # activations on, gradients back
    step = jax.jit(both_ways)
    jax.block_until_ready(step(stage.parameters, hidden))
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(step(stage.parameters, hidden))
        times.append(time.perf_counter() - started)
    seconds, transfer = float(np.median(times)), sent / (setup.rate * 1e6 / 8)
    return {
        "width": width,
        "flop": flop,
        "bytes": sent,
        "flop_per_byte": flop / sent,
        "seconds": seconds,
        "transfer_seconds": transfer,
        "granularity": systems.granularity(seconds, transfer),
    }


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=SUMMARY)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 1024])
    sizes = {"layers": 1, "tokens": 64, "rows": 4, "bits": 8}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=200.0, help="Mbit/s")
    given = vars(parser.parse_args())
    for row in measured(given.pop("widths"), Setup(**given)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
