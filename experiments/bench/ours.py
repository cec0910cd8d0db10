"""Our side of a comparison, a process like a peer's.

`python -m fedjax_fm.experiments.bench.ours WORKLOAD ...`.
"""

import jax

from fedjax_fm.experiments.bench import protocol
from fedjax_fm.experiments.bench.workloads import WORKLOADS


def build(name: str, data: protocol.Data):
    """Our side of a workload, as `protocol.serve` takes it.

    Args:
      name: of the workload.
      data: that both sides share.
    """
    simulator, delta = WORKLOADS[name].simulator(data)
    state = simulator.init(delta)

    def run(rounds: int) -> None:
        nonlocal state
        state, _ = simulator.run(state, rounds)
        jax.block_until_ready(state)

    def parameters() -> dict[str, jax.Array]:
        leaves = jax.tree.leaves(state.delta)
        return dict(zip(sorted(data.start), leaves, strict=True))

    return run, parameters


if __name__ == "__main__":
    protocol.serve(build)
