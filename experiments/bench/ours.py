"""Our side of a comparison.

A process like a peer's, `python -m fedjax_fm.experiments.bench.ours WORKLOAD ...`.
"""

import jax

from fedjax_fm.experiments.bench import protocol
from fedjax_fm.experiments.bench.workloads import WORKLOADS


def build(name: str, data: protocol.Data):
    """See protocol.serve."""
    simulator, delta = WORKLOADS[name].simulator(data)
    state = simulator.init(delta)

    def run(rounds: int) -> None:
        nonlocal state
        state, _ = simulator.run(state, rounds)
        jax.block_until_ready(state)

    return run, lambda: dict(
        zip(sorted(data.start), jax.tree.leaves(state.delta), strict=True)
    )


if __name__ == "__main__":
    protocol.serve(build)
