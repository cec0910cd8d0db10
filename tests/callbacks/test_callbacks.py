"""Callbacks: when they are called, what becomes of what they return, and what an error
leaves behind.
"""

import io
import json
import os
import signal
import sys
import types
from typing import ClassVar

import jax
import numpy as np
import optax
import pandas
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss
from rich.console import Console

import fedjax_fm as ffm
from fedjax_fm import callbacks
from fedjax_fm.callbacks.looks import worst_decile
from fedjax_fm.runs.errors import Interrupted, OtherRun, RunFolderError, UsageError

CLIENTS = make_clients(sizes=(6, 1, 4, 2))
DELTA, BACKBONE = make_trees()
TASK = ffm.Task(mlp_loss)
POPULATION = ffm.Population.from_clients(CLIENTS)
ALL = {
    name: np.concatenate([client[name] for client in CLIENTS]) for name in CLIENTS[0]
}


def simulator(algorithm=None, **how):
    algorithm = algorithm or ffm.fedavg(
        TASK, optax.sgd(0.02), local_steps=1, batch_size=8
    )
    return ffm.Simulator(
        algorithm,
        POPULATION,
        backbone=BACKBONE,
        **({"cohort_size": 2, "devices": 1} | how),
    )


ONE = simulator()
START = ONE.init(DELTA)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("rounds", "every", "expected"),
    [(7, 3, [3, 6, 7]), (4, 1, [1, 2, 3, 4]), (2, 5, [2])],
)
def test_it_is_called_every_so_many_rounds_and_at_the_end(rounds, every, expected):
    seen = []

    def look(round, state, metrics):
        assert state.round == round == len(metrics["loss"])
        seen.append(round)

    state, metrics = ONE.run(START, rounds, every=every, callbacks=[look])
    assert seen == expected
    plain, without = ONE.run(START, rounds)
    equal(state.carry.server, plain.carry.server)
    for name, column in without.items():
        np.testing.assert_array_equal(metrics[name], column)


def test_what_it_returns_are_columns_of_a_table():
    _, metrics = ONE.run(
        START,
        5,
        every=2,
        callbacks=[lambda round, state, metrics: {"twice": 2 * round}],
    )
    table = pandas.DataFrame(metrics)
    assert len(table) == 5
    np.testing.assert_array_equal(table["twice"], [np.nan, 4, np.nan, 8, 10])


def test_later_callbacks_see_the_columns_of_earlier_ones():
    seen = []

    def reads(round, state, metrics):
        seen.append(metrics["first"][-1])

    ONE.run(START, 2, callbacks=[lambda round, state, metrics: {"first": round}, reads])
    assert seen == [1, 2]


def broken(round, state, metrics):
    if round == 3:
        raise KeyError("oops")


def test_a_callback_that_raises_is_named_and_the_state_survives():
    with pytest.raises(
        callbacks.CallbackError, match="the callback broken failed after round 3"
    ) as caught:
        ONE.run(START, 5, callbacks=[broken])
    assert isinstance(caught.value.__cause__, KeyError)
    expected, metrics = ONE.run(START, 5)
    np.testing.assert_array_equal(caught.value.metrics["loss"], metrics["loss"][:3])
    onward, _ = ONE.run(caught.value.state, 2)
    equal(onward.carry.server, expected.carry.server)


def test_an_error_inside_a_round_says_in_which():
    def late():
        raise KeyError("a column that is not there")

    def loss(delta, backbone, batch, key):
        jax.debug.callback(late)
        return mlp_loss(delta, backbone, batch, key)

    algorithm = ffm.fedavg(ffm.Task(loss), optax.sgd(0.02), local_steps=1, batch_size=8)
    one = simulator(algorithm)
    with pytest.raises(jax.errors.JaxRuntimeError, match="not there") as caught:
        one.run(one.init(DELTA), 3, callbacks=[lambda *now: None])
    assert "fedjax_fm: in round 1" in caught.value.__notes__


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"loss": 1.0},
            "'loss', a column of the callback bad, is a metric of the rounds",
        ),
        ({"x": [1, 2]}, "expected a number as 'x' of the callback bad"),
        (3, "expected {name: number} or None from the callback bad"),
    ],
)
def test_what_is_no_column_is_refused(found, said):
    def bad(round, state, metrics):
        return found

    with pytest.raises(callbacks.CallbackError, match="callback bad") as caught:
        ONE.run(START, 1, callbacks=[bad])
    assert said in str(caught.value.__cause__)


def test_two_callbacks_of_one_column_are_refused():
    both = [callbacks.evaluate(TASK, ALL), callbacks.evaluate(TASK, ALL)]
    with pytest.raises(callbacks.CallbackError) as caught:
        ONE.run(START, 1, callbacks=both)
    assert "two callbacks gave the column 'eval_loss'" in str(caught.value.__cause__)


def test_what_is_no_callback_is_refused_before_any_round():
    with pytest.raises(TypeError, match="expected callbacks as functions"):
        ONE.run(START, 1, callbacks=["progress"])


def test_a_state_that_a_function_keeps_is_not_taken_over():
    kept = []
    private = simulator(
        ffm.algorithms.local_only(TASK, optax.sgd(0.02), local_steps=1, batch_size=8)
    )
    private.run(
        private.init(DELTA),
        4,
        callbacks=[lambda round, state, metrics: kept.append(state)],
    )
    for round, state in enumerate(kept, 1):
        expected, _ = private.run(private.init(DELTA), round)
        equal(state.carry.clients, expected.carry.clients)


def test_a_round_that_fails_keeps_the_columns_so_far():
    wild = simulator(ffm.fedavg(TASK, optax.sgd(1e18), local_steps=2, batch_size=8))

    def seen(round, state, metrics):
        return {"seen": round}

    with pytest.raises(ffm.NonFiniteClient) as caught:
        wild.run(wild.init(DELTA), 30, callbacks=[seen])
    assert len(caught.value.metrics["loss"]) == caught.value.round
    assert caught.value.metrics.get("seen", np.zeros(0)).tolist() == list(
        range(1, caught.value.round + 1)
    )


# Looks


def test_evaluate_scores_the_servers_model():
    state, metrics = ONE.run(
        START, 3, every=3, callbacks=[callbacks.evaluate(TASK, ALL, batch_size=4)]
    )
    expected = float(np.mean(mlp_loss(state.delta, BACKBONE, ALL, None)[0]))
    np.testing.assert_allclose(metrics["eval_loss"][-1], expected, rtol=1e-5)


@pytest.mark.parametrize("personal", [False, True])
def test_evaluate_clients_scores_each_clients_own_model(personal):
    method = ffm.algorithms.local_only if personal else ffm.fedavg
    one = simulator(
        method(TASK, optax.sgd(0.02), local_steps=1, batch_size=8), cohort_size=4
    )
    state, metrics = one.run(
        one.init(DELTA),
        2,
        every=2,
        callbacks=[callbacks.evaluate_clients(TASK, POPULATION)],
    )

    def delta_of(k):
        return (
            jax.tree.map(lambda x: x[k], state.carry.clients)
            if personal
            else state.delta
        )

    losses = [
        np.mean(mlp_loss(delta_of(k), BACKBONE, client, None)[0])
        for k, client in enumerate(CLIENTS)
    ]
    np.testing.assert_allclose(metrics["clients_loss"][-1], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["clients_loss_worst_decile"][-1], max(losses), rtol=1e-5
    )


def test_a_personal_model_is_not_scored_on_batches_of_padding():
    seen = []

    def loss(delta, backbone, batch, key):
        seen.append(len(batch["x"]))
        return mlp_loss(delta, backbone, batch, key)

    method = ffm.algorithms.local_only(
        TASK, optax.sgd(0.02), local_steps=1, batch_size=8
    )
    one = simulator(method, cohort_size=4)
    look = callbacks.evaluate_clients(ffm.Task(loss), POPULATION)
    one.run(one.init(DELTA), 1, callbacks=[look])
    assert set(seen) == {6}  # the largest client's


def test_a_client_without_test_examples_is_left_out():
    nobody = {name: array[:0] for name, array in CLIENTS[0].items()}
    population = ffm.Population.from_clients([nobody, *CLIENTS[1:]])
    state, metrics = ONE.run(
        START, 1, callbacks=[callbacks.evaluate_clients(TASK, population)]
    )
    losses = [
        np.mean(mlp_loss(state.delta, BACKBONE, client, None)[0])
        for client in CLIENTS[1:]
    ]
    np.testing.assert_allclose(metrics["clients_loss"][-1], np.mean(losses), rtol=1e-5)


def test_the_worst_decile():
    assert worst_decile(np.arange(20.0), "accuracy") == 0.5
    assert worst_decile(np.arange(20.0), "loss") == 18.5
    assert worst_decile(np.array([3.0, np.nan, 5.0]), "loss") == 5


def test_empty_test_sets_and_other_clients_are_refused():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        callbacks.evaluate(TASK, {"x": np.zeros((0, 3))})
    with pytest.raises(ValueError, match="nothing to evaluate"):
        callbacks.evaluate_clients(
            TASK,
            ffm.Population.from_clients([{k: v[:0] for k, v in CLIENTS[0].items()}]),
        )
    fewer = callbacks.evaluate_clients(TASK, ffm.Population.from_clients(CLIENTS[:3]))
    with pytest.raises(ValueError, match="expected test examples of 4 clients"):
        ONE.run(START, 1, callbacks=[fewer])


# An early end


def score(values):
    def given(round, state, metrics):
        return {"score": values[round - 1]}

    return given


@pytest.mark.parametrize(
    ("values", "how", "rounds"),
    [
        ([5, 4, 4, 4, 3, 2], {"patience": 2}, 4),
        ([5, 4, 3, 2, 1, 0], {"patience": 1}, 6),
        ([5, 4.9, 4.8, 0, 0, 0], {"patience": 2, "least_improvement": 0.5}, 3),
        ([1, 2, 2, 2, 3, 3], {"patience": 2, "highest": True}, 4),
    ],
)
def test_early_stopping(values, how, rounds):
    state, metrics = ONE.run(
        START, 6, callbacks=[score(values), callbacks.early_stopping("score", **how)]
    )
    assert state.round == rounds == len(metrics["loss"])


def test_accuracy_is_better_when_it_is_higher():
    stop = callbacks.early_stopping("eval_accuracy", patience=1)
    state, _ = ONE.run(
        START,
        3,
        callbacks=[lambda round, state, metrics: {"eval_accuracy": round}, stop],
    )
    assert state.round == 3


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(callbacks.CallbackError) as caught:
        ONE.run(START, 1, callbacks=[callbacks.early_stopping("eval_los", patience=1)])
    assert "there is no such column; there are clients" in str(caught.value.__cause__)


def test_a_function_may_stop_and_the_others_are_still_called():
    seen = []

    def enough(round, state, metrics):
        if round == 2:
            raise callbacks.Stop

    state, _ = ONE.run(
        START, 9, callbacks=[enough, lambda round, state, metrics: seen.append(round)]
    )
    assert state.round == 2
    assert seen == [1, 2]


# Going on


def watched(folder, *more):
    return [
        callbacks.evaluate(TASK, ALL),
        *more,
        callbacks.checkpoint(folder),
        callbacks.track(folder / "tracked"),
    ]


def read(folder):
    return (folder / "metrics.jsonl").read_bytes()


def interrupt(at):
    def raises(round, state, metrics):
        if round == at:
            raise RuntimeError

    return raises


@pytest.mark.parametrize("at", [2, 4, 6])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(tmp_path, at):
    whole, metrics = ONE.run(START, 7, every=2, callbacks=watched(tmp_path / "whole"))
    with pytest.raises(callbacks.CallbackError):
        ONE.run(START, 7, every=2, callbacks=watched(tmp_path / "cut", interrupt(at)))
    other = simulator()
    state, again = other.run(
        other.init(DELTA), 7, every=2, callbacks=watched(tmp_path / "cut")
    )
    equal(state.carry, whole.carry)
    assert list(again)
    assert sorted(again) == sorted(metrics)
    for name in metrics:
        np.testing.assert_array_equal(again[name], metrics[name])
        assert again[name].dtype == metrics[name].dtype
    for place in ("", "tracked"):
        assert read(tmp_path / "cut" / place) == read(tmp_path / "whole" / place)
    assert read(tmp_path / "whole") == read(tmp_path / "whole" / "tracked")


def test_a_finished_run_is_read_and_a_longer_one_goes_on(tmp_path):
    first, metrics = ONE.run(START, 4, every=2, callbacks=watched(tmp_path))
    again, same = ONE.run(START, 4, every=2, callbacks=watched(tmp_path))
    equal(again.carry, first.carry)
    np.testing.assert_array_equal(same["eval_loss"], metrics["eval_loss"])
    longer, more = ONE.run(START, 6, every=2, callbacks=watched(tmp_path))
    expected, _ = ONE.run(START, 6)
    equal(longer.carry.server, expected.carry.server)
    assert len(more["loss"]) == 6
    with pytest.raises(RunFolderError, match="6 rounds done, 4 were asked for"):
        ONE.run(START, 4, every=2, callbacks=watched(tmp_path))


def test_a_state_that_the_folder_does_not_know_is_refused_and_an_older_one_goes_on(
    tmp_path,
):
    two, _ = ONE.run(START, 2)
    five, _ = ONE.run(START, 5)

    def looks():
        return [
            callbacks.checkpoint(tmp_path, delta=DELTA),
            callbacks.track(tmp_path / "tracked"),
        ]

    ONE.run(START, 4, callbacks=looks())
    with pytest.raises(
        RunFolderError, match="has 4 rounds done, but this state is of round 5"
    ):
        ONE.run(five, 2, callbacks=looks())
    state, metrics = ONE.run(two, 4, callbacks=looks())
    assert state.round == 6
    assert len(metrics["loss"]) == 4  # rounds 3 to 6
    rows = [json.loads(line) for line in read(tmp_path).splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    def looks():
        return [
            score([3, 4, 5, 6]),
            callbacks.early_stopping("score", patience=2),
            callbacks.checkpoint(tmp_path),
        ]

    state, _ = ONE.run(START, 4, callbacks=looks())
    assert state.round == 3
    again, metrics = ONE.run(START, 4, callbacks=looks())
    assert again.round == 3
    assert len(metrics["score"]) == 3


def test_another_run_is_refused(tmp_path):
    ONE.run(START, 2, callbacks=[callbacks.checkpoint(tmp_path)])
    other = simulator(ffm.fedavg(TASK, optax.sgd(0.03), local_steps=1, batch_size=8))
    with pytest.raises(OtherRun, match="begun as another one"):
        other.run(other.init(DELTA), 4, callbacks=[callbacks.checkpoint(tmp_path)])
    with pytest.raises(OtherRun, match="seed: 0 → 8"):
        ONE.run(ONE.init(DELTA, seed=8), 4, callbacks=[callbacks.checkpoint(tmp_path)])


def test_ctrl_c_ends_the_run_after_the_round(tmp_path):
    def presses(round, state, metrics):
        if round == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after round 2 of 5"):
        ONE.run(START, 5, callbacks=[presses, callbacks.checkpoint(tmp_path)])
    state, _metrics = ONE.run(START, 5, callbacks=[callbacks.checkpoint(tmp_path)])
    expected, _ = ONE.run(START, 5)
    equal(state.carry.server, expected.carry.server)
    assert signal.getsignal(signal.SIGINT) is before


# Showing


def test_progress_is_silent_where_nobody_looks(capsys):
    ONE.run(START, 3, callbacks=[callbacks.progress()])
    found = capsys.readouterr()
    assert found.out == found.err == ""


def test_progress_says_what_there_is_to_see():
    text = io.StringIO()
    console = Console(file=text, width=200)
    looks = [
        callbacks.progress("mine", console=console, lines_every=1),
        callbacks.evaluate(TASK, ALL),
    ]
    ONE.run(START, 3, callbacks=looks)
    last = text.getvalue().splitlines()[-1]
    assert last.startswith("mine 3/3 · loss ")
    assert "eval loss" in last
    assert "up 384 B" in last


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(
        UsageError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"
    ):
        callbacks.track(tmp_path, to=["tensorbord"])
    with pytest.raises(UsageError, match="expected to as a list"):
        callbacks.track(tmp_path, to="jsonl")


class Writer:
    """What tensorboardX would be told."""

    made: ClassVar[list] = []

    def __init__(self, folder, purge_step=None, filename_suffix=""):
        self.folder, self.purge_step, self.scalars, self.closed = (
            folder,
            purge_step,
            [],
            False,
        )
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


def test_tensorboard_is_told_each_round_once(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer)
    )
    monkeypatch.setattr(Writer, "made", [])

    def looks():
        return [
            callbacks.checkpoint(tmp_path / "run"),
            callbacks.track(tmp_path, to=["tensorboard"]),
        ]

    ONE.run(START, 2, callbacks=looks())
    ONE.run(START, 3, callbacks=looks())
    first, second = Writer.made
    assert [step for name, _, step in first.scalars if name == "loss"] == [1, 2]
    assert [step for name, _, step in second.scalars if name == "loss"] == [3]
    assert (first.purge_step, second.purge_step) == (None, 3)
    assert first.closed
    assert second.closed


def test_a_tracker_whose_package_is_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax-fm\[wandb\]'"):
        callbacks.track(tmp_path, to=["wandb"])


def test_rows_are_json_that_anybody_reads(tmp_path):
    ONE.run(
        START,
        3,
        every=2,
        callbacks=[callbacks.evaluate(TASK, ALL), callbacks.track(tmp_path)],
    )
    rows = [json.loads(line) for line in read(tmp_path).splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert ["eval_loss" in row for row in rows] == [False, True, True]
    assert rows[-1]["uplink_bytes_total"] == sum(row["uplink_bytes"] for row in rows)
