"""Devices, links, grids, servers and clouds: profiles from files that people can read.

The files beside this module, `profiles/*.toml`, name for each number its unit and its
source. A file of one's own has the same form and goes over them:

    [device.my-board]
    title = "My board"
    power = { value = 12, unit = "W", source = "a wattmeter at the plug", as_of = "2026" }
    ...
"""

import os
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_fm.spelling import nearest
from fedjax_fm.systems.quantities import Quantity, example_of, quantity

FOLDER = files("fedjax_fm.systems") / "profiles"


class Device(NamedTuple):
    """A machine that trains.

    Attributes:
      name: in the file.
      title: for people.
      power: W while it computes.
      peak: FLOP/s of dense products in half precision, by the maker.
      utilisation: share of the peak that training reaches (MFU).
      memory: bytes.
      memory_bandwidth: bytes a second.
      sources: {field: the number as the file has it, and its source}.
    """

    name: str
    title: str
    power: float
    peak: float
    utilisation: float
    memory: float
    memory_bandwidth: float
    sources: Mapping[str, Quantity]


class Link(NamedTuple):
    """How a client is connected.

    Attributes:
      name: in the file.
      title: for people.
      down: bytes a second towards the client.
      up: bytes a second from the client.
      latency: seconds, each way.
      radio_power: W that sending and receiving takes at the client, beside nothing else.
      network_low: J a byte in the network, by the lowest source.
      network_high: J a byte in the network, by the highest source.
      sources: {field: the number as the file has it, and its source}.
    """

    name: str
    title: str
    down: float
    up: float
    latency: float
    radio_power: float
    network_low: float
    network_high: float
    sources: Mapping[str, Quantity]


class Grid(NamedTuple):
    """Where electricity comes from.

    Attributes:
      name: in the file; a country's code of three letters.
      title: for people.
      intensity: g CO2e for a kWh.
      sources: {field: the number as the file has it, and its source}.
    """

    name: str
    title: str
    intensity: float
    sources: Mapping[str, Quantity]


class ServerMachine(NamedTuple):
    """What aggregates.

    Attributes:
      name: in the file.
      title: for people.
      power: W while a run lasts.
      pue: all that the data centre takes, divided by what its machines take; at least 1.
      sources: {field: the number as the file has it, and its source}.
    """

    name: str
    title: str
    power: float
    pue: float
    sources: Mapping[str, Quantity]


class Cloud(NamedTuple):
    """What a rented machine costs.

    Attributes:
      name: in the file.
      title: for people.
      price: $ an hour of one machine.
      egress: $ a GB that leaves it.
      sources: {field: the number as the file has it, and its source}.
    """

    name: str
    title: str
    price: float
    egress: float
    sources: Mapping[str, Quantity]


KINDS: dict[str, type] = {
    "device": Device,
    "link": Link,
    "grid": Grid,
    "server": ServerMachine,
    "cloud": Cloud,
}
MEASURES = {
    "device": {
        "power": "power",
        "peak": "rate of arithmetic",
        "utilisation": "share",
        "memory": "memory",
        "memory_bandwidth": "rate of bytes",
    },
    "link": {
        "down": "rate of bytes",
        "up": "rate of bytes",
        "latency": "time",
        "radio_power": "power",
        "network_low": "energy of a byte",
        "network_high": "energy of a byte",
    },
    "grid": {"intensity": "carbon intensity"},
    "server": {"power": "power", "pue": "share"},
    "cloud": {"price": "price of time", "egress": "price of bytes"},
}
POSITIVE = ("peak", "utilisation", "memory", "memory_bandwidth", "down", "up", "pue")


def profiles(kind: str, file: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """All profiles of a kind.

    Args:
      kind: "device", "link", "grid", "server" or "cloud".
      file: a TOML file with tables [KIND.NAME], which go over those of the package;
        None for those alone.

    Returns:
      {name: profile}.

    Raises:
      ValueError: an unknown kind; a file that cannot be read; a profile without a field,
        with an unknown one, or with a unit that does not fit: the error names profile,
        field and unit.

    Example:
      >>> profiles("device")["a100-80gb"].power
      400.0
    """
    if kind not in KINDS:
        raise ValueError(nearest(str(kind), KINDS, "kind of profile"))
    text = (FOLDER / f"{kind}s.toml").read_text(encoding="utf-8")
    found = _of_tables(kind, tomllib.loads(text), f"{kind}s.toml")
    if file is not None:
        found |= _of_tables(kind, _opened(Path(file)), str(file))
    return found


def find(kind: str, name: str, file: str | os.PathLike[str] | None = None) -> Any:
    """One profile, by its name.

    Args:
      kind: as for `profiles`.
      name: of the profile.
      file: as for `profiles`.

    Returns:
      A `Device`, `Link`, `Grid`, `ServerMachine` or `Cloud`.

    Raises:
      ValueError: there is none of that name; says which name is nearest. Or as for
        `profiles`.

    Example:
      >>> find("grid", "FRA").intensity
      56.0
      >>> find("grid", "FRB")
      Traceback (most recent call last):
      ...
      ValueError: unknown grid 'FRB'; did you mean 'FRA'? ...
    """
    known = profiles(kind, file)
    if name not in known:
        raise ValueError(nearest(str(name), known, kind))
    return known[name]


def _opened(path: Path) -> dict[str, Any]:
    """The tables of a file of one's own, whose kinds are known."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read profiles from {path}: {error}") from error
    for kind in tables:
        if kind not in KINDS:
            raise ValueError(f"{path}: {nearest(kind, KINDS, 'kind of profile')}")
    return tables


def _of_tables(kind: str, tables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The profiles of one kind in a file."""
    own = tables.get(kind, {})
    return {name: _profile(kind, name, own[name], where) for name in own}


def _profile(kind: str, name: str, fields: Any, where: str) -> Any:
    """One profile, each of its fields checked."""
    who = f"{where}: {kind} {name!r}"
    measures = MEASURES[kind]
    if not isinstance(fields, Mapping) or not isinstance(fields.get("title"), str):
        raise ValueError(f'{who} has no title: expected title = "..." in its table')
    for field in fields:
        if field not in measures and field != "title":
            known = ("title", *measures)
            raise ValueError(f"{who}: {nearest(field, known, 'field')}")
    sources = {}
    for field, measure in measures.items():
        if field not in fields:
            raise ValueError(
                f"{who} has no {field}: expected {field} = {example_of(measure)}"
            )
        sources[field] = quantity(f"{who}: {field}", fields[field], measure)
        if field in POSITIVE and sources[field].value == 0:
            raise ValueError(f"{who}: expected {field} > 0, got 0")
    values = {field: found.value for field, found in sources.items()}
    return KINDS[kind](name=name, title=fields["title"], sources=sources, **values)
