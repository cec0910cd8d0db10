"""Numbers with a unit and a source, as files of profiles have them.

power = { value = 50, unit = "W", source = "the maker's data sheet", as_of = "2023" }
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_fm import checks
from fedjax_fm.spelling import nearest

JOULES_PER_KWH = 3.6e6
BYTES_PER_GB = 1e9
# {what is measured: {unit: how many of the first unit it is}}
UNITS = {
    "power": {"W": 1.0, "mW": 1e-3, "kW": 1e3},
    "rate of arithmetic": {
        "FLOP/s": 1.0,
        "GFLOP/s": 1e9,
        "TFLOP/s": 1e12,
        "PFLOP/s": 1e15,
    },
    "memory": {"B": 1.0, "MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30},
    "rate of bytes": {
        "B/s": 1.0,
        "MB/s": 1e6,
        "GB/s": 1e9,
        "kbit/s": 1e3 / 8,
        "Mbit/s": 1e6 / 8,
        "Gbit/s": 1e9 / 8,
    },
    "time": {"s": 1.0, "ms": 1e-3},
    "share": {"1": 1.0, "%": 0.01},
    "energy of a byte": {"J/B": 1.0, "kWh/GB": JOULES_PER_KWH / BYTES_PER_GB},
    "carbon intensity": {"gCO2e/kWh": 1.0, "kgCO2e/kWh": 1e3},
    "price of time": {"$/h": 1.0},
    "price of bytes": {"$/GB": 1.0},
}
PARTS = ("value", "unit", "source", "as_of")


class Quantity(NamedTuple):
    """A number of a profile.

    Attributes:
      value: in the first unit of its kind in `UNITS`.
      written: as the file has it, "204.8 GB/s" for example.
      source: where it comes from.
      as_of: when it was so, a year or a month.
    """

    value: float
    written: str
    source: str
    as_of: str


def quantity(where: str, entry: Any, measure: str) -> Quantity:
    """A number as a file has it.

    Args:
      where: of the number, for messages: "devices.toml: phone: power".
      entry: {"value": number, "unit": text, "source": text, "as_of": text}.
      measure: what is measured, a key of `UNITS`.

    Returns:
      The number in the first unit of its kind.

    Raises:
      ValueError: a part is missing or unknown, the unit is not one of the kind, the
        value is no number >= 0.

    Example:
      >>> power = {"value": 1.5, "unit": "kW", "source": "a meter", "as_of": "2026"}
      >>> quantity("mine: power", power, "power").value
      1500.0
    """
    units = UNITS[measure]
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: expected {example_of(measure)}, got {entry!r}")
    if missing := [part for part in PARTS if part not in entry]:
        raise ValueError(
            f"{where} has no {missing[0]}: expected {example_of(measure)}, got "
            f"{dict(entry)!r}"
        )
    for part in entry:
        if part not in PARTS:
            raise ValueError(f"{where}: {nearest(str(part), PARTS, 'part')}")
    unit = entry["unit"]
    if unit not in units:
        raise ValueError(
            f"{where} is in {unit!r}, which is no unit of {measure}; expected one of "
            f"{', '.join(units)}"
        )
    for part in ("source", "as_of"):
        if not isinstance(entry[part], str) or not entry[part].strip():
            raise ValueError(
                f"{where}: expected {part} in words, got {part}={entry[part]!r}"
            )
    try:
        value = checks.real("value", entry["value"], least=0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    return Quantity(
        value=float(value) * units[unit],
        written=f"{value:g} {unit}" if unit != "1" else f"{value:g}",
        source=entry["source"],
        as_of=entry["as_of"],
    )


def example_of(measure: str) -> str:
    """How a number of this kind is written in a file.

    Args:
      measure: a key of `UNITS`.
    """
    units = " or ".join(f'"{unit}"' for unit in UNITS[measure])
    return f'{{ value = NUMBER, unit = {units}, source = "...", as_of = "..." }}'
