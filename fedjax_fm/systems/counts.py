"""What the clients of a run did, in the run's own numbers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import trees
from fedjax_fm.engine import Simulator
from fedjax_fm.systems.operations import flop_of_client
from fedjax_fm.systems.preparation import Preparation

WORK = "work.json"  # in the folder of a run: `PerExample`
# Columns whose width is how many tokens an example has.
TOKENS = ("input_ids", "ids", "tokens")
# Of two runs in a row the larger counts, not the sum.
LARGEST = ("trained", "model_bytes", "prepared_bytes")


class Counts(NamedTuple):
    """All clients and rounds of a run together.

    Attributes:
      rounds: of the run.
      clients: times that a client took part and its upload arrived.
      clients_lost: times that one took part and dropped out.
      examples: that the local steps of those that arrived went through.
      examples_lost: likewise, of those that dropped out.
      tokens: in `examples`, padding included; 0 where examples are no text.
      steps: local steps of those that arrived.
      flop: products of those that arrived, None where it was not counted.
      flop_lost: of those that dropped out, likewise.
      bytes_down: billed bytes towards clients, also those that dropped out.
      bytes_up: billed bytes from clients.
      trained: parameters that a client trains.
      model_bytes: of the weights, frozen and trained.
      is_exact: False: `flop` counts a loop of unknown length once, or exchanges that are
        for some clients alone.
      prepared_flop: of what clients computed once beside rounds, see `Preparation`.
      prepared_passes: its batches, each of which reads the weights once.
      prepared_bytes: of the weights that it reads.
    """

    rounds: int = 0
    clients: int = 0
    clients_lost: int = 0
    examples: int = 0
    examples_lost: int = 0
    tokens: int = 0
    steps: float = 0.0
    flop: float | None = 0.0
    flop_lost: float | None = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    trained: int = 0
    model_bytes: int = 0
    is_exact: bool = True
    prepared_flop: float = 0.0
    prepared_passes: float = 0.0
    prepared_bytes: int = 0

    @property
    def lost_share(self) -> float:
        """The share of all participations that dropped out."""
        started = self.clients + self.clients_lost
        return self.clients_lost / started if started else 0.0


class PerExample(NamedTuple):
    """What an example costs in a run, known before its first round.

    Attributes:
      flop: of its products; None where the program could not be followed.
      steps: local steps.
      tokens: padding included; 0 where examples are no text.
      trained: parameters that a client trains.
      model_bytes: of the weights, frozen and trained.
      is_exact: as for `Counts`.
      why_not: what kept `flop` from being counted.
    """

    flop: float | None
    steps: float
    tokens: int
    trained: int
    model_bytes: int
    is_exact: bool
    why_not: str = ""


def per_example(simulator: Simulator) -> PerExample:
    """What an example costs, from one traced client of the mean size.

    Args:
      simulator: after `init`.

    Returns:
      FLOP, steps and tokens of one example, and sizes of the model.
    """
    sizes = np.asarray(simulator.population.sizes)
    mean = max(1, round(float(sizes[sizes > 0].mean()))) if sizes.any() else 1
    delta = simulator.shapes.delta
    known: dict[str, Any] = {
        "tokens": _tokens(simulator.population.arrays),
        "trained": trees.size(delta),
        "model_bytes": trees.nbytes(simulator.backbone) + trees.nbytes(delta),
    }
    try:
        one = flop_of_client(simulator, mean)
    except Exception as error:  # a method of other people may need counts that vary
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return PerExample(flop=None, steps=0.0, is_exact=False, why_not=why, **known)
    rows = max(one.rows, 1)
    return PerExample(
        flop=one.flop / rows,
        steps=one.steps / rows,
        is_exact=one.is_exact,
        **known,
    )


def counts_of(example: PerExample, metrics: Mapping[str, np.ndarray]) -> Counts:
    """What a run did, from its metrics.

    Args:
      example: what one costs.
      metrics: of the run; `clients_lost` and `examples_lost` are there where clients can
        drop out.

    Returns:
      Sums over rounds and clients.
    """

    def total(name: str) -> int:
        return int(np.sum(metrics[name])) if name in metrics else 0

    examples, lost = total("examples_processed"), total("examples_lost")
    flop = example.flop
    return Counts(
        rounds=len(metrics["clients"]),
        clients=total("clients"),
        clients_lost=total("clients_lost"),
        examples=examples,
        examples_lost=lost,
        tokens=examples * example.tokens,
        steps=examples * example.steps,
        flop=None if flop is None else examples * flop,
        flop_lost=None if flop is None else lost * flop,
        bytes_down=total("downlink_bytes"),
        bytes_up=total("uplink_bytes"),
        trained=example.trained,
        model_bytes=example.model_bytes,
        is_exact=example.is_exact,
    )


def together(first: Counts, second: Counts) -> Counts:
    """Two runs in a row, as stages of one method are.

    Args:
      first: one of them.
      second: the other.

    Returns:
      The sums; of what is trained and held, the larger.
    """
    sums = {
        name: getattr(first, name) + getattr(second, name)
        for name in Counts._fields
        if name not in (*LARGEST, "flop", "flop_lost", "is_exact")
    }
    largest = {
        name: max(getattr(first, name), getattr(second, name)) for name in LARGEST
    }
    return Counts(
        flop=_sum(first.flop, second.flop),
        flop_lost=_sum(first.flop_lost, second.flop_lost),
        is_exact=first.is_exact and second.is_exact,
        **sums,
        **largest,
    )


def with_preparation(counts: Counts, done: Preparation) -> Counts:
    """A run whose clients also computed something once beside its rounds.

    Args:
      counts: of the run.
      done: by all clients together.

    Returns:
      The sums; of the weights that are held, the larger.
    """
    return together(
        counts,
        Counts(
            prepared_flop=done.flop,
            prepared_passes=done.passes,
            prepared_bytes=done.model_bytes,
        ),
    )


def _sum(first: float | None, second: float | None) -> float | None:
    """None where either is not known."""
    return None if first is None or second is None else first + second


def _tokens(arrays: Mapping[str, Any]) -> int:
    """Tokens of an example, padding included; 0 where there are none."""
    widths = [
        int(np.prod(arrays[name].shape[1:]))
        for name in TOKENS
        if name in arrays and arrays[name].ndim > 1
    ]
    return max(widths, default=0)
