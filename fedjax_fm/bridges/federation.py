"""What server and clients agree on, and what they send each other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_fm.channels.identity import identity
from fedjax_fm.engine.billing import unless_empty
from fedjax_fm.population import samplers
from fedjax_fm.types import Algorithm, Channel, Exchange, Sampler, Setting, Tree


class Federation(NamedTuple):
    """What server and clients agree on before the first round.

    Attributes:
      algorithm: of exchanges that send everyone the same message.
      delta: the trainable tree at the beginning.
      n_clients: N.
      cohort_size: clients a round.
      columns: {name: shape and dtype of one example}, of `jax.ShapeDtypeStruct`.
      n_max: examples of the largest client.
      backbone: frozen parameters, which every machine has.
      uplink, downlink: channels; None sends arrays as they are.
      sampler: default uniform without replacement.
      seed: names every random number.
    """

    algorithm: Algorithm
    delta: Tree
    n_clients: int
    cohort_size: int
    columns: Mapping[str, jax.ShapeDtypeStruct]
    n_max: int
    backbone: Tree = ()
    uplink: Channel | None = None
    downlink: Channel | None = None
    sampler: Sampler | None = None
    seed: int = 0

    @property
    def setting(self) -> Setting:
        """Sizes that an algorithm may divide by."""
        return Setting(self.n_clients, self.cohort_size)

    @property
    def channels(self) -> tuple[Channel, Channel]:
        """(uplink, downlink)."""
        pair = (self.uplink or identity(), self.downlink or identity())
        return unless_empty(pair[0]), unless_empty(pair[1])

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Of a round.

        Raises:
          ValueError: an exchange that cannot be cut at the wire.
        """
        for exchange in self.algorithm.exchanges:
            if not isinstance(exchange, Exchange):
                raise ValueError(
                    "this method talks many times within a round (`Repeat`), which no "
                    "bridge carries; run it by `Simulator`"
                )
            if exchange.address is not None:
                raise ValueError(
                    "this method sends every client its own part of the model, which it "
                    "works out from what that client keeps; a bridge's server does not "
                    "have that: run it by `Simulator`"
                )
        return self.algorithm.exchanges

    def key(self, round: int) -> jax.Array:
        """The key of a round.

        Args:
          round: its number, from 0.
        """
        return jax.random.fold_in(jax.random.key(self.seed), round)


class Request(NamedTuple):
    """What a client is sent.

    Attributes:
      client: its id.
      round: from 0.
      exchange: of the round, from 0.
      arrays: the message, packed, and what both could have known.
    """

    client: int
    round: int
    exchange: int
    arrays: list[np.ndarray]


class Reply(NamedTuple):
    """What a client sends back.

    Attributes:
      client: its id.
      arrays: the upload, packed, its weight, and sums and counts of metrics; none of a
        client without examples.
    """

    client: int
    arrays: list[np.ndarray]


class ServerState(NamedTuple):
    """What the server keeps from round to round.

    Attributes:
      server: the method's own state.
      downlinks: of each exchange, the downlink's channel.
      sampler: the sampler's state.
      round: rounds that are done.
    """

    server: Any
    downlinks: tuple
    sampler: Any
    round: int


Send = Callable[[Sequence[Request]], Sequence[Reply]]


def sampler_of(federation: Federation) -> Sampler:
    """The method's own sampler, else the chosen one, else uniform.

    Args:
      federation: what is agreed on.
    """
    chosen, setting = federation.sampler, federation.setting
    if federation.algorithm.sampler is not None:
        return federation.algorithm.sampler(chosen, setting)
    if chosen is not None:
        return chosen
    return samplers.uniform(setting.n_clients, setting.cohort_size)
