"""What a run would cost on machines that a person picks: a section of every report.

It is predicted from the run's own counts (operations, bytes, rounds) and from profiles of
machines. `fedjax-fm cost FOLDER --device ... --grid ...` picks others, which stay in the
folder's cost.json.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import systems
from fedjax_fm.callbacks.history import metrics_of
from fedjax_fm.engine.billing import in_units
from fedjax_fm.runs.errors import RunFolderError
from fedjax_fm.runs.folder import RunFolder
from fedjax_fm.study import results
from fedjax_fm.study.results import Results
from fedjax_fm.systems.counts import WORK
from fedjax_fm.systems.meter import NOT_MEASURED
from fedjax_fm.systems.quantities import JOULES_PER_KWH

FILE, OWN = "cost.json", "profiles.toml"
TITLE = "What it would cost"
NOT_COUNTED = "not counted"
TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
ENERGIES = {"J": 1.0, "Wh": 3600.0, "kWh": JOULES_PER_KWH}
WEIGHTS = {"mg": 1e-3, "g": 1.0, "kg": 1e3, "t": 1e6}


@dataclasses.dataclass(frozen=True)
class Picks:
    """Which machines a run is costed on.

    Attributes:
      devices: names of devices, each of which all clients would have.
      link: of every client.
      grid: of clients, network and server.
      server: that aggregates.
      cloud: whose machines the clients are; None: their own.
    """

    devices: tuple[str, ...] = ("phone", "jetson-agx-orin", "a100-80gb")
    link: str = "home"
    grid: str = "world"
    server: str = "hyperscale"
    cloud: str | None = None


class Section(NamedTuple):
    """The section of a report.

    Attributes:
      lead: what the table is, in words.
      head: of the table.
      rows: of the table, text.
      notes: what is assumed and what is not known.
      sources: where the numbers of the profiles come from.
    """

    lead: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    sources: list[str]


def of_study(found: Results, folder: RunFolder | None = None) -> Section:
    """The section of a study, a row for each arm and device; controls have none.

    Args:
      found: of the study.
      folder: that may have picks in its cost.json; None: the default ones.

    Returns:
      The section, from means over the seeds.
    """
    arms = {}
    controls = {control["arm"] for control in found.raw["controls"]}
    for arm in found.arms:
        if arm in controls:
            continue
        done = [one for one in found.runs(arm) if "failed" not in one]
        arms[found.label(arm)] = [counts_in(one.get("counts")) for one in done]
    return section(arms, folder)


def of_run(folder: RunFolder) -> Section:
    """The section of one run, from its metrics.jsonl.

    Args:
      folder: of the run.

    Returns:
      The section.
    """
    counts = None
    if folder.has(WORK):
        example = systems.PerExample(**folder.read_json(WORK))
        metrics = metrics_of(folder.metrics())
        counts = systems.counts_of(example, metrics)
    return section({folder.path.resolve().name: [counts]}, folder)


def of_folder(folder: RunFolder) -> Section:
    """The section of whatever run lies in a folder.

    Args:
      folder: with a results.json, or with a metrics.jsonl.

    Returns:
      The section.

    Raises:
      RunFolderError: neither is there.
    """
    if folder.has(results.FILE):
        return of_study(results.read(folder), folder)
    if not folder.has("metrics.jsonl"):
        raise RunFolderError(
            f"{folder.path} has neither results.json, of a study, nor a metrics.jsonl, "
            "of a run: there is nothing to cost"
        )
    return of_run(folder)


def section(
    arms: Mapping[str, Sequence[systems.Counts | None]],
    folder: RunFolder | None = None,
) -> Section:
    """The section of some runs.

    Args:
      arms: {label: counts of each seed, None where they are not known}.
      folder: that may have picks in its cost.json; None: the default ones.

    Returns:
      The section.

    Raises:
      ValueError: a profile of the picks is not known any more.
    """
    picks, own, said = _picked(folder)
    known = {
        label: [one for one in each if one is not None and one.flop is not None]
        for label, each in arms.items()
    }
    known = {
        label: [one for one in each if one.clients] for label, each in known.items()
    }
    loses = any(one.clients_lost for each in known.values() for one in each)
    scenarios = [scenario_of(picks, device, own) for device in picks.devices]
    found = {
        (label, one.device.title): [systems.cost_of(counts, one) for counts in each]
        for label, each in known.items()
        for one in scenarios
    }
    columns = _Columns(
        loses=loses, rents=picks.cloud is not None, units=_Units.of(found.values())
    )
    return Section(
        lead=_lead(scenarios),
        head=["", "every client a", *columns.head],
        rows=[[*names, *columns.cells(costs)] for names, costs in found.items()],
        notes=[*_notes(known), said],
        sources=_sources(scenarios),
    )


def scenario_of(
    picks: Picks, device: str, file: Path | None = None
) -> systems.Scenario:
    """One scenario of the picks.

    Args:
      picks: names of profiles.
      device: one of its devices.
      file: with profiles of one's own.

    Returns:
      The scenario.

    Raises:
      ValueError: an unknown name.
    """
    return systems.scenario(
        device=device,
        link=picks.link,
        grid=picks.grid,
        server=picks.server,
        cloud=picks.cloud,
        file=file,
    )


def pick(folder: RunFolder, picks: Picks, file: Path | None = None) -> None:
    """Keeps picks in a folder, for its reports.

    Args:
      folder: of a run or a study.
      picks: names of profiles.
      file: with profiles of one's own, of which the folder keeps a copy.

    Raises:
      ValueError: an unknown name, or a file that cannot be read.
    """
    for device in picks.devices:
        scenario_of(picks, device, file)  # refuses what is not there
    if file is not None and Path(file).resolve() != (folder.path / OWN).resolve():
        shutil.copyfile(file, folder.path / OWN)
    fields = dataclasses.asdict(picks) | {"measured": _measured(folder)}
    folder.up_to_date().write_json(FILE, fields)


def counts_in(fields: Mapping[str, Any] | None) -> systems.Counts | None:
    """The counts in a cell of a study.

    Args:
      fields: as JSON has them; None in results of an older version.

    Returns:
      The counts; None where there are none.
    """
    return None if fields is None else systems.Counts(**fields)


def as_markdown(found: Section) -> list[str]:
    """The section, for RESULTS.md.

    Args:
      found: the section.

    Returns:
      Lines.
    """
    head, body = found.head, found.rows
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    table += [f"| {' | '.join(row)} |" for row in body]
    notes = [f"- {note}" for note in found.notes]
    sources = [f"- {source}" for source in found.sources]
    parts = [f"## {TITLE}", "", found.lead, ""]
    if body:
        parts += [*table, ""]
    return [*parts, *notes, "", "Profiles:", "", *sources, ""]


class _Units(NamedTuple):
    """The unit of a column, one for all of its rows so that they can be compared."""

    time: str
    energy: str
    weight: str

    @classmethod
    def of(cls, found: Iterable[Sequence[systems.Cost]]) -> "_Units":
        """Those in which the middle row of each column is at least one.

        Args:
          found: costs of each row, one a seed.
        """
        known = [_Means.of(costs) for costs in found if costs]
        return cls(
            time=_unit_for([one.seconds for one in known], TIMES),
            energy=_unit_for([one.joules[1] for one in known], ENERGIES),
            weight=_unit_for([one.grams[1] for one in known], WEIGHTS),
        )


class _Means(NamedTuple):
    """Means over the seeds of a row."""

    seconds: float
    joules: list[float]  # lowest and highest
    grams: list[float]  # likewise

    @classmethod
    def of(cls, found: Sequence[systems.Cost]) -> "_Means":
        """Those of some seeds, at least one."""
        ends = (0, 1)
        return cls(
            seconds=_mean([one.seconds for one in found]),
            joules=[_mean([one.energy.total[i] for one in found]) for i in ends],
            grams=[_mean([one.grams[i] for one in found]) for i in ends],
        )


class _Columns(NamedTuple):
    """The columns of the table, some of which are for some runs alone."""

    loses: bool  # clients dropped out
    rents: bool  # machines are a cloud's
    units: _Units

    @property
    def head(self) -> list[str]:
        """Their heads."""
        units = self.units
        head = [
            f"time ({units.time})",
            "computing",
            f"energy ({units.energy})",
            f"CO2e ({units.weight})",
            "a joule does",
            "memory",
        ]
        head += ["wasted"] if self.loses else []
        return head + (["$"] if self.rents else [])

    def cells(self, found: Sequence[systems.Cost]) -> list[str]:
        """Means over the seeds."""
        if not found:
            return [NOT_COUNTED] + [""] * (len(self.head) - 1)
        first, means, units = found[0], _Means.of(found), self.units
        cells = [
            _digits(means.seconds / TIMES[units.time]),
            f"{100 * _mean([one.compute_share for one in found]):.0f} %",
            _range(means.joules, ENERGIES[units.energy]),
            _range(means.grams, WEIGHTS[units.weight]),
            f"{_mean([one.per_joule for one in found]):.3g} {first.unit}",
            f"{in_units(round(first.memory))}{'' if first.fits else ', too much'}",
        ]
        if self.loses:
            cells.append(f"{100 * _mean([one.wasted_share for one in found]):.1f} %")
        if self.rents:
            cells.append(f"{_mean([one.dollars or 0.0 for one in found]):.3g}")
        return cells


def _mean(values: Sequence[float]) -> float:
    """As Python's own number."""
    return float(np.mean(values))


def _unit_for(values: Sequence[float], units: Mapping[str, float]) -> str:
    """The largest unit in which the middle one of some values is at least one."""
    middle = float(np.median(values)) if len(values) else 0.0
    reached = [name for name, size in units.items() if middle >= size]
    return reached[-1] if reached else next(iter(units))


def _digits(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _range(ends: Sequence[float], size: float) -> str:
    """Two numbers in a unit of this size, or one where they agree."""
    first, second = (_digits(end / size) for end in ends)
    return first if first == second else f"{first} to {second}"


def _lead(scenarios: Sequence[systems.Scenario]) -> str:
    one = scenarios[0]
    where = f"{one.link.title}; electricity of {one.grid.title}; {one.server.title}"
    if one.cloud is not None:
        where += f"; rented: {one.cloud.title}"
    return (
        "Predicted from the run's own operations, bytes and rounds; nothing of it was "
        f"measured. {where}. All clients together, mean over the seeds; time is that of "
        "rounds in a row."
    )


def _notes(known: Mapping[str, Sequence[systems.Counts]]) -> list[str]:
    """What is assumed, and what is not known."""
    notes = [
        "energy is of clients, network and server; a range, as sources for networks "
        "differ tenfold; memory is without activations; features that clients compute "
        "once, of layers that stay frozen, are in it, as computed by all clients; what "
        "building machines emitted is left out; controls have no row"
    ]
    if missing := [label for label, each in known.items() if not each]:
        notes.append(
            f"operations were not counted of: {', '.join(missing)} (nothing is trained, "
            "seeds ran at once, or the program could not be followed)"
        )
    inexact = [
        label for label, each in known.items() if any(not one.is_exact for one in each)
    ]
    if inexact:
        notes.append(
            f"operations are a bound, not exact, of: {', '.join(inexact)} (loops of "
            "unknown length count once, parts that are for some clients count for all)"
        )
    return notes


def _sources(scenarios: Sequence[systems.Scenario]) -> list[str]:
    """A line for each profile, with the source of each of its numbers."""
    shared = [scenarios[0].link, scenarios[0].grid, scenarios[0].server]
    if scenarios[0].cloud is not None:
        shared.append(scenarios[0].cloud)
    lines = []
    for profile in [*(one.device for one in scenarios), *shared]:
        parts = [
            f"{field.replace('_', ' ')} {number.written} ({number.source}, {number.as_of})"
            for field, number in profile.sources.items()
        ]
        lines.append(f"{profile.title}: {'; '.join(parts)}")
    return lines


def _picked(folder: RunFolder | None) -> tuple[Picks, Path | None, str]:
    """(picks, file with own profiles, what is said of measured energy)."""
    nothing = "energy was not measured; `fedjax-fm cost` says what this machine can"
    if folder is None or not folder.has(FILE):
        return Picks(), None, nothing
    fields = dict(folder.read_json(FILE))
    said = fields.pop("measured", nothing)
    picks = Picks(**{**fields, "devices": tuple(fields["devices"])})
    own = folder.path / OWN
    return picks, own if own.is_file() else None, said


def _measured(folder: RunFolder) -> str:
    """What is known of the energy that the run really took, on this machine."""
    rows = []
    if folder.has("seconds.jsonl"):
        text = (folder.path / "seconds.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    joules = [row["joules"] for row in rows if row.get("joules") is not None]
    if not joules:
        how = next((row["measured"] for row in rows if "measured" in row), NOT_MEASURED)
        return f"energy of the simulation itself: {how}"
    how = next(row["measured"] for row in rows if row.get("joules") is not None)
    return (
        f"energy of the simulation itself, measured ({how}): {sum(joules):.4g} J in "
        f"{len(joules)} of {len(rows)} cells"
    )
