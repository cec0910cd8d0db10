"""Samplers: which clients take part in a round.

A `Sampler` is pure and runs inside the compiled loop over rounds.

| sampler | cohort | cost of a draw |
|---|---|---|
| `uniform` | a fixed number, every set equally likely | cohort |
| `poisson` | each client for itself; what privacy accountants assume | cohort |
| `weighted` | a fixed number, likelier the larger the weight | population |
| `fixed` | the same clients each round | nothing |
| `cyclic` | one block after the other | cohort |
| `spaced` | uniform among those long enough not seen; for DP-FTRL | population |
| `available` | uniform among those who are there by a trace | cohort |

No client is twice in a cohort. What a draw returns depends on its state and its key
only.
"""

from fedjax_fm.population.samplers.available import available
from fedjax_fm.population.samplers.poisson import poisson
from fedjax_fm.population.samplers.scheduled import cyclic, fixed
from fedjax_fm.population.samplers.spaced import spaced
from fedjax_fm.population.samplers.uniform import uniform
from fedjax_fm.population.samplers.weighted import weighted

__all__ = ["available", "cyclic", "fixed", "poisson", "spaced", "uniform", "weighted"]
