"""Measured energy: counters of RAPL as the kernel lays them out, and none at all."""

import pytest

from fedjax_fm.systems import measured
from fedjax_fm.systems.meter import NOT_MEASURED, counters


def package(folder, name, microjoules, most=1_000_000_000):
    place = folder / name
    place.mkdir(parents=True)
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text(f"{most}\n")
    return place / "energy_uj"


def test_two_packages_add_up_and_one_begins_again(tmp_path):
    one = package(tmp_path, "intel-rapl:0", 5_000_000)
    two = package(tmp_path, "intel-rapl:1", 999_000_000)
    package(tmp_path, "intel-rapl:0:0", 1)  # a part of the first
    with measured(tmp_path) as meter:
        one.write_text("7500000")
        two.write_text("499999")  # beyond 1e9
    reading = meter.reading
    assert reading.joules == pytest.approx(2.5 + 1.5)
    assert reading.how.startswith("RAPL, 2 packages")


def test_counters_that_may_not_be_read_do_not_count(tmp_path):
    package(tmp_path, "intel-rapl:0", 1).unlink()
    (tmp_path / "intel-rapl:1").mkdir()
    assert counters(tmp_path) == []


def test_without_counters_nothing_is_made_up(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with measured(tmp_path) as meter:
        pass
    assert meter.reading.joules is None
    assert meter.reading.how == NOT_MEASURED
    assert meter.reading.seconds >= 0


def test_a_block_that_fails_is_measured_too(tmp_path):
    counter = package(tmp_path, "intel-rapl:0", 0)

    def fails():
        counter.write_text("3000000")
        raise KeyError

    def measure():
        with measured(tmp_path) as meter:
            meters.append(meter)
            with pytest.raises(RuntimeError, match="after its block has ended"):
                _ = meter.reading
            fails()

    meters = []
    with pytest.raises(KeyError):
        measure()
    assert meters[0].reading.joules == 3.0
