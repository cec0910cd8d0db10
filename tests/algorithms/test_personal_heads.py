"""FedPer, FedRep and FedBABU, whose heads never travel, and fine-tuning a finished model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_problem import loss as lora_loss
from lora_problem import make_clients as lora_clients
from lora_problem import make_trees as lora_trees
from mlp_problem import make_clients, make_trees, mlp_loss
from small_network import mean, moved, run, slope

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels
from fedjax_fm.algorithms import lora_rules

RATE, ROUNDS = 0.05, 2
SIZES = [6, 1, 4, 2]
CLIENTS = make_clients(sizes=SIZES)
DELTA, BACKBONE = make_trees()
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(RATE)
LOCAL = {"local_steps": 3, "batch_size": 8}
PART = {"personal": "^v$"}
W_BYTES = 4 * 3 * 4


def network(algorithm, rounds=ROUNDS, delta=DELTA, **how):
    return run(algorithm, CLIENTS, delta, rounds, backbone=BACKBONE, **how)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)

    jax.tree.map(one, a, b)


def start():
    return {name: leaf.astype(np.float64) for name, leaf in DELTA.items()}


def trained(one, client, steps, names, rate=RATE):
    for _ in range(steps):
        one = moved(one, slope(one, BACKBONE, client), rate, names)
    return one


def plain(client_of):
    """Rounds in which `client_of(body and own head, client) -> the same after training`."""
    w, heads = start()["w"], [start()["v"] for _ in CLIENTS]
    for _ in range(ROUNDS):
        ends = [
            client_of({"w": w, "v": head}, client)
            for head, client in zip(heads, CLIENTS, strict=True)
        ]
        heads = [end["v"] for end in ends]
        w = mean([{"w": end["w"]} for end in ends], SIZES)["w"]
    return w, heads


def together(one, client):
    return trained(one, client, 3, ("w", "v"))


def head_then_body(one, client):
    one = trained(one, client, 2, ("v",), rate=0.1)
    return trained(one, client, 3, ("w",))


REP = {"personal_steps": 2, "personal_optimizer": optax.sgd(0.1)}


@pytest.mark.parametrize(
    ("name", "how", "client_of"),
    [("fedper", {}, together), ("fedrep", REP, head_then_body)],
)
def test_is_the_papers_and_only_the_body_travels(name, how, client_of):
    method = getattr(algorithms, name)(TASK, SGD, **PART, **how, **LOCAL)
    simulator, state, metrics = network(method)
    w, heads = plain(client_of)
    close(state.delta["w"], w)
    equal(
        state.delta["v"], DELTA["v"]
    )  # the first head, with which a new client begins
    for k, head in enumerate(heads):
        close(simulator.model(state, k)[0], {"w": w, "v": head})
    equal(simulator.model(state)[0], state.delta)
    for column in ("uplink_bytes", "downlink_bytes"):
        assert metrics[column].tolist() == [W_BYTES * len(CLIENTS)] * ROUNDS
    assert list(simulator.messages.uploads[0]) == ["w"]


@pytest.mark.parametrize(("part", "still"), [("body", "w"), ("head", "v")])
def test_in_each_of_fedreps_trainings_the_other_part_stays(part, still):
    """A training of rate 0 leaves its own part as it was, bit for bit."""
    rates = {"body": RATE, "head": 0.1} | {part: 0.0}
    method = algorithms.fedrep(
        TASK,
        optax.sgd(rates["body"]),
        **PART,
        personal_optimizer=optax.sgd(rates["head"]),
        **LOCAL,
    )
    simulator, state, metrics = network(method)
    for k in range(len(CLIENTS)):
        delta, _ = simulator.model(state, k)
        equal(delta[still], DELTA[still])
        other = "v" if still == "w" else "w"
        assert (np.asarray(delta[other]) != DELTA[other]).any()
    first = metrics["personal_loss"][0] == metrics["loss"][0]
    assert not first  # the body is trained at the new head


def test_fedreps_head_is_the_least_squares_solution():
    random = np.random.default_rng(0)
    body, _ = np.linalg.qr(random.normal(size=(5, 2)))
    clients = [
        {
            "x": random.normal(size=(30, 5)).astype(np.float32),
            "y": random.normal(size=30).astype(np.float32),
        }
        for _ in range(2)
    ]

    def loss(delta, backbone, batch, key):
        return (batch["x"] @ delta["body"] @ delta["head"] - batch["y"]) ** 2, {}

    how = {"personal": "head", "personal_steps": 200, "local_steps": 1}
    head = optax.sgd(0.2)
    method = algorithms.fedrep(
        ffm.Task(loss), SGD, personal_optimizer=head, batch_size=30, **how
    )
    delta = {"body": body.astype(np.float32), "head": np.zeros(2, np.float32)}
    _, state, _ = run(method, clients, delta, 1)
    for k, client in enumerate(clients):
        features = client["x"] @ body
        expected = np.linalg.lstsq(features, client["y"], rcond=None)[0]
        found = state.carry.clients["head"][k]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_fedbabu_is_fedavg_whose_head_has_no_rate():
    still = optax.multi_transform(
        {"body": SGD, "head": optax.set_to_zero()}, {"w": "body", "v": "head"}
    )
    _, expected, _ = network(ffm.fedavg(TASK, still, **LOCAL))
    simulator, state, metrics = network(algorithms.fedbabu(TASK, SGD, **PART, **LOCAL))
    close(state.delta["w"], expected.delta["w"])
    equal(state.delta["v"], DELTA["v"])
    equal(simulator.model(state, 1)[0], state.delta)
    assert metrics["uplink_bytes"].tolist() == [W_BYTES * len(CLIENTS)] * ROUNDS
    # Then each client trains a head of its own, or all of it.
    population, model = ffm.Population.from_clients(CLIENTS), simulator.model(state)
    tuned = algorithms.fine_tune(TASK, SGD, model, population, **PART, **LOCAL)
    body = {name: np.asarray(leaf, np.float64) for name, leaf in state.delta.items()}
    for k in (0, 3):
        delta, _ = tuned(k)
        equal(delta["w"], state.delta["w"])
        close(delta, trained(body, CLIENTS[k], 3, ("v",)))
    whole = algorithms.fine_tune(TASK, SGD, model, population, **LOCAL)
    close(whole(3)[0], trained(body, CLIENTS[3], 3, ("w", "v")))


def test_fedbabus_clients_may_keep_a_head_that_the_body_does_not_see():
    _, expected, plain_metrics = network(algorithms.fedbabu(TASK, SGD, **PART, **LOCAL))
    how = {"personal_steps": 2, "personal_optimizer": optax.sgd(0.1)}
    method = algorithms.fedbabu(TASK, SGD, **PART, **how, **LOCAL)
    simulator, first, metrics = network(method, rounds=1)
    state, _ = simulator.run(first, 1)
    equal(state.delta, expected.delta)
    assert metrics["uplink_bytes"][0] == plain_metrics["uplink_bytes"][0]
    assert metrics["examples_processed"][0] > plain_metrics["examples_processed"][0]
    received = {name: np.asarray(x, np.float64) for name, x in first.delta.items()}
    for k, client in enumerate(CLIENTS):
        head = trained(received, client, 2, ("v",), rate=0.1)["v"]
        close(simulator.model(state, k)[0], {"w": state.delta["w"], "v": head})
    equal(simulator.model(state)[0], state.delta)
    with pytest.raises(ValueError, match="personal_optimizer"):
        algorithms.fedbabu(TASK, SGD, **PART, personal_optimizer=SGD, **LOCAL)


def idle(loss):
    """The same loss of a delta with one more leaf, which nothing reads."""

    def with_idle(delta, backbone, batch, key):
        return loss(delta["model"], backbone, batch, key)

    return ffm.Task(with_idle)


@pytest.mark.parametrize("personal", ["idle", "model"])
def test_fedper_without_a_head_is_fedavg_and_without_a_body_local(personal):
    delta = {"model": DELTA, "idle": np.zeros(1, np.float32)}
    how = {"epochs": 2, "batch_size": 2}
    method = algorithms.fedper(idle(mlp_loss), SGD, personal=personal, **how)
    simulator, state, metrics = network(method, delta=delta, cohort_size=2)
    if personal == "idle":
        _, expected, _ = network(ffm.fedavg(TASK, SGD, **how), cohort_size=2)
        close(state.delta["model"], expected.delta)
        return
    alone, expected, _ = network(algorithms.local_only(TASK, SGD, **how), cohort_size=2)
    for k in range(len(CLIENTS)):
        close(simulator.model(state, k)[0]["model"], alone.model(expected, k)[0])
    assert metrics["uplink_bytes"].tolist() == [2 * 4] * ROUNDS  # the idle leaf


def test_fedper_with_the_factors_b_is_fedsa_lora():
    (delta, backbone), clients = lora_trees(), lora_clients(sizes=(4, 2, 3))
    task, how = ffm.Task(lora_loss), {"local_steps": 2, "batch_size": 4}
    method = algorithms.fedper(task, SGD, personal=r"lora_b$", **how)
    one, state, metrics = run(method, clients, delta, ROUNDS, backbone=backbone)
    rule = lora_rules.fedsa_lora(task, SGD, **how)
    other, expected, costs = run(rule, clients, delta, ROUNDS, backbone=backbone)
    close(state.delta, expected.delta)
    close(one.model(state, 1)[0], other.model(expected, 1)[0])
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(metrics[name], costs[name])


def test_what_travels_may_be_quantised():
    """The head is whole, whatever the channels do to the body."""
    method = algorithms.fedper(TASK, SGD, optax.sgd(1.0, momentum=0.5), **PART, **LOCAL)
    lossy = channels.error_feedback(channels.quantize(4))
    how = {"uplink": lossy, "downlink": channels.quantize(8)}
    _, state, metrics = network(method, **how)
    assert np.isfinite(metrics["loss"]).all()
    assert metrics["uplink_bytes"][0] < W_BYTES * len(CLIENTS)
    equal(state.delta["v"], DELTA["v"])


# What is refused

MAKERS = ("fedper", "fedrep", "fedbabu", "fedala")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("personal", "words"),
    [
        ("head", r"personal='head'.*leaf of the delta.*There are: v, w"),
        ("v|head", r"head.*match no leaf"),
        ("(", r"personal='\('"),
        ("", "personal=''"),
        (3, "personal=3"),
        (["w.kernel"], "w.kernel"),
    ],
)
def test_names_of_nothing_are_refused(name, personal, words):
    with pytest.raises((TypeError, ValueError), match=words):
        network(getattr(algorithms, name)(TASK, SGD, personal=personal, **LOCAL), 0)


@pytest.mark.parametrize("name", MAKERS[:3])
def test_the_names_of_everything_are_refused(name):
    with pytest.raises(ValueError, match=r"all leaves of the delta.*local_only"):
        network(getattr(algorithms, name)(TASK, SGD, personal="w|v", **LOCAL), 0)


def test_fedrep_counts_both_trainings_in_one_unit():
    for how in (
        {"personal_epochs": 1, "local_steps": 2},
        {"personal_steps": 1, "epochs": 2},
        {"personal_steps": 1, "personal_epochs": 1, "epochs": 2},
    ):
        with pytest.raises(ValueError, match=r"personal_epochs beside epochs"):
            algorithms.fedrep(TASK, SGD, **PART, batch_size=8, **how)


def test_fine_tuning_says_what_it_needs():
    model, population = (DELTA, BACKBONE), ffm.Population.from_clients(CLIENTS)
    with pytest.raises(TypeError, match="population"):
        algorithms.fine_tune(TASK, SGD, model, CLIENTS, **LOCAL)
    with pytest.raises(ValueError, match="personal='head'"):
        algorithms.fine_tune(TASK, SGD, model, population, personal="head", **LOCAL)


def test_a_function_and_a_list_name_leaves_too():
    def is_head(path):
        return path == "v"

    for personal in (is_head, ["v"]):
        method = algorithms.fedbabu(TASK, SGD, personal=personal, **LOCAL)
        _, state, _ = network(method, 1)
        equal(state.delta["v"], DELTA["v"])
    assert jnp.any(state.delta["w"] != DELTA["w"])
