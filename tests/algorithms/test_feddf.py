"""FedDF's exact invariants (Lin et al. 2020): what the groups are alone, what the ensemble
says, and what students make of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from two_architectures import (
    CLASSES,
    GROUPS,
    LOGITS,
    architectures,
    make_clients,
    make_public,
    make_trees,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import distillation
from fedjax_fm.algorithms.feddf import Validation, feddf
from fedjax_fm.types import Sampler

RATE, STEPS = 0.3, 3
CLIENTS, PUBLIC = make_clients(), make_public()
DELTAS, BACKBONES = make_trees()
LOCAL = {
    "local_steps": STEPS,
    "batch_size": 8,
}  # every batch is all of a client's examples


def make(server_steps=6, public=PUBLIC, groups=GROUPS, **how):
    how = {"backbones": BACKBONES, "server_optimizer": optax.sgd(0.5), **LOCAL} | how
    return feddf(
        how.pop("architectures", architectures(RATE)),
        groups,
        public,
        server_steps=server_steps,
        **how,
    )


def simulator(algorithm, clients=CLIENTS, backbone=BACKBONES, **how):
    """Whose cohort is in the sampler's state: all clients, unless a test puts others there."""
    cohort = (jnp.arange(len(clients), dtype=jnp.int32), jnp.int32(len(clients)))
    how = {
        "sampler": Sampler(
            init=lambda: cohort,
            draw=lambda state, key: (*state, state),
            capacity=len(clients),
        ),
        "cohort_size": len(clients),
        "devices": 1,
        "seed": 3,
    } | how
    return ffm.Simulator(
        algorithm, ffm.Population.from_clients(clients), backbone=backbone, **how
    )


def run(one, rounds=1, delta=DELTAS):
    return one.run(one.init(delta), rounds)


def run_with(one, ids=None, public=None):
    """One round of these clients, or on these public examples."""
    state = one.init(DELTAS)
    carry = state.carry
    if ids is not None:
        padded = jnp.array([*ids, *[0] * (len(CLIENTS) - len(ids))], jnp.int32)
        carry = carry._replace(sampler=(padded, jnp.int32(len(ids))))
    if public is not None:
        held = carry.server.held._replace(public=jax.tree.map(jnp.asarray, public))
        carry = carry._replace(server=carry.server._replace(held=held))
    return one.run(dataclasses.replace(state, carry=carry), 1)[0].delta


def close(a, b, **how):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, **({"rtol": 2e-5, "atol": 2e-6} | how)
        ),
        a,
        b,
    )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def alone():
    """Without server steps: (simulator, state, metrics)."""
    one = simulator(make(server_steps=0))
    return one, *run(one)


@pytest.fixture(scope="module")
def fused():
    one = simulator(make())
    return one, *run(one)


# Building blocks


def test_kl_is_torchs_and_its_gradient_a_difference_of_probabilities():
    rng = np.random.default_rng(0)
    z, target = (rng.normal(size=(5, 4)).astype(np.float32) * 3 for _ in range(2))

    def log(x):
        return torch.log_softmax(torch.tensor(x), -1)

    expected = torch.nn.functional.kl_div(
        log(z), log(target), log_target=True, reduction="none"
    ).sum(-1)
    np.testing.assert_allclose(
        distillation.kl(jnp.array(z), jnp.array(target)), expected, rtol=1e-5
    )
    gradient = jax.grad(lambda z, t: distillation.kl(z, t).sum())
    np.testing.assert_allclose(
        gradient(z, target), jax.nn.softmax(z) - jax.nn.softmax(target), atol=1e-6
    )
    for distance in (
        distillation.kl,
        distillation.mean_absolute,
    ):  # who agrees learns nothing
        same = jax.grad(lambda z, distance=distance: distance(z, jnp.array(z)).sum())(
            jnp.array(z)
        )
        np.testing.assert_allclose(same, 0, atol=1e-6)
    np.testing.assert_allclose(
        distillation.kl(z, z + 5), 0, atol=1e-6
    )  # a constant says nothing
    np.testing.assert_allclose(
        distillation.mean_absolute(z, target), np.abs(z - target).mean(-1), rtol=1e-6
    )


def test_means_of_logits_and_of_probabilities_differ():
    """Two teachers, one sure and one not: the geometric and the arithmetic mean of what
    they say.
    """
    teachers = jnp.log(jnp.array([[[0.98, 0.01, 0.01]], [[0.2, 0.6, 0.2]]]))
    said = {
        name: distillation.predictions(teachers, name).mean(0)
        for name in ("logits", "probabilities")
    }
    geometric, arithmetic = (
        jax.nn.softmax(distillation.consensus(mean, name))
        for name, mean in said.items()
    )
    p = np.exp(np.array(teachers))
    np.testing.assert_allclose(
        geometric, np.sqrt(p[0] * p[1]) / np.sqrt(p[0] * p[1]).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(arithmetic, p.mean(0), rtol=1e-5)
    never = distillation.consensus(
        jnp.array([[1.0, 0.0]]), "probabilities"
    )  # a class that no teacher believes in
    assert np.isfinite(distillation.kl(jnp.zeros((1, 2)), never)).all()


@pytest.mark.parametrize("n", [10, 70])
def test_an_epoch_of_distillation_sees_every_public_example_once(n):
    """Also in a last batch that is short: the student adds up the examples that count."""
    public = {"x": jnp.arange(1.0, n + 1)}

    def identity(student, backbone, batch):
        return student * jnp.ones_like(batch["x"]) * batch["x"]

    step = distillation.distiller(
        identity,
        (),
        public,
        public["x"],
        distance=lambda z, target: z * 4,
        optimizer=optax.sgd(1.0),
        batch_size=4,
        key=jax.random.key(0),
    )
    step = jax.jit(step)
    steps = -(-n // 4)
    student, total, firsts = jnp.float32(0), 0.0, []
    for i in range(2 * steps):
        after, _ = step(i, (student, optax.sgd(1.0).init(student)))
        mean = float(student - after) / 4
        total += mean * min(4, n - i % steps * 4)
        firsts.append(mean)
    assert total == pytest.approx(n * (n + 1), rel=1e-5)
    assert firsts[:steps] != firsts[steps:]  # each epoch is shuffled by itself
    whole = distillation.all_logits(
        identity, jnp.float32(2), (), {"x": public["x"][:, None]}, 4
    )
    np.testing.assert_array_equal(whole[:, 0], 2 * public["x"])


@pytest.mark.parametrize(
    ("scores", "most", "patience", "best"),
    [
        (
            [0.1, 0.3, 0.2, 0.3, 0.9],
            10,
            4,
            4,
        ),  # two looks without a better one: 0.9 is never seen
        (
            [0.1, 0.3, 0.2, 0.4, 0.1],
            9,
            4,
            8,
        ),  # the last look comes after a short stretch
        ([0.5, 0.1, 0.1, 0.1, 0.9], 10, 100, 10),
    ],
)
def test_distillation_stops_on_a_plateau_and_gives_the_best(
    scores, most, patience, best
):
    table = jnp.array([0.0, *scores])

    def step(i, carry):
        return (carry[0] + 1, carry[1])

    def score(student):
        return table[-(-student // 2)]

    student = distillation.until_plateau(
        step, (jnp.int32(0), ()), most, score, every=2, patience=patience
    )
    assert student == best


# The method


def test_one_group_without_server_steps_is_fedavg():
    """Cohort by cohort."""
    (perceptron, _), how = architectures(RATE), {"cohort_size": 3, "sampler": None}
    one = make(
        0,
        groups=np.zeros(len(CLIENTS), int),
        architectures=(perceptron,),
        backbones=BACKBONES[:1],
    )
    state, metrics = run(simulator(one, backbone=BACKBONES[:1], **how), 2, DELTAS[:1])
    plain = ffm.fedavg(perceptron.task, perceptron.optimizer, **LOCAL)
    expected, seen = run(simulator(plain, backbone=BACKBONES[0], **how), 2, DELTAS[0])
    close(state.delta[0], expected.delta)
    for name in ("loss", "examples", "uplink_bytes", "downlink_bytes"):
        np.testing.assert_allclose(metrics[name], seen[name], rtol=1e-6)


def torch_logits(g, w, backbone, x):
    return (
        torch.tanh(x @ (backbone["w"] + w["w"])) @ w["v"]
        if g == 0
        else x @ w["u"] + w["b"]
    )


def torch_round(server_steps):
    """Algorithm 3 with torch's gradients, Adam and cosine: the students."""

    def tensor(tree):
        return {name: torch.tensor(np.asarray(x)) for name, x in tree.items()}

    frozen = (tensor(BACKBONES[0]), None)
    public, parts, answers = torch.tensor(PUBLIC["x"]), ([], []), []
    for client, g in zip(CLIENTS, GROUPS, strict=True):
        w = {name: x.requires_grad_() for name, x in tensor(DELTAS[g]).items()}
        optimizer = torch.optim.SGD(w.values(), lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            z = torch_logits(g, w, frozen[g], torch.tensor(client["x"]))
            torch.nn.functional.cross_entropy(
                z, torch.tensor(client["y"]).long()
            ).backward()
            optimizer.step()
        parts[g].append((len(client["y"]), {name: x.detach() for name, x in w.items()}))
        answers.append(torch_logits(g, w, frozen[g], public).detach())
    target, students = torch.stack(answers).mean(0), []
    for g, part in enumerate(parts):
        total = sum(n for n, _ in part)
        student = {
            name: sum(n * w[name] for n, w in part) / total for name in DELTAS[g]
        }
        student = {name: x.requires_grad_() for name, x in student.items()}
        optimizer = torch.optim.Adam(student.values(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, max(server_steps, 1)
        )
        for _ in range(server_steps):
            optimizer.zero_grad()
            log = torch.log_softmax(torch_logits(g, student, frozen[g], public), -1)
            torch.nn.functional.kl_div(
                log, torch.softmax(target, -1), reduction="batchmean"
            ).backward()
            optimizer.step()
            schedule.step()
        students.append({name: x.detach().numpy() for name, x in student.items()})
    return tuple(students)


def test_without_server_steps_each_group_is_averaged_by_itself(alone):
    """Torch's gradients, a weighted mean: FedAvg of the group's clients."""
    close(alone[1].delta, torch_round(0))


def test_a_round_with_the_papers_optimizer_is_torchs():
    state, _ = run(simulator(make(20, server_optimizer=None)))
    expected, first = torch_round(20), torch_round(1)
    close(state.delta, expected, rtol=1e-4, atol=1e-5)
    moved = [
        np.abs(a[name] - b[name]).max()
        for a, b in zip(expected, first, strict=True)
        for name in a
    ]
    assert min(moved) > 1e-3  # a hundred times what is tolerated


def test_the_ensemble_is_the_mean_of_every_received_models_logits():
    """Whatever group it is of, and each counts once; against a loop over clients."""
    algorithm = make()
    state = algorithm.init(
        DELTAS, jax.random.key(0), ffm.Setting(len(CLIENTS), len(CLIENTS))
    )
    rng = np.random.default_rng(4)
    total, loop = 0, 0
    for k, g in enumerate(GROUPS):
        sent = jax.tree.map(
            lambda x: rng.normal(size=x.shape).astype(np.float32), DELTAS[g]
        )
        found = algorithm.exchanges[g].reduce.lift(
            state, sent, jnp.float32(len(CLIENTS[k]["y"]))
        )
        model = jax.tree.map(np.subtract, DELTAS[g], sent)
        if g == 0:
            loop += np.tanh(PUBLIC["x"] @ (BACKBONES[0]["w"] + model["w"])) @ model["v"]
        else:
            loop += PUBLIC["x"] @ model["u"] + model["b"]
        total += found.opinions
        assert found.teachers == 1
    np.testing.assert_allclose(total, loop, rtol=1e-4, atol=1e-5)


def test_students_that_are_their_own_teachers_stay():
    """Both groups hold one and the same model and no client moves: KL's gradient is
    zero. Another start is moved.
    """
    linear = (architectures(0.0)[1],) * 2
    one = simulator(make(architectures=linear, backbones=((), ())), backbone=((), ()))
    close(run(one, 2, (DELTAS[1],) * 2)[0].delta, (DELTAS[1],) * 2, atol=1e-6)
    other = {"u": -DELTAS[1]["u"], "b": DELTAS[1]["b"]}
    moved, _ = run(one, 2, (DELTAS[1], other))
    assert np.abs(moved.delta[0]["u"] - DELTAS[1]["u"]).max() > 0.01


def test_the_order_of_public_examples_does_not_matter(fused, alone):
    one, state, _ = fused
    order = np.random.default_rng(0).permutation(len(PUBLIC["x"]))
    close(run_with(one, public={"x": PUBLIC["x"][order]}), state.delta)
    others = run_with(one, public=make_public(seed=8))  # what they are does
    for tree in (others, alone[1].delta):
        differs = jax.tree.map(
            lambda a, b: np.abs(a - b).max() > 1e-3, state.delta, tree
        )
        assert all(jax.tree.leaves(differs))


def test_bytes_are_those_of_the_models_of_each_group(fused):
    """Public examples do not travel, however many."""
    sizes = [ffm.trees.nbytes(delta) for delta in DELTAS]
    for name in ("uplink_bytes", "downlink_bytes"):
        np.testing.assert_array_equal(fused[2][name], sum(sizes[g] for g in GROUPS))
    more = simulator(make(public=make_public(n=40)))
    more.init(DELTAS)
    assert [(bill.up, bill.down) for bill in more.messages.bills] == [
        (size, size) for size in sizes
    ]


def test_a_group_of_which_nobody_came_is_taught_by_the_others(fused, alone):
    ids = np.flatnonzero(GROUPS == 0)
    averaged = run_with(alone[0], ids)
    equal(averaged[1], DELTAS[1])
    taught = run_with(fused[0], ids)

    def said(delta):
        return np.asarray(jax.nn.log_softmax(LOGITS[1](delta, (), PUBLIC)))

    teachers = jax.nn.log_softmax(LOGITS[0](averaged[0], BACKBONES[0], PUBLIC))
    assert (
        np.abs(said(taught[1]) - teachers).mean()
        < 0.8 * np.abs(said(DELTAS[1]) - teachers).mean()
    )
    equal(run_with(fused[0], []), DELTAS)  # nobody at all


def test_validation_ends_distillation(fused):
    """Labels that nobody gives: no look is better than the first, after six steps."""
    never = Validation(
        examples={"x": PUBLIC["x"]},
        labels=np.full(len(PUBLIC["x"]), CLASSES),
        every=6,
        patience=6,
    )
    stopped, _ = run(simulator(make(server_steps=100, validation=never)))
    close(stopped.delta, fused[1].delta)


def test_what_cannot_be():
    for how, word in (
        ({"groups": [0, 2, 1]}, r"groups in \[0, 2\)"),
        ({"groups": [0.0, 1.0]}, "float64"),
        ({"server_steps": -1}, "server_steps >= 0"),
        ({"average": "votes"}, "average='votes'"),
        ({"public": {"x": np.zeros((3, 2)), "z": np.zeros(4)}}, "'z': 4"),
        ({"public": {}}, "public examples"),
        (
            {"validation": Validation(examples={}, labels=[], every=10, patience=5)},
            "every <= patience",
        ),
        ({"local_steps": None}, "local_steps=None"),
    ):
        with pytest.raises(ValueError, match=word):
            make(**how)
    with pytest.raises(ValueError, match="those of 7 clients, the population has 2"):
        run(simulator(make(), clients=CLIENTS[:2]))
    with pytest.raises(
        ValueError, match="a tuple of 2, one for each architecture, got dict"
    ):
        run(simulator(make()), delta=DELTAS[0])
