"""What was found of other frameworks: a file each, and what such a file must hold.

A cell has a verdict, its sources, the day on which somebody looked, and maybe a note:

    [cells."LoRA"]
    verdict = "yes"
    source = ["https://github.com/OWNER/REPOSITORY/blob/COMMIT/PATH"]
    date = 2026-12-01
    note = "by Hugging Face PEFT"
"""

import datetime
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_fm.spelling import nearest

FEATURES = {  # what counts as it
    "foundation-model training": "a pretrained language model is trained in rounds",
    "LoRA": "low-rank factors are what is trained and sent",
    "adapters": "bottleneck layers are what is trained and sent",
    "prompt tuning": "virtual tokens are what is trained and sent",
    "offsite tuning": "clients train the ends of a model whose middle they never get",
    "quantised transport": "updates travel in fewer bits an entry",
    "sparse transport": "updates travel as some of their entries",
    "zero-order": "clients estimate gradients from losses alone",
    "split learning": "a model is cut between client and server, activations travel",
    "differential privacy": "what a client or example can add is bounded, and noise is added",
    "secure aggregation": "the server learns a sum and no summand",
    "asynchronous rounds": "an update counts when it arrives, however old its model",
    "energy metering": "joules of a run, measured or from a model of the hardware",
    "generative evaluation": "answers are written by the model and scored",
}
VERDICTS = ("yes", "part", "none found", "not looked at")
FOLDER = Path(__file__).parent / "frameworks"
ORDER = (  # of the columns: those that the survey cites, then others
    "flower",
    "fedml",
    "tff",
    "nvflare",
    "openfl",
    "ibm",
    "pysyft",
    "substra",
    "fate",
    "federatedscope",
    "fedjax",
    "pfl",
    "flute",
)

_FILE = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/blob/[0-9a-f]{40}/\S+")
_PAGE = re.compile(r"https://[\w-]+(\.[\w-]+)+/\S+")
_PLACE = re.compile(
    r"(first \d+ )?files of [\w.-]+/[\w.-]+ (under|that end in) \S+"
    r"|search of (docs|issues|code|pages): \S.*"
)


class Cell(NamedTuple):
    """One feature of one framework."""

    verdict: str  # of VERDICTS
    source: tuple[str, ...]  # addresses; where nothing was found, also places looked in
    date: datetime.date  # on which it was looked at
    note: str


class Framework(NamedTuple):
    """One column."""

    name: str
    repositories: tuple[str, ...]  # owner/name, as they were looked at
    cells: Mapping[str, Cell]  # by feature, in the order of FEATURES


def frameworks(folder: Path = FOLDER) -> list[Framework]:
    """All columns but ours.

    Args:
      folder: with a file for each name of `ORDER`.

    Raises:
      ValueError: a file is missing, lacks a feature, or has a cell that says not where it
        was seen.
    """
    there = {path.stem for path in folder.glob("*.toml")}
    if there != set(ORDER):
        odd = ", ".join(sorted(there ^ set(ORDER)))
        raise ValueError(f"expected the files of ORDER in {folder}; look at {odd}")
    return [framework(folder / f"{name}.toml") for name in ORDER]


def framework(path: Path) -> Framework:
    """One column.

    Args:
      path: of its file, TOML in UTF-8.

    Raises:
      ValueError: it lacks a feature or has one that is none, or a cell says not where it
        was seen.
    """
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    cells = given["cells"]
    for feature in cells:
        if feature not in FEATURES:
            raise ValueError(f"{path.name}: {nearest(feature, FEATURES, 'feature')}")
    for feature in FEATURES:
        if feature not in cells:
            raise ValueError(f"{path.name}: expected a cell for {feature}, got none")
    read = {name: _cell(f"{path.name}: {name}", cells[name]) for name in FEATURES}
    return Framework(given["name"], tuple(given["repositories"]), read)


def _cell(where: str, given: Mapping[str, Any]) -> Cell:
    """A cell that was checked."""
    verdict, date = given.get("verdict"), given.get("date")
    source = given.get("source", [])
    if verdict not in VERDICTS:
        raise ValueError(f"{where}: expected a verdict of {VERDICTS}, got {verdict!r}")
    if type(date) is not datetime.date:
        raise ValueError(f"{where}: expected the date it was looked at, got {date!r}")
    if bool(source) == (verdict == "not looked at"):
        said = "no source" if source else "a source"
        raise ValueError(f"{where}: expected {said} with {verdict!r}, got {source}")
    for one in source:
        if not _is_source(one, verdict):
            raise ValueError(
                f"{where}: expected a file of GitHub at a commit (40 hex digits), or a page, "
                f"or with 'none found' a place ('files of OWNER/NAME under PATH', 'search "
                f"of docs: WORDS'), got {one!r}"
            )
    note = given.get("note", "")
    return Cell(verdict=verdict, source=tuple(source), date=date, note=note)


def _is_source(text: str, verdict: str) -> bool:
    """Whether that is an address, or with nothing found a place."""
    if "github.com" in text and "/blob/" in text:
        return _FILE.fullmatch(text) is not None  # a branch moves on
    is_place = verdict == "none found" and _PLACE.fullmatch(text)
    return bool(is_place or _PAGE.fullmatch(text))
