"""The carbon account of a run, phase by phase, with what was thrown away.

    CO2e = sum over clients of CI (E_comp + E_radio + E_network) + CI_server E_server
    E_comp = P t_comp,  E_network = bytes J_per_byte,  E_server = P_server t PUE

What a client did that dropped out, or was chosen beyond need, was emitted like all else.
Networks differ tenfold between sources, so that their part is a range. What building the
machines has emitted is not in it.

References:
  Yousefpour, Guo, Shenoy, Ghosh, Stock, Maeng, Krüger, Rabbat, Wu and Mironov, Green
  Federated Learning, 2023, arXiv 2303.14604.
"""

from collections.abc import Iterable
from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.systems.hardware import Grid, Link, ServerMachine
from fedjax_fm.systems.quantities import JOULES_PER_KWH


def grams(joules: float, grid: Grid) -> float:
    """G CO2e of some electricity.

        joules / 3.6e6 intensity

    Args:
      joules: that were used.
      grid: where they come from.

    Returns:
      g CO2e.

    Raises:
      ValueError: a negative number.

    Example:
      >>> from fedjax_fm import systems
      >>> systems.grams(3.6e6, systems.find("grid", "FRA"))  # one kWh
      56.0
    """
    checks.real("joules", joules, least=0)
    return joules / JOULES_PER_KWH * grid.intensity


class Energy(NamedTuple):
    """Joules by phase; the account of some clients, or of a whole run.

    Attributes:
      compute: of the clients' machines, whose work arrived.
      radio: of the clients, while they receive and send.
      network_low: between clients and server, by the lowest source.
      network_high: likewise, by the highest.
      wasted: of the clients' machines and radios, for what never arrived.
      server: with the PUE of its data centre.
    """

    compute: float = 0.0
    radio: float = 0.0
    network_low: float = 0.0
    network_high: float = 0.0
    wasted: float = 0.0
    server: float = 0.0

    @property
    def total(self) -> tuple[float, float]:
        """J of all phases, with the lowest and with the highest figure for networks."""
        beside = self.compute + self.radio + self.wasted + self.server
        return beside + self.network_low, beside + self.network_high

    def grams(self, grid: Grid, at_server: Grid | None = None) -> tuple[float, float]:
        """G CO2e of all phases, (lowest, highest).

        Args:
          grid: of the clients and of the network.
          at_server: of the server; None: the same.
        """
        low, high = (total - self.server for total in self.total)
        of_server = grams(self.server, grid if at_server is None else at_server)
        return grams(low, grid) + of_server, grams(high, grid) + of_server


def energy_of(
    link: Link,
    *,
    watts: float,
    compute_seconds: float,
    bytes_down: float,
    bytes_up: float,
    arrives: bool = True,
) -> Energy:
    """The account of one client, or of several alike together.

    Args:
      link: of the client.
      watts: of its machine while it computes.
      compute_seconds: that it computes.
      bytes_down: that it was sent.
      bytes_up: that it sent.
      arrives: whether its upload counts; else all that it took is wasted.

    Returns:
      Joules by phase.

    Raises:
      TypeError, ValueError: a negative number, or `arrives` is no flag.

    Example:
      >>> from fedjax_fm import systems
      >>> link = systems.find("link", "data-centre")  # no radio
      >>> how = dict(watts=10.0, compute_seconds=3.0, bytes_down=0, bytes_up=0)
      >>> systems.energy_of(link, **how).compute
      30.0
      >>> systems.energy_of(link, **how, arrives=False).wasted
      30.0
    """
    checks.real("watts", watts, least=0)
    checks.real("compute_seconds", compute_seconds, least=0)
    checks.real("bytes_down", bytes_down, least=0)
    checks.real("bytes_up", bytes_up, least=0)
    checks.flag("arrives", arrives)
    compute = watts * compute_seconds
    on_air = bytes_down / link.down + bytes_up / link.up
    radio = link.radio_power * on_air
    sent = bytes_down + bytes_up
    return Energy(
        compute=compute if arrives else 0.0,
        radio=radio if arrives else 0.0,
        network_low=sent * link.network_low,
        network_high=sent * link.network_high,
        wasted=0.0 if arrives else compute + radio,
    )


def energy_of_server(server: ServerMachine, seconds: float) -> Energy:
    """The account of what aggregates, P t PUE.

    Args:
      server: its power and its data centre's PUE.
      seconds: that the run lasts.

    Returns:
      Joules by phase.

    Raises:
      ValueError: negative seconds.
    """
    checks.real("seconds", seconds, least=0)
    return Energy(server=server.power * seconds * server.pue)


def added(accounts: Iterable[Energy]) -> Energy:
    """The sum of accounts, phase by phase.

    Args:
      accounts: of clients, rounds or runs, in any order.

    Returns:
      Joules by phase.

    Example:
      >>> added([Energy(compute=1.0), Energy(compute=2.0, radio=0.5)]).total
      (3.5, 3.5)
    """
    rows = list(accounts)
    columns = zip(*rows, strict=True) if rows else ()
    return Energy(*(sum(column) for column in columns))
