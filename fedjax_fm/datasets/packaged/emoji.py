"""The same emoji drawn by several vendors: one set of labels, a domain for each vendor."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.datasets.hashed import splits_of
from fedjax_fm.datasets.packaged.sources import SOURCES, opened
from fedjax_fm.datasets.table import DataFileError, Table, text_column

VENDORS = ("twemoji", "noto", "openmoji")

# Those that all vendors have, without "&"; flags are not drawn by all.
CATEGORIES = (
    "Activities", "Animals Nature", "Food Drink", "Objects", "People Body",
    "Smileys Emotion", "Symbols", "Travel Places",
)  # fmt: skip

_TONE = re.compile(r"-skin-tone")
_PERSON = re.compile(
    r"\b(?:man|men|woman|women|person|people|boy|girl|child|adult)\b-?"
)
_CLOCK = re.compile(r".*-(?:oclock|thirty)")
_KEYCAP = re.compile(r"keycap-.*")


class VendorSet(NamedTuple):
    """The emoji of one vendor.

    Attributes:
      pictures: {name: a whole SVG}.
      categories: {name: one of `CATEGORIES`}.
    """

    pictures: dict[str, str]
    categories: dict[str, str]


def load_emoji(
    vendors: Sequence[str] = VENDORS, cache: str | Path | None = None
) -> Table:
    """Loads the emoji that all of these vendors draw, a client for each vendor.

    The class is the category of Unicode. Variants of an emoji (a man, a woman or a
    person; the hours of a clock; keys) are in the same split, of all vendors.

    Left out and counted, as names: `not_of_all`, those that a vendor lacks, flags and
    what has no category; `skin_tone`, the variants that differ in it alone.

    Args:
      vendors: some of `VENDORS`.
      cache: see `sources.cache_folder`.

    Returns:
      A table of columns `svg` (object, str; see `draw_emoji`), `name` (str, a caption
      such as "alarm-clock"), `vendor` (str), `label` (int32, the place in `CATEGORIES`)
      and `split` (str: train, validation, test; by name without variants), vendor by
      vendor, the names in the same order.

    Raises:
      ValueError: an unknown vendor, one that is named twice, or none.
      MissingArchive: a package is not there; the message says how it is fetched.
      DataFileError: it is not the known one, or not laid out as expected.

    Example:
      >>> table = load_emoji()  # doctest: +SKIP
    """
    if not vendors or len(set(vendors)) != len(vendors) or set(vendors) - set(VENDORS):
        raise ValueError(
            f"expected different vendors of {VENDORS}, got vendors={vendors}"
        )
    sets, listing = [], ""
    for vendor in vendors:
        archive, release = opened(f"emoji_{vendor}", cache)
        names = [f"package/{name}.json" for name in ("icons", "metadata")]
        icons, metadata = (json.loads(x) for x in archive.read_all(names).values())
        sets.append(read_vendor(icons, metadata))
        listing += f"{release.sha256}  {release.file}\n"
    names, dropped = _common_names(sets)
    if not names:
        raise DataFileError(f"no emoji is drawn by all of {list(vendors)}")
    labels = [CATEGORIES.index(sets[0].categories[name]) for name in names]
    columns = {
        "svg": text_column([one.pictures[name] for one in sets for name in names]),
        "name": np.array(names * len(sets)),
        "vendor": np.repeat(np.array(vendors), len(names)),
        "label": np.array(labels * len(sets), dtype=np.int32),
        "split": splits_of([without_variant(name) for name in names] * len(sets)),
    }
    sources = [SOURCES[f"emoji_{vendor}"] for vendor in vendors]
    provenance = {
        "name": "emoji",
        "kind": "real",
        "citation": " ".join(source.citation for source in sources),
        "licence": "; ".join(f"{one.package}: {one.licence}" for one in sources),
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "rows": len(names) * len(sets),
        "dropped": dropped,
    }
    return Table(columns, provenance)


def read_vendor(icons: dict[str, Any], metadata: dict[str, Any]) -> VendorSet:
    """Reads `icons.json` and `metadata.json` of a package of Iconify.

    Args:
      icons: its `icons`, and a `width` and `height` for those without their own.
      metadata: its `categories`.

    Returns:
      Pictures and categories by name; what is hidden (it was withdrawn) is left out.

    Example:
      >>> icons = {"width": 8, "height": 8, "icons": {"ant": {"body": "<path/>"}}}
      >>> read_vendor(icons, {"categories": {"Animals & Nature": ["ant"]}}).categories
      {'ant': 'Animals Nature'}
    """
    pictures = {}
    for name, icon in icons["icons"].items():
        if icon.get("hidden"):
            continue
        width, height = (icon.get(x, icons.get(x, 16)) for x in ("width", "height"))
        side = max(width, height)  # a picture that is not square stands in the middle
        corner = f"{(width - side) / 2:g} {(height - side) / 2:g}"
        pictures[name] = (
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="{corner} {side:g} {side:g}">{icon["body"]}</svg>'
        )
    categories = {
        name: " ".join(category.replace("&", " ").split())
        for category, names in metadata["categories"].items()
        for name in names
    }
    return VendorSet(pictures, categories)


def _common_names(sets: Sequence[VendorSet]) -> tuple[list[str], dict[str, int]]:
    """(names that are kept, {reason: names that are not})."""
    dropped: Counter[str] = Counter()
    kept = []
    for name in sorted({name for one in sets for name in one.pictures}):
        there = all(name in one.pictures for one in sets)
        found = {one.categories.get(name) for one in sets}
        if not there or len(found) != 1 or not found <= set(CATEGORIES):
            dropped["not_of_all"] += 1
        elif _TONE.search(name):
            dropped["skin_tone"] += 1
        else:
            kept.append(name)
    return kept, dict(dropped)


def without_variant(name: str) -> str:
    """What the variants of an emoji have in common: no person, no hour, no key.

    Args:
      name: such as "woman-artist".

    Returns:
      A shorter name, or the name itself.

    Example:
      >>> [without_variant(name) for name in ("woman-artist", "artist", "two-thirty")]
      ['artist', 'artist', 'clock']
    """
    if _CLOCK.fullmatch(name):
        return "clock"
    if _KEYCAP.fullmatch(name):
        return "keycap"
    return _PERSON.sub("", name).strip("-") or "person"


def draw_emoji(pictures: Sequence[str], size: int = 32) -> np.ndarray:
    """Draws SVGs on white; fonts of the machine are not used.

    Args:
      pictures: SVGs, such as `table["svg"]`.
      size: of a side, in pixels.

    Returns:
      uint8[pictures, size, size, 3], red, green and blue.

    Raises:
      ImportError: resvg-py is not installed.
      ValueError: a size below 1, or a picture that cannot be drawn.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(
            "resvg-py draws emoji: pip install 'fedjax-fm[emoji]'"
        ) from error
    from matplotlib import image

    if size < 1:
        raise ValueError(f"expected size >= 1, got size={size}")
    drawn = np.empty((len(pictures), size, size, 3), dtype=np.uint8)
    for row, svg in enumerate(pictures):
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=size,
            height=size,
            background="white",
            skip_system_fonts=True,
        )
        pixels = image.imread(io.BytesIO(bytes(png)), format="png")  # in [0, 1]
        if pixels.shape[:2] != (size, size):
            raise ValueError(
                f"picture {row} is {pixels.shape[:2]} pixels, expected a square of "
                f"size={size}: {svg[:80]!r}"
            )
        drawn[row] = np.rint(pixels[..., :3] * 255)
    return drawn
