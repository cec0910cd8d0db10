"""Profiles of machines: every number has a unit and a source, and what lacks one is refused by name."""

import re

import pytest

from fedjax_fm.systems import find, hardware, profiles
from fedjax_fm.systems.quantities import UNITS, quantity

POWER = {"value": 12, "unit": "W", "source": "a wattmeter", "as_of": "2026"}
BOARD = """
[device.board]
title = "A board"
power = { value = 12, unit = "W", source = "a wattmeter", as_of = "2026" }
peak = { value = 30, unit = "GFLOP/s", source = "measured", as_of = "2026" }
utilisation = { value = 40, unit = "%", source = "measured", as_of = "2026" }
memory = { value = 8, unit = "GiB", source = "the label", as_of = "2026" }
memory_bandwidth = { value = 17, unit = "GB/s", source = "measured", as_of = "2026" }
"""


def test_the_files_of_the_package_are_whole():
    for kind, own in hardware.KINDS.items():
        found = profiles(kind)
        assert found
        for name, profile in found.items():
            assert isinstance(profile, own)
            assert profile.name == name
            assert set(profile.sources) == set(hardware.MEASURES[kind])
            for number in profile.sources.values():
                assert number.source.strip()
                assert re.fullmatch(r"\d{4}(-\d\d)?", number.as_of)


def test_units_become_those_that_are_counted_in():
    a100 = find("device", "a100-80gb")
    assert (a100.peak, a100.memory_bandwidth) == (312e12, 2.039e12)
    assert a100.utilisation == pytest.approx(0.4)
    home = find("link", "home")
    assert (home.down, home.up, home.latency) == (12.5e6, 3.75e6, 0.02)
    # 0.01 kWh/GB = 36 kJ / 1e9 B
    assert home.network_low == pytest.approx(3.6e-5)
    assert home.network_high == pytest.approx(10 * home.network_low)


def test_a_file_of_ones_own_goes_over_those_of_the_package(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(BOARD + BOARD.replace("board]", "phone]").replace("12", "3"))
    board = find("device", "board", file)
    assert (board.power, board.peak, board.memory) == (12, 3e10, 8 * 2**30)
    assert find("device", "phone", file).power == 3
    assert find("device", "phone").power == 5
    assert find("device", "h100", file).power == 700
    assert find("grid", "FRA", file).intensity == 56


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('unit = "W"', 'unit = "V"', r"board.*power.*'V'.*no unit of power.*W, mW, kW"),
        ('unit = "GB/s"', 'unit = "GB"', r"memory_bandwidth.*'GB'.*rate of bytes"),
        (', source = "a wattmeter"', "", r"board.*power has no source"),
        ('as_of = "2026" }\npeak', 'as_of = "" }\npeak', r"power.*as_of in words"),
        ("value = 12", "value = -1", r"power: expected value >= 0, got value=-1"),
        ("value = 12", 'value = "12"', r"power: expected value >= 0, got value='12'"),
        ("value = 30", "value = 0", r"peak > 0"),
        ("peak =", "peek =", r"unknown field 'peek'.*'peak'"),
        ('title = "A board"\n', "", r"board.*has no title"),
        ("[device.board]", "[devise.board]", r"unknown kind of profile 'devise'"),
        ("= {", "= ", r"cannot read profiles from"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, said):
    file = tmp_path / "mine.toml"
    assert old in BOARD
    file.write_text(BOARD.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"(?s){said}") as raised:
        profiles("device", file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("field", hardware.MEASURES["device"])
def test_a_field_that_is_missing_is_named(tmp_path, field):
    file = tmp_path / "mine.toml"
    file.write_text(re.sub(rf"(?m)^{field} = .*\n", "", BOARD))
    with pytest.raises(
        ValueError, match=rf"'board' has no {field}: expected {field} ="
    ):
        profiles("device", file)


def test_names_that_are_not_there():
    with pytest.raises(
        ValueError, match="unknown device 'a100-80g'; did you mean 'a100-80gb'"
    ):
        find("device", "a100-80g")
    with pytest.raises(ValueError, match="unknown kind of profile 'devices'"):
        profiles("devices")
    with pytest.raises(ValueError, match="cannot read profiles from nowhere"):
        profiles("device", "nowhere.toml")


@pytest.mark.parametrize("measure", UNITS)
def test_every_unit_of_a_kind_is_taken(measure):
    for unit, size in UNITS[measure].items():
        found = quantity("x", POWER | {"unit": unit}, measure)
        assert found.value == pytest.approx(12 * size)
