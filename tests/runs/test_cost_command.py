"""`fedjax-fm cost`: every report says what its run would cost, on machines that people pick."""

import json

import numpy as np
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import callbacks, systems
from fedjax_fm.runs import RunFolder
from fedjax_fm.study import single


@pytest.fixture
def tiny(command, tmp_path):
    """The folder of a study that was run."""
    sizes = ("grid=0.02", "rounds=3", "seeds=0,1")
    said = command("run", "tiny", "--set", *sizes)
    assert said.code == 0, said.error
    return tmp_path / "runs" / "tiny"


def test_the_section_is_in_every_report_and_says_what_the_counts_say(command, tiny):
    for name in ("RESULTS.md", "report.html"):
        text = (tiny / name).read_text()
        assert "What it would cost" in text
        assert "Jetson AGX Orin 64 GB, 50 W mode" in text
        assert "energy was not measured" in text
    picked = ("--device", "raspberry-pi-5", "--grid", "POL", "--cloud", "gc-t4-spot")
    said = command("cost", tiny, *picked)
    assert said.code == 0, said.error
    results = json.loads((tiny / "results.json").read_text())
    arm = next(iter(results["arms"].values()))
    where = systems.scenario(device="raspberry-pi-5", grid="POL", cloud="gc-t4-spot")
    costs = [
        systems.cost_of(systems.Counts(**one["counts"]), where) for one in arm["runs"]
    ]
    assert all(one["counts"]["flop"] > 0 for one in arm["runs"])
    text = (tiny / "RESULTS.md").read_text()
    assert "Jetson" not in text
    rows = [line for line in text.splitlines() if "Raspberry Pi 5" in line]
    cells = [cell.strip() for cell in rows[0].split("|")]
    assert cells[1] == arm["label"]
    assert f"{np.mean([one.per_joule for one in costs]):.3g} examples" in cells
    assert f"{np.mean([one.dollars for one in costs]):.3g}" in cells
    assert "intensity 662 gCO2e/kWh (codecarbon, global_energy_mix.json, 2023)" in text
    # and it stays so when the pages are written again
    assert command("report", tiny).code == 0
    assert (tiny / "RESULTS.md").read_text() == text


def test_profiles_of_ones_own_are_kept_with_the_run(command, tiny, tmp_path):
    numbers = "".join(
        f'{field} = {{ value = 3, unit = "{unit}", source = "mine", as_of = "2026" }}\n'
        for field, unit in (
            ("power", "W"),
            ("peak", "TFLOP/s"),
            ("utilisation", "%"),
            ("memory", "GB"),
            ("memory_bandwidth", "GB/s"),
        )
    )
    mine = tmp_path / "mine.toml"
    mine.write_text(f'[device.board]\ntitle = "My board"\n{numbers}')
    said = command("cost", tiny, "--device", "board", "--profiles", mine)
    assert said.code == 0, said.error
    mine.unlink()
    assert command("report", tiny).code == 0
    assert "My board" in (tiny / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "fone"), "unknown device 'fone'; did you mean 'phone'"),
        (("--grid", "XYZ"), "unknown grid 'XYZ'"),
        (("--profiles", "nowhere.toml"), "cannot read profiles from nowhere.toml"),
    ],
)
def test_unknown_names_are_refused_and_nothing_is_kept(command, tiny, words, said):
    found = command("cost", tiny, *words)
    assert found.code == 2
    assert said in found.error
    assert not (tiny / "cost.json").exists()


def test_a_run_with_a_tracker_has_the_section_too(command, tmp_path):
    delta, backbone = make_trees()
    method = ffm.fedavg(ffm.Task(mlp_loss), optax.sgd(0.05), epochs=2, batch_size=4)
    population = ffm.Population.from_clients(make_clients())
    simulator = ffm.Simulator(method, population, backbone=backbone, cohort_size=6)
    folder = tmp_path / "one"
    state = simulator.init(delta)
    _, metrics = simulator.run(state, 3, callbacks=[callbacks.track(folder)])
    page = single.write_report(RunFolder(folder)).read_text()
    counts = systems.counts_of(systems.per_example(simulator), metrics)
    cost = systems.cost_of(counts, systems.scenario(device="phone"))
    assert "What it would cost" in page
    assert f"{cost.per_joule:.3g} examples" in page
    assert command("cost", folder, "--device", "t4").code == 0
    assert "Rented machine with a T4" in (folder / "report.html").read_text()


def test_a_folder_without_a_run(command, tmp_path):
    found = command("cost", tmp_path)
    assert found.code == 2
    assert "there is nothing to cost" in found.error
