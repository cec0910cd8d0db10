"""What FADA keeps: the server's state, a client's, and the hyper-parameters."""

from typing import Any, NamedTuple

import jax
import optax

from fedjax_fm.algorithms.fada_networks import FADANetworks
from fedjax_fm.algorithms.fada_source import SourceStep
from fedjax_fm.types import Batches, Tree


class FADAState(NamedTuple):
    """Server state; what is indexed by client, the target's row among it, is [N, ...].

    Attributes:
      delta: the target's parts, and the others as they began.
      identifiers: of domains, leaves [N, ...].
      optimizer: theirs, leaves [N, ...].
      features: f32[N, B, h], of a step.
      real: bool[N, B], their real rows.
      gradients: f32[N, B, h], of what extractors minimise.
      changes: u_k, leaves [N, ...], of a round.
      present: bool[N], who sent one.
      attention: f32[N], alpha of the last round.
    """

    delta: dict[str, Tree]
    identifiers: Tree
    optimizer: Any
    features: jax.Array
    real: jax.Array
    gradients: jax.Array
    changes: Tree
    present: jax.Array
    attention: jax.Array


class FADAClient(NamedTuple):
    """Client state: the parts of a source; the target uses three of them.

    Attributes:
      parts: now.
      start: (G_k, D_k, C_k) at the beginning of the round.
      moments: the optimizer's, by update.
    """

    parts: dict[str, Tree]
    start: dict[str, Tree]
    moments: dict[str, Any]


class FADAMethod(NamedTuple):
    """What `fada` was given, checked."""

    networks: FADANetworks
    source: SourceStep
    identifier_optimizer: optax.GradientTransformation
    target: int
    begin: str
    label: str
    clusters: int
    cluster_steps: int
    temperature: float
    local_steps: int
    batches: Batches
