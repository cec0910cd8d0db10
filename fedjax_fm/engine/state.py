"""The state of a run, as people hold it."""

from dataclasses import dataclass, field

import jax

from fedjax_fm.engine.parts import RoundState
from fedjax_fm.types import Algorithm, Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SimulationState:
    """The whole state of a run, a pytree."""

    carry: RoundState  # everything that passes from round to round
    key: jax.Array  # of the run: names every random number of it
    algorithm: Algorithm = field(metadata={"static": True})

    @property
    def delta(self) -> Tree:
        """The server's trainable tree."""
        return self.algorithm.delta(self.carry.server)

    @property
    def round(self) -> int:
        """Rounds done so far."""
        return int(self.carry.round)
