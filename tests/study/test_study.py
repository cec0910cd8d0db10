"""The shape of a study, and what follows from its results: arms here only return numbers."""

import dataclasses
import io
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
from rich.console import Console

from fedjax_fm import study
from fedjax_fm.evaluation import holm, paired_seeds
from fedjax_fm.runs import RunFolder
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.study import cells, command, markdown, page, results
from fedjax_fm.study.cells import best_of, is_edge

BASE = {"good": 0.8, "same": 0.8, "bad": 0.5}
NOISE = np.random.default_rng(0).normal(0, 0.01, (20, 3))


@dataclass(frozen=True)
class Config:
    """Settings."""

    grid: tuple[float, ...] = (0.1, 0.2, 0.4)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    planted: bool = False


def data(config, seed, split):
    return {"seed": seed, "split": split}


def arm(name):
    place = list(BASE).index(name)

    def run(run):
        assert run.data == {"seed": run.seed, "split": run.split}
        if run.is_tuning:
            return {"accuracy": -abs(run["rate"] - 0.2)}
        better = 0.3 if run.config.planted and name == "bad" else 0.0
        run.clients.extend([0.1, 0.9])
        run.sent(up=2_000_000, down=1_000_000)
        return {
            "accuracy": BASE[name] + better + NOISE[run.seed, place],
            "loss": 1.0 + place,
        }

    return run


ARMS = (
    study.Arm("good", arm("good"), "Good", {"rate": "grid"}),
    study.Arm("same", arm("same"), "Same", {"rate": (0.2, 0.3, 0.4)}),
    study.Arm("bad", arm("bad"), "Shuffled", like="good"),
)


def make(**how):
    fields = {
        "question": "Which is better?",
        "expected": "good",
        "config": Config,
        "data": data,
        "primary": study.ACCURACY,
        "arms": ARMS,
        "comparisons": (("same", "good"),),
        "controls": (study.Control("bad", "good", "It says little."),),
        "scores": (study.LOSS,),
    }
    return study.Study(**(fields | how))


def run(tmp_path, found=None, config=None, name="one"):
    found, config = found or make(), config or Config()
    folder = command.begin("mine", found, config, tmp_path / name, "fedjax-fm run mine")
    command.go(folder, found, config, Console(file=io.StringIO()))
    return results.read(folder), folder


def test_scores_are_tuned_compared_and_told(tmp_path):
    found, folder = run(tmp_path)
    assert found.raw["arms"]["good"]["settings"] == {"rate": 0.2}
    assert found.settings("good") == "rate 0.2"
    assert found.settings("same") == "rate 0.2 (edge)"
    assert found.raw["arms"]["bad"]["settings"] == {"rate": 0.2}
    expected = 0.8 + NOISE[:4, :2]
    np.testing.assert_array_equal(found.values("same"), expected[:, 1])
    (verdict,) = found.verdicts()
    assert (
        verdict.found == holm({"x": paired_seeds(expected[:, 1], expected[:, 0])})["x"]
    )
    assert found.is_sound
    assert found.megabytes("good", ("uplink_bytes",)) == 2.0
    text = (folder.path / "RESULTS.md").read_text()
    assert "| Same | 79." in text or "| Same | 80." in text
    assert "Shuffled must be worse than Good, and is: -" in text
    html = (folder.path / "report.html").read_text()
    assert "class=verdict" not in html
    assert "verdict sound" in html
    assert "verdict unsound" not in html


def test_settings_that_nothing_was_tried_for_are_not_called_tuned(tmp_path):
    fixed = (
        study.Arm("good", arm("good"), "Good", {"rate": (0.2,)}),
        study.Arm("same", arm("same"), "Same", {"rate": (0.2,)}),
        study.Arm("bad", arm("bad"), "Shuffled", like="good"),
    )
    for arms, said, not_said in (
        (fixed, "and not tuned", "chosen on validation clients"),
        (ARMS, "chosen on validation clients of seed 1000", "not tuned"),
    ):
        _, folder = run(tmp_path, make(arms=arms), name=said[:3])
        for shown in ("RESULTS.md", "report.html"):
            text = (folder.path / shown).read_text()
            assert said in text
            assert not_said not in text


def test_a_control_that_does_not_fail_turns_the_verdict_red(tmp_path):
    found, folder = run(tmp_path, config=Config(planted=True))
    assert not found.is_sound
    html = (folder.path / "report.html").read_text()
    assert "verdict unsound" in html
    assert "A control did not fail: this study cannot tell what it asks" in html
    assert (
        "**CONTROL DID NOT FAIL**: Shuffled must be worse than Good"
        in (folder.path / "RESULTS.md").read_text()
    )
    assert "It says little." in html


def test_everything_shown_comes_from_results_json_alone(tmp_path):
    found, folder = run(tmp_path)
    alone = RunFolder(tmp_path / "alone").made()
    alone.write_text("results.json", (folder.path / "results.json").read_text())
    command.write_pages(alone)
    for name in ("RESULTS.md", "report.html"):
        assert (alone.path / name).read_bytes() == (folder.path / name).read_bytes()
    text = (alone.path / "RESULTS.md").read_text()
    good = 100 * found.values("good")
    assert f"| Good | {good.mean():.1f} ± " in text


def test_cells_are_computed_once_and_what_is_missing_is_computed_again(tmp_path):
    calls = []

    def counted(one):
        inner = one.run
        return dataclasses.replace(
            one,
            run=lambda run: calls.append((one.name, run.split, run.seed)) or inner(run),
        )

    found = make(arms=tuple(counted(one) for one in ARMS))
    _, folder = run(tmp_path, found)
    assert (
        len(calls) == len(set(calls)) + 4 == 2 * 3 + 3 * 4
    )  # two grids of three points at one seed, three arms
    before = (folder.path / "results.json").read_bytes()
    calls.clear()
    (folder.path / "cells" / "same" / "seed-2.json").unlink()
    command.go(folder, found, Config(), Console(file=io.StringIO()))
    assert calls == [("same", "final", 2)]
    assert (folder.path / "results.json").read_bytes() == before


def test_nothing_in_the_results_tells_the_time(tmp_path):
    _, folder = run(tmp_path)
    raw = json.loads((folder.path / "results.json").read_text())
    assert "started" not in raw["provenance"]
    assert "commit" in raw["provenance"]
    assert not re.search(r"\d{4}-\d\d-\d\dT\d\d:", json.dumps(raw))
    assert "started" in folder.read_json("provenance.json")


def test_an_arm_that_fails_is_told_and_not_compared(tmp_path):
    def breaks(run):
        if run.seed == 2:
            raise FloatingPointError("client 3 produced NaN")
        return {"accuracy": 0.5}

    arms = (ARMS[0], study.Arm("same", breaks, "Breaks"), ARMS[2])
    found, folder = run(tmp_path, make(arms=arms))
    assert found.failures("same") == ["seed 2: client 3 produced NaN"]
    (verdict,) = found.verdicts()
    assert verdict.words == "failed: Breaks"
    html = (folder.path / "report.html").read_text()
    assert "What failed" in html
    assert "(3 of 4 seeds)" in html


def test_arms_may_run_all_seeds_at_once(tmp_path):
    def at_once(run):
        return {"accuracy": [0.1 * seed for seed in run.seeds]}

    arms = (ARMS[0], study.Arm("same", at_once, at_once=True), ARMS[2])
    found, _ = run(tmp_path, make(arms=arms))
    np.testing.assert_allclose(found.values("same"), [0, 0.1, 0.2, 0.3])


def test_lower_may_be_better(tmp_path):
    perplexity = dataclasses.replace(study.PERPLEXITY, name="accuracy")
    turned = make(
        primary=perplexity,
        scores=(),
        controls=(study.Control("good", "bad"),),
        comparisons=(("bad", "good"),),
    )
    found, folder = run(tmp_path, turned)
    (verdict,) = found.verdicts()
    assert verdict.words == "better"
    assert found.difference(verdict).startswith("-0.3")
    assert "verdict sound" in (folder.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"controls": ()}, "a study needs a control that must fail"),
        ({"arms": (*ARMS, ARMS[0])}, "two arms are called 'good'"),
        (
            {"comparisons": (("better", "good"),)},
            "there is no arm 'better'; there are good, same, bad",
        ),
        (
            {"controls": (study.Control("good", "good"),)},
            "the arm 'good' is compared with itself",
        ),
        (
            {"arms": (*ARMS[:2], dataclasses.replace(ARMS[2], grid={"rate": (1,)}))},
            "takes the settings of 'good'",
        ),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(how, said):
    with pytest.raises(UsageError, match=said):
        make(**how)


def test_unequal_tuning_budgets_are_refused_before_anything_is_computed(tmp_path):
    arms = (ARMS[0], dataclasses.replace(ARMS[1], grid={"rate": (0.1,)}), ARMS[2])
    with pytest.raises(UsageError, match="the grids have other sizes: good 3, same 1"):
        run(tmp_path, make(arms=arms))
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("returned", [None, 0.5, {"acuracy": 1.0}])
def test_an_arm_returns_its_scores(tmp_path, returned):
    arms = (
        study.Arm("good", lambda run: returned),
        *ARMS[1:2],
        study.Arm("bad", arm("bad")),
    )
    with pytest.raises(TypeError, match="the arm 'good' is to return"):
        run(tmp_path, make(arms=arms))


def test_a_setting_that_is_not_in_the_grid_is_named(tmp_path):
    arms = (
        study.Arm(
            "good", lambda run: {"accuracy": run["rat"]}, grid={"rate": (1, 2, 3)}
        ),
        *ARMS[1:],
    )
    with pytest.raises(KeyError, match="no setting 'rat' in its grid; there are rate"):
        run(tmp_path, make(arms=arms))


def test_the_best_point_and_the_edges():
    assert best_of([0.1, None, 0.3, 0.3], study.ACCURACY) == 2
    assert best_of([0.1, None, 0.3], study.LOSS) == 0
    assert best_of([None, float("nan")], study.LOSS) is None
    points = [{"rate": rate, "kind": kind} for rate in (1, 2, 3) for kind in "ab"]
    assert is_edge(points, 0) == ["rate"]
    assert is_edge(points, 2) == []
    assert is_edge([{"rate": 1}], 0) == []


def test_what_studies_share_of_a_seed_is_made_once(tmp_path):
    made = []

    def shares(name):
        def run(run):
            value = run.once(
                "start", lambda: made.append((run.seed, run.split)) or run.seed
            )
            assert value == run.seed
            return {"accuracy": BASE[name] + NOISE[run.seed % 20, 0] * (name == "bad")}

        return run

    arms = tuple(study.Arm(name, shares(name)) for name in BASE)
    run(tmp_path, make(arms=arms))
    assert made == [(seed, "final") for seed in Config().seeds]


def test_an_arm_in_rounds_keeps_its_curve_its_bytes_and_its_seconds():
    import optax

    import fedjax_fm as ffm
    from fedjax_fm.study.run import Run

    def loss(delta, backbone, batch, key):
        return (batch["x"] @ delta - batch["y"]) ** 2, {}

    rng = np.random.default_rng(0)
    clients = [
        {"x": rng.normal(size=(4, 3)).astype(np.float32), "y": np.ones(4, np.float32)}
        for _ in range(5)
    ]
    population, task = ffm.Population.from_clients(clients), ffm.Task(loss)
    algorithm = ffm.fedavg(task, optax.sgd(0.05), local_steps=2, batch_size=4)
    one = Run("mine", None, 3, "final", {}, lambda: None)
    kwargs = {"cohort_size": 2, "task": task, "test": clients[0]}
    found = one.simulate(
        algorithm, population, np.zeros(3, np.float32), 6, every=2, **kwargs
    )
    assert [row["round"] for row in one.curve] == [2, 4, 6]
    assert (
        one.curve[-1]["eval_loss"]
        == found.scores["loss"]
        == pytest.approx(found.metrics["eval_loss"][-1])
    )
    assert one.bytes == {"uplink_bytes": 6 * 2 * 12, "downlink_bytes": 6 * 2 * 12}
    seconds = [row["seconds"] for row in one.curve]
    assert 0.2 < seconds[0] < seconds[1] < seconds[2]
    still = Run("mine", None, 3, "final", {}, lambda: None)
    still.simulate(
        algorithm,
        population,
        np.zeros(3, np.float32),
        6,
        every=2,
        travels=False,
        **kwargs,
    )
    assert still.bytes == {"uplink_bytes": 0, "downlink_bytes": 0}
    assert (
        still.curve[0]["seconds"] < seconds[0] - 2 * 2 * 0.05
    )  # neither transfers nor their latency
    one.simulate(algorithm, population, found.state.delta, 1, **kwargs)
    assert one.curve[-1]["round"] == 7
    assert one.bytes["uplink_bytes"] == 7 * 2 * 12
    spent = Run("mine", None, 3, "final", {}, lambda: None)
    short = spent.simulate(
        algorithm, population, np.zeros(3, np.float32), 6, most_bytes=3.5 * 48, **kwargs
    )
    assert short.state.round == 3
    assert sum(spent.bytes.values()) == 3 * 48
    whole = one.simulate(algorithm, population, np.zeros(3, np.float32), 3, **kwargs)
    np.testing.assert_array_equal(short.state.delta, whole.state.delta)
    with pytest.raises(
        ValueError, match="the first round sends 48 bytes, more than the 10"
    ):
        spent.simulate(
            algorithm, population, np.zeros(3, np.float32), 6, most_bytes=10, **kwargs
        )


def test_pages_escape_what_they_show(tmp_path):
    found, _ = run(tmp_path, make(question="Is <b>a</b> & b better?"))
    html = page.write(found)
    assert "Is &lt;b&gt;a&lt;/b&gt; &amp; b better?" in html
    assert markdown.answer(found) == "No difference is seen in any comparison."


def test_settings_and_studies_that_are_not_there(tmp_path):
    with pytest.raises(
        UsageError, match="unknown study 'lora_rule'; did you mean 'lora_rules'"
    ):
        command.find("lora_rule")
    file = tmp_path / "a.toml"
    file.write_text("gird = [1]")
    with pytest.raises(UsageError, match="unknown setting 'gird'; did you mean 'grid'"):
        command.settings(make(), False, False, [], file)
    with pytest.raises(UsageError, match="no longer form"):
        command.settings(make(), False, True, [], None)
    assert cells.settings_of(Config())["grid"] == (0.1, 0.2, 0.4)
