"""Studies of one seed, arms of a fixed setting, data that do not travel: what the pages
say of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import fedjax_fm as ffm
from fedjax_fm import study, tasks
from fedjax_fm.study import command, markdown, page, results


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = (0.5,)


def good(run):
    return {"accuracy": run["rate"]}


def bad(run):
    return {"accuracy": 0.1 + 0.01 * run.seed}


STUDY = study.Study(
    question="Is good better?",
    expected="good above bad",
    config=Config,
    data=lambda config, seed, split: (),
    primary=study.ACCURACY,
    arms=(study.Arm("good", good, grid={"rate": "rates"}), study.Arm("bad", bad)),
    comparisons=[("good", "bad")],
    controls=[study.Control("bad", "good")],
)


@pytest.fixture
def found(tmp_path):
    """`found(config) -> Results` of a study that was run there."""
    kept = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir",)}
    kept["jax_persistent_cache_min_compile_time_secs"] = (
        jax.config.jax_persistent_cache_min_compile_time_secs
    )

    def run(config):
        folder = command.begin(
            "toy", STUDY, config, tmp_path / "toy", "fedjax-fm run toy"
        )
        command.go(folder, STUDY, config, Console(quiet=True))
        return results.read(folder)

    yield run
    for name, value in kept.items():
        jax.config.update(name, value)


def test_one_seed_allows_no_verdict_and_no_alarm(found):
    one = found(Config())
    assert [verdict.words for verdict in one.verdicts()] == ["one seed, no verdict"]
    assert one.is_sound
    text = markdown.write(one)
    assert "One seed" in text
    assert "inf" not in text
    assert "+40.0 points, one seed" in text
    assert "DID NOT FAIL" not in page.write(one)


def test_a_control_that_is_better_with_one_seed_is_an_alarm(found):
    one = found(Config(rates=(0.05,)))
    assert not one.is_sound
    assert "CONTROL DID NOT FAIL" in markdown.write(one)


def test_a_single_setting_is_taken_without_a_trial(found, tmp_path):
    one = found(Config(seeds=(0, 1, 2)))
    assert one.raw["arms"]["good"]["settings"] == {"rate": 0.5}
    assert one.raw["arms"]["good"]["tuning"] == []
    assert one.settings("good") == "rate 0.5"
    assert sorted(
        path.name for path in (tmp_path / "toy" / "cells" / "good").iterdir()
    ) == [
        "seed-0.json",
        "seed-1.json",
        "seed-2.json",
    ]


def test_two_settings_are_tried(found):
    assert found(Config(rates=(0.2, 0.5))).raw["arms"]["good"]["settings"] == {
        "rate": 0.5
    }


def linear(rounds: int, **how):
    task = tasks.from_logits(lambda delta, backbone, batch, key: batch["x"] @ delta)
    clients = [{"x": np.eye(2, dtype=np.float32), "label": np.array([0, 1])}] * 2
    algorithm = ffm.fedavg(task, optax.sgd(0.1), local_steps=1, batch_size=2)
    run = study.Run("arm", Config(), 0, "final", {}, lambda: ())
    population = ffm.Population.from_clients(clients)
    return run, run.simulate(
        algorithm, population, jnp.zeros((2, 2)), rounds, cohort_size=2, **how
    )


def test_data_in_one_place_send_nothing():
    sent, (run, found) = linear(3)[0], linear(3, travels=False)
    assert sent.bytes == {"uplink_bytes": 3 * 2 * 16, "downlink_bytes": 3 * 2 * 16}
    assert run.bytes == {"uplink_bytes": 0, "downlink_bytes": 0}
    assert len(run.curve) == len(sent.curve) == 3
    assert found.metrics["uplink_bytes"].sum() == 0


def test_no_rounds_give_the_model_that_a_run_starts_from():
    run, found = linear(0)
    assert run.curve == []
    assert not np.asarray(found.model()[0]).any()
