"""What arms are made of: clients as they are, shuffled labels, the configuration's rounds and steps."""

from dataclasses import dataclass

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import callbacks, peft, study, tasks
from fedjax_fm.study.run import Run


@dataclass(frozen=True)
class Config:
    rounds: int = 3
    tuning_rounds: int = 2
    local_steps: int = 2
    batch_size: int = 4


def clients(n=5):
    rng = np.random.default_rng(1)
    sizes = range(4, 4 + n)
    return [
        {
            "x": rng.normal(size=(size, 3)).astype(np.float32),
            "label": rng.integers(0, 2, size).astype(np.int32),
        }
        for size in sizes
    ]


ADAPTED = peft.apply(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), peft.full())
TASK = tasks.classification(ADAPTED)


def run_of(split="final", config=None, **how):
    return Run("mine", config or Config(), 7, split, {}, lambda: None, **how)


def fedavg():
    return ffm.fedavg(TASK, optax.sgd(0.5), local_steps=2, batch_size=4)


def reference(population, rounds, cohort_size):
    simulator = ffm.Simulator(
        fedavg(),
        population,
        backbone=ADAPTED.backbone,
        cohort_size=cohort_size,
        seed=7,
    )
    return simulator.run(simulator.init(ADAPTED.delta), rounds)[0].delta


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_clients_and_an_adapted_model_are_taken_as_they_are():
    population = ffm.Population.from_clients(clients())
    for split, rounds in (("final", 3), ("tuning", 2)):
        found = run_of(split).simulate(fedavg(), clients(), ADAPTED)
        assert same(found.state.delta, reference(population, rounds, 5))
    found = run_of().simulate(fedavg(), population, ADAPTED, 1, cohort_size=2)
    assert same(found.state.delta, reference(population, 1, 2))


def test_without_rounds_of_its_own_tuning_takes_as_many():
    @dataclass(frozen=True)
    class One:
        rounds: int = 4

    assert run_of("tuning", One()).rounds == run_of("final", One()).rounds == 4


def test_each_client_is_tested_on_its_own_examples():
    population = ffm.Population.from_clients(clients())
    how = {"task": TASK, "every": 1}
    one, other = run_of(), run_of()
    one.simulate(fedavg(), clients(), ADAPTED, test=clients(), **how)
    found = other.simulate(fedavg(), population, ADAPTED, test=population, **how)
    assert one.curve == other.curve
    each = one.score_clients(found, TASK, clients(), "accuracy")
    parts = [ffm.evaluate(TASK, *found.model(), mine) for mine in clients()]
    np.testing.assert_allclose(each, [x["accuracy"].mean() for x in parts], rtol=1e-6)
    server = run_of()
    server.simulate(fedavg(), clients(), ADAPTED, test=clients()[0], **how)
    assert server.curve[-1]["eval_accuracy"] == pytest.approx(
        parts[0]["accuracy"].mean()
    )


def permuted(arrays):
    order = np.random.default_rng(7).permutation(len(arrays["label"]))
    return {**arrays, "label": arrays["label"][order]}


def trained(run, packed, seen):
    train = ffm.Population.from_clients(clients()) if packed else clients()
    found = run.simulate(fedavg(), train, ADAPTED)
    seen.append(found.simulator.population)
    return found.state.delta


@pytest.mark.parametrize("packed", [True, False])
def test_a_control_trains_on_permuted_labels(packed):
    seen = []
    how = {"packed": packed, "seen": seen}
    arm = study.arm_of("fedavg", trained, "FedAvg", {"rate": (1,)}, **how)
    control = study.shuffled(arm)
    assert (control.like, control.title) == ("fedavg", "FedAvg, shuffled labels")
    plain, other = arm.run(run_of()), control.run(run_of())
    whole = ffm.Population.from_clients(clients())
    # Among all clients, also of a list: within each they would keep its mix of labels.
    expected = ffm.Population.from_arrays(permuted(whole.arrays), whole.offsets)
    assert same(plain, reference(whole, 3, 5))
    assert same(other, reference(expected, 3, 5))
    assert not same(plain, other)
    for name, column in expected.arrays.items():
        np.testing.assert_array_equal(seen[1].arrays[name], column)


def test_a_model_that_diverged_is_told_as_training_that_did():
    """Its uploads are finite; the scores of what they sum to are not."""
    huge = ffm.fedavg(
        TASK, optax.sgd(0.5), optax.sgd(1e38), local_steps=2, batch_size=4
    )
    far = {**clients()[0], "x": 1e6 * clients()[0]["x"]}
    with pytest.raises(FloatingPointError, match="loss of example"):
        run_of().simulate(huge, clients(), ADAPTED, 1, task=TASK, test=far)


def test_a_look_that_fails_otherwise_is_told_as_it_is():
    def broken(round, state, metrics):
        raise KeyError("mine")

    with pytest.raises(callbacks.CallbackError, match="broken"):
        run_of().simulate(fedavg(), clients(), ADAPTED, 1, looks=[broken])


def test_a_control_takes_nothing_that_an_arm_has_made():
    shared = {}

    def made(run):
        return run.once("model", lambda: run.shuffles_labels)

    arm = study.Arm("plain", made)
    control = study.shuffled(arm, "Shuffled", name="other")
    assert control.like is None  # the arm is not tuned
    assert (control.name, control.title) == ("other", "Shuffled")
    assert arm.run(run_of(shared=shared)) is False
    assert control.run(run_of(shared=shared)) is True
    assert arm.run(run_of(shared=shared)) is False


def test_a_control_without_labels_is_refused():
    run = run_of()
    run.shuffles_labels = True
    unlabelled = [{"x": one["x"]} for one in clients()]
    with pytest.raises(ValueError, match="needs the column 'label', got x; write"):
        run.simulate(fedavg(), unlabelled, ADAPTED)


def test_a_control_of_an_arm_that_is_like_another_is_like_that_one():
    arm = study.Arm("variant", lambda run: {}, like="fedavg")
    assert study.shuffled(arm).like == "fedavg"


def test_a_walk_is_of_steps_or_of_epochs():
    @dataclass(frozen=True)
    class Epochs:
        epochs: int = 3
        batch_size: int = 16

    assert study.walk(Config()) == {"local_steps": 2, "batch_size": 4}
    assert study.walk(Epochs()) == {"epochs": 3, "batch_size": 16}
