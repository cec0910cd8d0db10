"""The section on costs of a report: who has a row, in which units, and what is billed."""

import pytest

from fedjax_fm import systems
from fedjax_fm.study import Run, cost
from fedjax_fm.study.results import VERSION, Results

COUNTS = systems.Counts(
    rounds=5,
    clients=40,
    examples=4000,
    steps=500.0,
    flop=1.29e15,
    bytes_down=400_000_000,
    bytes_up=40_000_000,
    trained=10**6,
    model_bytes=10**9,
)
FROZEN = systems.Preparation(flop=6e9, passes=3.0, model_bytes=50)


def results(factors):
    """Arms whose counts are so many times those above; the last one is a control."""
    arms = {}
    for name, factor in factors.items():
        counts = COUNTS._replace(
            flop=factor * COUNTS.flop, bytes_down=round(factor * COUNTS.bytes_down)
        )
        runs = [{"counts": counts._asdict()}]
        arms[name] = {"label": name.title(), "runs": runs}
    control = {"arm": list(factors)[-1], "than": "first", "note": ""}
    fields = {"version": VERSION, "scores": [], "arms": arms, "controls": [control]}
    return Results(fields)


def test_controls_have_no_row():
    found = cost.of_study(results({"first": 1, "second": 2, "shuffled": 1}))
    assert {row[0] for row in found.rows} == {"First", "Second"}


def test_a_column_has_one_unit_which_stands_in_its_head():
    found = cost.of_study(results({"first": 1, "second": 1000, "shuffled": 1}))
    heads = [head.split(" ")[0] for head in found.head]
    for name in ("time", "energy", "CO2e"):
        place = heads.index(name)
        cells = [row[place] for row in found.rows]
        numbers = [float(part) for cell in cells for part in cell.split(" to ")]
        assert all(number > 0 for number in numbers)
    unit = found.head[heads.index("energy")].split("(")[1].rstrip(")")
    device = systems.scenario(device="phone", link="home", grid="world")
    costs = systems.cost_of(COUNTS, device)
    cell = next(row for row in found.rows if row[0] == "First")[heads.index("energy")]
    wanted = [one / cost.ENERGIES[unit] for one in costs.energy.total]
    shown = [float(part) for part in cell.split(" to ")]
    assert shown == pytest.approx(wanted, rel=6e-3)


class Data:
    """What a study deals, with features that were computed before."""

    preparation = FROZEN


def run_of(data, shared=None):
    return Run("one", None, 0, "final", {}, lambda: data, shared=shared)


def test_who_reads_prepared_data_is_billed_for_it_once():
    shared = {}
    first, second, third = (run_of(Data(), shared) for _ in range(3))
    assert first.data is first.data
    second.once("made", lambda: second.data)
    assert second.counts.prepared_flop == 0  # nothing of the arm has read them
    assert second.data.preparation.flop == first.counts.prepared_flop == 6e9
    assert second.counts.prepared_flop == 6e9
    assert second.counts.prepared_passes == 3
    assert third.counts == systems.Counts()
    assert run_of({"preparation": 1}).data == {"preparation": 1}


def test_what_an_arm_computes_beside_its_rounds_adds_up():
    run = run_of(None)
    run.computed(FROZEN)
    run.computed(FROZEN._replace(model_bytes=70))
    assert (run.counts.prepared_flop, run.counts.prepared_bytes) == (1.2e10, 70)
    with pytest.raises(TypeError, match="expected a Preparation"):
        run.computed(6e9)
