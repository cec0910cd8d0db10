"""Emoji that all vendors draw, a split that variants share, and pixels."""

import collections
import json

import numpy as np
import pytest
from small_archives import needs, register

from fedjax_fm.datasets import draw_emoji, load_emoji, split_of
from fedjax_fm.datasets.packaged import emoji
from fedjax_fm.datasets.packaged.emoji import CATEGORIES, without_variant
from fedjax_fm.datasets.table import DataFileError

RED = '<path fill="#f00" d="M0 0h8v8H0z"/>'
NAMES = {
    "ant": "Animals & Nature",
    "bread": "Food & Drink",
    "woman-artist": "People & Body",
    "artist": "People & Body",
    "artist-dark-skin-tone": "People & Body",
    "white-flag": "Flags",
    "moved": "Objects",
    "no-category": None,
}


def package(vendor, without=(), **icons):
    found = {name: {"body": RED + vendor} for name in NAMES if name not in without}
    found["withdrawn"] = {"body": RED, "hidden": True}
    categories = collections.defaultdict(list)
    for name, category in NAMES.items():
        if category:
            mine = "Symbols" if (name, vendor) == ("moved", "noto") else category
            written = mine.replace("& ", "") if vendor == "openmoji" else mine
            categories[written].append(name)
    pages = {
        "icons": {"width": 8, "height": 8, "icons": found | icons},
        "metadata": {"categories": categories},
    }
    return {
        f"package/{name}.json": json.dumps(page).encode()
        for name, page in pages.items()
    }


@pytest.fixture
def toy(monkeypatch, tmp_path):
    for vendor in emoji.VENDORS:
        without = ["bread"] if vendor == "noto" else []
        register(monkeypatch, tmp_path, f"emoji_{vendor}", package(vendor, without))


@pytest.mark.usefixtures("toy")
def test_small_packages():
    table = load_emoji()
    assert table["name"].tolist() == ["ant", "artist", "woman-artist"] * 3
    assert table["vendor"].tolist() == np.repeat(emoji.VENDORS, 3).tolist()
    names = [CATEGORIES[label] for label in table["label"]]
    assert names == ["Animals Nature", "People Body", "People Body"] * 3
    assert (
        table["split"].tolist()
        == [split_of("ant"), split_of("artist"), split_of("artist")] * 3
    )
    assert table.provenance["dropped"] == {"not_of_all": 4, "skin_tone": 1}
    assert "openmoji" in table["svg"][-1]
    two = load_emoji(["openmoji", "twemoji"])
    assert {"bread", "moved"} <= set(two["name"].tolist())
    assert two.provenance["sha256"] != table.provenance["sha256"]
    for vendors in ([], ["noto", "noto"], ["apple"]):
        with pytest.raises(ValueError, match="expected different vendors of"):
            load_emoji(vendors)


def test_nothing_in_common(monkeypatch, tmp_path):
    register(monkeypatch, tmp_path, "emoji_noto", package("noto", list(NAMES)))
    with pytest.raises(DataFileError, match="no emoji is drawn by all"):
        load_emoji(["noto"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("man-artist", "artist"), ("person-in-tuxedo", "in-tuxedo"), ("woman", "person"),
        ("two-oclock", "clock"), ("keycap-1", "keycap"), ("men-with-bunny-ears", "with-bunny-ears"),
        ("family-man-woman-boy", "family"), ("family-adult-adult-child", "family"),
        ("manatee", "manatee"), ("mango", "mango"), ("alarm-clock", "alarm-clock"),
    ],
)  # fmt: skip
def test_variants(name, expected):
    assert without_variant(name) == expected


def test_pictures_are_drawn_on_white_and_in_the_middle():
    pytest.importorskip("resvg_py", reason="resvg-py is not installed")
    icons = {
        "square": {"body": RED},
        "flat": {"body": '<path fill="#00f" d="M0 0h8v4H0z"/>', "height": 4},
    }
    page = {"width": 8, "height": 8, "icons": icons}
    pictures = emoji.read_vendor(page, {"categories": {}}).pictures
    drawn = draw_emoji(list(pictures.values()), size=16)
    assert (drawn[0] == [255, 0, 0]).all()
    expected = np.full((16, 16, 3), 255)
    expected[4:12] = [0, 0, 255]
    assert (drawn[1] == expected).all()
    with pytest.raises(ValueError, match="expected size >= 1, got size=0"):
        draw_emoji([], size=0)
    with pytest.raises(ValueError, match="expected a square"):
        draw_emoji(
            ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 4"/>'], size=16
        )


def test_without_resvg_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax-fm\[emoji\]'"):
        draw_emoji([])


def test_the_real_ones():
    for vendor in emoji.VENDORS:
        needs(f"emoji_{vendor}")
    table = load_emoji()
    assert len(table) == 4923
    assert np.unique(table["label"]).tolist() == list(range(8))
    sides = collections.defaultdict(set)
    for row in range(len(table)):
        sides[table["svg"][row].partition(">")[2]].add(str(table["split"][row]))
    assert all(len(splits) == 1 for splits in sides.values())
