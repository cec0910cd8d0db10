"""What a loss may return, and what a person's first call may hold: each mistake is one
sentence while nothing has run.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_fm as ffm
from fedjax_fm.algorithms import masked_loss, train
from fedjax_fm.types import Batches

B, T = 4, 4  # as many positions as examples: [B, T] must not pass for [B]


def clients(n=6, size=5):
    rng = np.random.default_rng(0)
    return [
        {"x": rng.normal(size=(size, 3)).astype(np.float32), "y": np.arange(size) % 3}
        for _ in range(n)
    ]


DELTA = {"w": jnp.zeros((3, 3)), "b": jnp.zeros(3)}


def logits(delta, batch):
    return batch["x"] @ delta["w"] + delta["b"]


def cross_entropy(delta, backbone, batch, key):
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits(delta, batch), batch["y"]
    )
    return losses, {"accuracy": logits(delta, batch).argmax(-1) == batch["y"]}


def returning(change):
    def loss(delta, backbone, batch, key):
        return change(*cross_entropy(delta, backbone, batch, key))

    return loss


WRONG = {
    "mean": (
        lambda losses, metrics: (losses.mean(), metrics),
        r"float32\[4\], got float32\[\]; did you average\?",
    ),
    "column": (
        lambda losses, metrics: (losses[:, None], metrics),
        r"float32\[4\], got float32\[4, 1\]; drop the axes",
    ),
    "by position": (
        lambda losses, metrics: (jnp.tile(losses[:, None], (1, T)), metrics),
        r"float32\[4\], got float32\[4, 4\]; sum or average over the axes behind the first",
    ),
    "another batch": (
        lambda losses, metrics: (losses[:2], metrics),
        r"float32\[4\], got float32\[2\]; the first axis",
    ),
    "a float": (lambda losses, metrics: (0.5, metrics), r"float32\[4\], got a float"),
    "whole numbers": (
        lambda losses, metrics: (losses.astype(int), metrics),
        r"real numbers, got int32\[4\]",
    ),
    "without metrics": (
        lambda losses, metrics: losses,
        r"return \(losses, metrics\).*got float32\[4\]; without",
    ),
    "three things": (
        lambda losses, metrics: (losses, metrics, 1),
        r"\(losses, metrics\).*got a tuple of 3",
    ),
    "a list": (
        lambda losses, metrics: [losses, metrics],
        r"\(losses, metrics\).*got a list of 2",
    ),
    "metric averaged": (
        lambda losses, metrics: (losses, {"accuracy": metrics["accuracy"].mean()}),
        r"value of the metric 'accuracy' per example: float32\[4\], got float32\[\]; did you average\?",
    ),
    "metric by position": (
        lambda losses, metrics: (losses, {"accuracy": jnp.ones((B, T))}),
        r"metric 'accuracy' per example: float32\[4\], got float32\[4, 4\]",
    ),
    "metric named loss": (
        lambda losses, metrics: (losses, {"loss": 0 * losses}),
        "a metric of the name 'loss'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_loss_of_another_shape_is_refused_while_the_round_is_traced(name):
    change, message = WRONG[name]
    algorithm = ffm.fedavg(
        ffm.Task(returning(change)), optax.sgd(0.1), local_steps=2, batch_size=B
    )
    simulator = ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients()), cohort_size=3, devices=1
    )
    with pytest.raises((TypeError, ValueError), match=message):
        simulator.init(DELTA)


@pytest.mark.parametrize("name", WRONG)
def test_a_method_of_ones_own_that_calls_train_is_told_the_same(name):
    """`train` and `masked_loss` look for themselves: a notebook's method need not."""
    change, message = WRONG[name]
    batch = {name: jnp.asarray(array[:B]) for name, array in clients()[0].items()}
    arguments = (DELTA, (), batch, jnp.ones(B, bool), jax.random.key(0))
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(
            lambda *a: masked_loss(ffm.Task(returning(change)), *a), *arguments
        )


@pytest.mark.parametrize("shape", [(), (B, 1), (B, B), (2,)], ids=str)
def test_weights_of_another_shape_are_refused(shape):
    task = ffm.Task(cross_entropy, lambda batch: jnp.ones(shape))
    algorithm = ffm.fedavg(task, optax.sgd(0.1), local_steps=2, batch_size=B)
    simulator = ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients()), cohort_size=3, devices=1
    )
    with pytest.raises(
        ValueError,
        match=r"expected one weight per example: float32\[4\], got float32\[",
    ):
        simulator.init(DELTA)


def test_losses_and_metrics_of_other_types_that_are_right():
    """bfloat16 losses, bool and integer metrics; the step is that of the plain mean."""

    def loss(delta, backbone, batch, key):
        losses, metrics = cross_entropy(delta, backbone, batch, key)
        return losses.astype(jnp.bfloat16), {**metrics, "label": batch["y"]}

    found = jax.grad(
        lambda d: masked_loss(ffm.Task(loss), d, (), _batch(), jnp.ones(B, bool), None)[
            0
        ]
    )(DELTA)
    plain = jax.grad(lambda d: cross_entropy(d, (), _batch(), None)[0].mean())(DELTA)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-3), found, plain)


def _batch():
    return {name: jnp.asarray(array[:B]) for name, array in clients()[0].items()}


def test_an_error_in_the_loss_says_what_the_loss_was_given():
    def loss(delta, backbone, batch, key):
        return batch["x"] @ delta["weight"], {}

    simulator = simulator_of(ffm.Task(loss))
    with pytest.raises(KeyError) as caught:
        simulator.init(DELTA)
    (note,) = [note for note in caught.value.__notes__ if "in the loss" in note]
    assert (
        "delta: b float32[3], w float32[3, 3]; backbone: nothing; batch: x "
        "float32[4, 3], y int32[4]" in note
    )


def simulator_of(task, **how):
    algorithm = ffm.fedavg(task, optax.sgd(0.1), local_steps=2, batch_size=B)
    how = {"cohort_size": 3, "devices": 1} | how
    return ffm.Simulator(algorithm, ffm.Population.from_clients(clients()), **how)


@pytest.mark.parametrize(
    "name",
    ["examples", "clients", "examples_processed", "uplink_bytes", "downlink_bytes"],
)
def test_a_metric_does_not_take_the_place_of_the_engines(name):
    simulator = simulator_of(
        ffm.Task(returning(lambda losses, metrics: (losses, {name: losses})))
    )
    with pytest.raises(
        ValueError, match=rf"metrics named \['{name}'\] are the engine's own"
    ):
        simulator.run(simulator.init(DELTA), 1)


# Examples held and examples processed


def rows_by_hand(n, batch_size, epochs=None, local_steps=None, most=None):
    """Walks the batches one by one."""
    per_epoch = -(-n // batch_size)
    steps = per_epoch * epochs if epochs else local_steps
    steps = steps if most is None else min(steps, most)
    sizes = [min(batch_size, n - batch_size * i) for i in range(per_epoch)]
    return sum(sizes[step % per_epoch] for step in range(steps)) if n else 0


SIZES = (7, 1, 4, 0, 9, 12)


@pytest.mark.parametrize(
    "work",
    [{"epochs": 3}, {"epochs": 1}, {"local_steps": 1}, {"local_steps": 5}],
    ids=str,
)
@pytest.mark.parametrize("most", [None, 2])
def test_examples_processed_are_the_rows_of_the_local_steps(work, most):
    some = [
        {name: array[:n] for name, array in client.items()}
        for client, n in zip(clients(6, 12), SIZES, strict=True)
    ]
    algorithm = ffm.fedavg(
        ffm.Task(cross_entropy), optax.sgd(0.1), batch_size=B, **work
    )
    limit = (
        None
        if most is None
        else ffm.Behaviour(most_steps=lambda client, round_index, key: jnp.int32(most))
    )
    simulator = ffm.Simulator(
        algorithm,
        ffm.Population.from_clients(some),
        cohort_size=6,
        devices=2,
        behaviour=limit,
    )
    _, metrics = simulator.run(simulator.init(DELTA), 2)
    assert metrics["examples"].tolist() == [sum(SIZES)] * 2
    expected = sum(rows_by_hand(n, B, most=most, **work) for n in SIZES)
    assert metrics["examples_processed"].tolist() == [expected] * 2


def test_examples_processed_do_not_wrap():
    """2^32 rows and more: 70 clients of 64 rows, a million steps each."""
    from fedjax_fm.engine.data import n_processed

    rows = n_processed(
        jnp.int32(1000), Batches(batch_size=1000, steps=4_000_000).checked()
    )
    assert int(rows) == 4_000_000_000


# First calls


def bare_loss(delta, backbone, batch, key):
    return cross_entropy(delta, backbone, batch, key)


FACTORY = {
    "a bare function": (
        lambda: ffm.fedavg(bare_loss, optax.sgd(0.1), local_steps=1, batch_size=4),
        r"expected a Task, got task=<function bare_loss.* wrap the loss: Task\(loss\)",
    ),
    "a number": (
        lambda: ffm.fedavg(3, optax.sgd(0.1), local_steps=1, batch_size=4), r"expected a Task, got task=3 of type int"
    ),
    "a rate for an optimizer": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), 0.1, local_steps=1, batch_size=4),
        r"expected client_optimizer to be an optax optimizer .* got 0\.1 of type float; write optax\.sgd\(0\.1\)",
    ),
    "optax.sgd without a rate": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), optax.sgd, local_steps=1, batch_size=4),
        r"expected client_optimizer to be .*call it: optax\.sgd\(learning_rate\)",
    ),
    "a rate for the server": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), optax.sgd(0.1), 1.0, local_steps=1, batch_size=4),
        r"expected server_optimizer to be an optax optimizer, got 1\.0 of type float; write optax\.sgd\(1\.0\)",
    ),
    "a factory for the server": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), optax.sgd(0.1), optax.adam, local_steps=1, batch_size=4),
        r"expected server_optimizer .*call it: optax\.adam\(learning_rate\)",
    ),
    "half a batch": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), optax.sgd(0.1), local_steps=1, batch_size=0.5),
        r"expected a whole number batch_size >= 1, got batch_size=0\.5",
    ),
    "a true batch": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), optax.sgd(0.1), local_steps=1, batch_size=True), "got batch_size=True"
    ),
    "no epoch": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), optax.sgd(0.1), epochs=0, batch_size=4),
        "expected a whole number epochs >= 1, got epochs=0",
    ),
    "steps of NaN": (
        lambda: ffm.fedavg(ffm.Task(bare_loss), optax.sgd(0.1), local_steps=float("nan"), batch_size=4),
        "expected a whole number local_steps >= 1, got local_steps=nan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTORY)
def test_a_factory_names_what_it_cannot_take(name):
    make, message = FACTORY[name]
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_schedule_must_make_an_optimizer():
    simulator = simulator_of(ffm.Task(cross_entropy))
    wrong = ffm.fedavg(
        ffm.Task(cross_entropy), lambda round_index: 0.1, local_steps=1, batch_size=4
    )
    simulator = ffm.Simulator(wrong, simulator.population, cohort_size=3)
    with pytest.raises(
        TypeError,
        match=r"expected client_optimizer\(round\) to make an optax optimizer, got a float",
    ):
        simulator.init(DELTA)


ARGUMENTS = {
    "algorithm": (
        ffm.Task(bare_loss),
        r"expected algorithm to be an Algorithm, got Task.* fedavg\(Task\(loss\)",
    ),
    "population": (
        clients(),
        r"expected population to be a Population, got a list; .* Population\.from_clients",
    ),
    "uplink": (
        "top_k",
        r"uplink: expected a channel, such as channels\.top_k\(0\.01\), got 'top_k' of type str",
    ),
    "downlink": (0.1, r"downlink: expected a channel, .* got 0\.1 of type float"),
    "sampler": (5, r"expected sampler to be a Sampler, got 5 of type int"),
    "behaviour": (
        lambda client, round_index, key: True,
        r"expected behaviour to be a Behaviour",
    ),
    "cohort_size": (
        2.0,
        r"expected a whole number cohort_size >= 1, got cohort_size=2\.0",
    ),
    "seed": ("0", r"expected a whole number 0 <= seed .*, got seed='0'"),
    "devices": (True, r"expected a whole number devices >= 1, got devices=True"),
    "block_size": (0, r"expected a whole number block_size >= 1, got block_size=0"),
    "model_parallel": (
        None,
        r"expected a whole number model_parallel >= 1, got model_parallel=None",
    ),
    "memory": (float("nan"), r"expected a whole number memory >= 1, got memory=nan"),
    "parallel": (
        "vmap",
        r"expected parallel to be one of 'shard_map', 'pmap', got parallel='vmap'",
    ),
    "data": (
        "disk",
        r"expected data to be one of 'auto', 'device', 'host', got data='disk'",
    ),
    "states": (
        True,
        r"expected states to be one of 'auto', 'device', 'host', got states=True",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_simulator_names_what_it_cannot_take(name):
    value, message = ARGUMENTS[name]
    right = {
        "algorithm": ffm.fedavg(
            ffm.Task(cross_entropy), optax.sgd(0.1), local_steps=1, batch_size=B
        ),
        "population": ffm.Population.from_clients(clients()),
        "cohort_size": 3,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        ffm.Simulator(**(right | {name: value}))


DELTAS = {
    "nothing": ({}, "expected a trainable tree, got delta=.* without a single array"),
    "text": (
        {"w": "zeros"},
        "expected arrays of numbers in delta, got 'zeros' of type str at w",
    ),
    "a key": (
        {"w": jnp.zeros(3), "key": jax.random.key(0)},
        r"got key<fry>\[\] at key",
    ),
    "infinity": ({"w": np.array([1.0, np.inf])}, "delta holds NaN or infinity at w"),
    "what narrowing makes infinite": (
        {"w": np.array([1e300])},
        "delta holds NaN or infinity at w",
    ),
    "whole numbers": (
        {**DELTA, "step": jnp.int32(0)},
        r"delta holds int32\[\] at step, which cannot be trained",
    ),
    "flags": (
        {**DELTA, "on": jnp.ones(2, bool)},
        r"delta holds bool\[2\] at on, which cannot be trained",
    ),
}


@pytest.mark.parametrize("name", DELTAS)
def test_a_delta_that_cannot_be_trained_is_refused_by_its_leaf(name):
    delta, message = DELTAS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's own, of the cast
        with pytest.raises((TypeError, ValueError), match=message):
            simulator_of(ffm.Task(cross_entropy)).init(delta)


def test_run_wants_a_state_and_a_number_of_rounds():
    simulator = simulator_of(ffm.Task(cross_entropy))
    state = simulator.init(DELTA)
    with pytest.raises(
        TypeError,
        match=r"expected state to be a SimulationState, got a dict; .* simulator\.init\(delta\)",
    ):
        simulator.run(DELTA, 1)
    for rounds in (1.5, True, "3", None, float("nan")):
        with pytest.raises(
            TypeError, match="expected a whole number rounds >= 0, got rounds="
        ):
            simulator.run(state, rounds)
    with pytest.raises(ValueError, match="rounds >= 0, got rounds=-1"):
        simulator.run(state, -1)


def test_a_state_of_another_method_or_model_is_refused():
    simulator = simulator_of(ffm.Task(cross_entropy))
    state = simulator.init(DELTA)
    adaptive = ffm.fedavg(
        ffm.Task(cross_entropy),
        optax.sgd(0.1),
        optax.adam(0.1),
        local_steps=2,
        batch_size=B,
    )
    other = ffm.Simulator(adaptive, simulator.population, cohort_size=3, devices=1)
    other.init(DELTA)
    with pytest.raises(
        ValueError,
        match="this state is of another algorithm or model than the simulator's",
    ):
        other.run(state, 1)
    again = simulator_of(
        ffm.Task(cross_entropy)
    )  # the same method made anew: a notebook's cell run twice
    again.init(DELTA)
    assert again.run(state, 1)[0].round == 1


def test_a_task_keeps_its_field_names():
    """`checked` builds a task anew: a field that it forgets would be lost."""
    from fedjax_fm.algorithms.losses import checked

    task = ffm.Task(cross_entropy, lambda batch: batch["y"])
    assert task._fields == ("loss", "weight")
    assert checked(task).weight is task.weight


def test_train_is_exported_with_the_weight_of_a_client():
    assert ffm.algorithms.train is train
    assert ffm.algorithms.client_weight is not None
