"""How training scales over rented machines, and what they cost.

    g = T_calc / T_comm for one optimizer step of the target batch size

With c times the machines the calculation takes a c-th, and the communication at best as
long as before:

    speed-up = (g + 1) / (g / c + 1) < g + 1

References:
  Erben, Mayer and Jacobsen, How Can We Train Deep Learning Models Across Clouds and
  Continents? An Experimental Study, 2023, arXiv 2306.03163, PVLDB 17(6).
"""

import math

from fedjax_fm import checks
from fedjax_fm.systems.hardware import Cloud
from fedjax_fm.systems.quantities import BYTES_PER_GB

SECONDS_PER_HOUR = 3600


def speed_up(g: float, factor: float = 2.0) -> float:
    """How much faster `factor` times the machines are, at best.

        (g + 1) / (g / factor + 1)

    Args:
      g: granularity before.
      factor: c, machines afterwards for each machine before, above 0.

    Returns:
      1 for c = 1; at most g + 1; c itself where nothing is communicated.

    Raises:
      ValueError: a negative granularity, or a factor that is not above 0.

    Example:
      >>> round(speed_up(1), 3), round(speed_up(10), 3)  # doubled
      (1.333, 1.833)
      >>> round(speed_up(1, factor=1e12), 3)
      2.0
    """
    checks.real("g", g, least=0, infinite=True)
    checks.real("factor", factor, above=0)
    return factor if math.isinf(g) else (g + 1) / (g / factor + 1)


def granularity_with(g: float, factor: float) -> float:
    """The granularity with `factor` times the machines, or a factor of the batch.

    c times the machines calculate a c-th each; a target batch size of c times the
    examples calculates c times as long and communicates as long as before.

    Args:
      g: granularity before.
      factor: of the calculation of one machine: 1 / c for c times the machines.

    Returns:
      g factor.

    Raises:
      ValueError: a negative granularity, or a factor that is not above 0.
    """
    checks.real("g", g, least=0, infinite=True)
    checks.real("factor", factor, above=0)
    return g * factor


def ring_bytes(n_bytes: float, machines: int) -> float:
    """Bytes that each machine sends in a ring all-reduce.

        2 n_bytes (machines - 1) / machines

    Args:
      n_bytes: of what is summed.
      machines: in the ring.

    Returns:
      Bytes; 0 for one machine.

    Raises:
      ValueError: negative bytes, no machine.

    Example:
      >>> ring_bytes(100.0, 4)
      150.0
    """
    checks.real("n_bytes", n_bytes, least=0)
    checks.whole("machines", machines, least=1)
    return 2 * n_bytes * (machines - 1) / machines


def dollars(cloud: Cloud, machine_seconds: float, egress_bytes: float) -> float:
    """What rented machines cost: their hours, and what leaves them.

    Args:
      cloud: its prices.
      machine_seconds: of all machines together.
      egress_bytes: that leave them, of all together.

    Returns:
      $.

    Raises:
      ValueError: a negative number.
    """
    checks.real("machine_seconds", machine_seconds, least=0)
    checks.real("egress_bytes", egress_bytes, least=0)
    hours = machine_seconds / SECONDS_PER_HOUR
    return hours * cloud.price + egress_bytes / BYTES_PER_GB * cloud.egress


def dollars_per_million(dollars_an_hour: float, samples_a_second: float) -> float:
    """What a million samples cost.

    Args:
      dollars_an_hour: of all machines, egress included.
      samples_a_second: of all machines.

    Returns:
      $.

    Raises:
      ValueError: a negative price, or no samples.

    Example:
      >>> round(dollars_per_million(6.30, 413), 2)  # one DGX-2, ConvNextLarge
      4.24
    """
    checks.real("dollars_an_hour", dollars_an_hour, least=0)
    checks.real("samples_a_second", samples_a_second, above=0)
    an_hour = samples_a_second * SECONDS_PER_HOUR
    return dollars_an_hour / an_hour * 1e6
