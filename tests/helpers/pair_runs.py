"""Runs and refusals of the table of pairs, on the problems of the table of contracts."""

import contextlib
import functools
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import domain_problem
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rows
from pairs import PEFT, ROUNDS, Refused, Works, cell_of
from rows import fedbuff as fedbuff_rows

import fedjax_fm as ffm
from fedjax_fm import algorithms, channels, models, peft, privacy, robust, tasks
from fedjax_fm.algorithms import lora_rules, server_optimizers
from fedjax_fm.population import samplers
from fedjax_fm.testing.contract import Problem, simulator_of

N_ROUNDS = 2
SGD = optax.sgd(0.1)
WALK = {"local_steps": 2, "batch_size": 2}


@functools.cache
def contracts() -> dict[str, Any]:
    """All rows of the table of contracts."""
    found = {}
    for module in pkgutil.iter_modules(rows.__path__):
        found |= importlib.import_module(f"rows.{module.name}").ROWS
    return found


def problem_of(method: str) -> Problem:
    """The method on the problem of its contract."""
    problem = contracts()[method].make()
    if method != "fedbuff":
        return problem
    schedule = fedbuff_rows.schedule()  # the contract is without the method's sampler
    how = {"local_steps": 3, "batch_size": 8}
    task = ffm.Task(fedbuff_rows.mlp_loss)
    algorithm = algorithms.fedbuff(task, SGD, schedule=schedule, **how)
    return problem._replace(algorithm=algorithm)


# What travels without a channel, in floats a message: the methods' docstrings. The delta
# has 16, of which 12 are no head.

ONE = (16,)
UP: dict[str, tuple[int, ...]] = {
    "scaffold": (32,),
    "fednova": (17,),
    "qfedavg": (17,),
    "fedprox_adaptive": (17,),
    "mime": (16, 16),
    "mimelite": (32,),
    "streaming_diloco": (10, 6),
    "fedper": (12,),
    "fedrep": (12,),
    "fedbabu": (12,),
    "fedmd": (33,),
    "fedclip": (24,),  # two maps of four features to three
    "local_only": (),
}
DOWN: dict[str, tuple[int, ...]] = UP | {
    "fednova": ONE,
    "qfedavg": ONE,
    "mime": (16, 32),
    "ifca": (32,),
    "gossip": (),
}
MORE_UP = {"ifca": 1}  # bytes: which cluster, and no float
# Here other tests say how much: data, ranks, widths or the round decide.
OTHERWISE = {
    *("fedlin", "fedobd", "flasc", "docofl", "ef21", "power_of_choice", "feddpa_f"),
    *("fedkseed", "fedpm", "heterofl", "fjord", "fedbert", "feddf"),
    *("fedit", "ffa_lora", "fedsa_lora", "rolora", "fedex_lora", "flora", "flexlora"),
    *("hetlora", "fed_sb", "lora_fair", "fedsvd", "fedrot_lora", "frlora", "fedrpca"),
    *("fslora", "fedask", "ravan", "lora_a2", "fedlease", "slora", "gradual_pruning"),
    *("lottery_ticket", "movement_pruning", "soft_movement_pruning", "prunefl"),
    *("lotteryfl", "fedtiny", "fedmkt", "fada"),
}


def floats(n: int) -> int:
    return 4 * n


def eight_bits(n: int) -> int:
    """`quantize(8)` of fewer than 512 entries: a byte each, and a scale."""
    return n + 4


def four_bits(n: int) -> int:
    """`int_blocks(4)` of fewer than 256 entries: half a byte each, and a scale."""
    return math.ceil(n / 2) + 4


def halves(n: int) -> int:
    """`cast("bfloat16")`."""
    return 2 * n


# Parts of a round


class Part(NamedTuple):
    """A part of the table: what it gives to a simulator."""

    how: Callable[[Problem], dict[str, Any]]
    up: Callable[[int], int] = floats  # bytes of a message of n floats
    down: Callable[[int], int] = floats


def _late(id, round, key):
    return jnp.where(id % 3 == 0, 1, 9)


def _drops(id, round, key):
    return (id + round) % 3 == 1


def _poisson(problem: Problem) -> dict[str, Any]:
    n = len(problem.clients)
    return {"sampler": samplers.poisson(n, problem.cohort_size / n, capacity=n)}


COARSE = channels.int_blocks(4)
PART = {
    "unbiased": Part(lambda _: {"uplink": channels.quantize(8)}, up=eight_bits),
    "biased": Part(lambda _: {"uplink": COARSE}, up=four_bits),
    "feedback": Part(
        lambda _: {"uplink": channels.error_feedback(COARSE)}, up=four_bits
    ),
    "down": Part(lambda _: {"downlink": channels.cast("bfloat16")}, down=halves),
    "drops": Part(lambda _: {"behaviour": {"drops": _drops}}),
    "late": Part(lambda _: {"behaviour": {"most_steps": _late}}),
    "poisson": Part(_poisson),
    "fixed": Part(lambda p: {"sampler": samplers.fixed(range(p.cohort_size))}),
}
# Parts that are looked at in one run, which compiles once.
TOGETHER = (
    ("unbiased", "down", "poisson"),
    ("biased", "drops", "late", "fixed"),
    ("feedback",),
)
assert sorted(sum(TOGETHER, ())) == sorted(PART) == sorted(ROUNDS)


def of_parts(problem: Problem, parts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a simulator that has all of these parts."""
    how: dict[str, Any] = {}
    behaviour: dict[str, Any] = {}
    for part in parts:
        given = PART[part].how(problem)
        behaviour |= given.pop("behaviour", {})
        how |= given
    return {**how, "behaviour": ffm.Behaviour(**behaviour)}


def check_round(method: str, parts: Sequence[str]) -> None:
    """Two rounds with all parts that work are finite, and billed for what travels."""
    working = [part for part in parts if isinstance(cell_of(method, part), Works)]
    if not working:
        return
    problem = problem_of(method)
    one = simulator_of(problem, **of_parts(problem, working))
    state, metrics = one.run(one.init(problem.delta), N_ROUNDS)
    _check_finite(state.delta)
    assert np.isfinite(metrics["loss"]).all()
    arrived = metrics["clients"]
    if "drops" in working:
        assert (arrived < problem.cohort_size).any()
    if method in OTHERWISE:
        assert (metrics["uplink_bytes"] > 0).any()
        return
    up = [PART[part].up for part in working if PART[part].up is not floats]
    down = [PART[part].down for part in working if PART[part].down is not floats]
    each = sum(map(up[0] if up else floats, UP.get(method, ONE)))
    each += MORE_UP.get(method, 0)
    np.testing.assert_array_equal(metrics["uplink_bytes"], each * arrived)
    if "drops" not in working:
        got = sum(map(down[0] if down else floats, DOWN.get(method, ONE)))
        np.testing.assert_array_equal(metrics["downlink_bytes"], got * arrived)


def _check_finite(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


def check_refusal(method: str, part: str) -> None:
    """The simulator refuses the part before the first round, in the words of the table."""
    problem = problem_of(method)
    with _refusal(cell_of(method, part)):
        simulator_of(problem, **of_parts(problem, [part])).init(problem.delta)


def _refusal(cell: Any):
    assert isinstance(cell, Refused)
    return pytest.raises((TypeError, ValueError), match=re.escape(cell.words))


# Parts of models


class Tuned(NamedTuple):
    """A model in parts, its task and clients."""

    adapted: peft.Adapted
    task: ffm.Task
    clients: list[dict[str, np.ndarray]]


CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 11,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "hidden_size": 4,
    "intermediate_size": 4,
}
FAMILIES = {
    "lora": peft.lora(2, targets="query"),
    "dora": peft.dora(2, targets=r"intermediate\.dense"),
    "lora_xs": peft.lora_xs(2, targets="value"),
    "adapters": peft.houlsby(2, norms=False),
    "ia3": peft.ia3(targets="key", feedforward=None),
    "bitfit": peft.bitfit(),
    "prompt": peft.prompt_tuning(2),
    "prefix": peft.prefix_tuning(2),
    "full": peft.head(["classifier", "token_type_embeddings"]),
}
# Part of the path of a leaf that a family trains.
LEAVES = {
    "lora": "query.lora_",
    "dora": "magnitude",
    "lora_xs": "lora_r",
    "adapters": "adapter.",
    "ia3": ".ia3",
    "bitfit": "LayerNorm.bias",
    "prompt": "prompt.",
    "prefix": "prefix.",
    "full": "token_type_embeddings.",
}
assert set(FAMILIES) == set(LEAVES) == set(PEFT)


@functools.cache
def tuned(families: tuple[str, ...]) -> Tuned:
    """A BERT of one layer with these families beside each other."""
    whole = models.from_config(CONFIG, num_labels=2, pooling="mean", seed=0)
    method = peft.combine(*(FAMILIES[name] for name in families))
    adapted = peft.apply(whole, method, jax.random.key(0))
    rng = np.random.default_rng(0)

    def client(n):
        return {
            "input_ids": rng.integers(1, 11, (n, 3)).astype(np.int32),
            "attention_mask": np.ones((n, 3), np.int32),
            "label": rng.integers(0, 2, n).astype(np.int32),
        }

    task = tasks.classification(adapted)
    return Tuned(adapted, task, [client(n) for n in (2, 1, 2)])


def features(delta, backbone, batch, key):
    """For moon, whatever the model: the logits would do."""
    return jnp.ones((batch["label"].shape[0], 1)) * _first(delta)


def _first(delta):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(delta))


def pairs_of(task: ffm.Task) -> Any:
    """For fedclip, whatever the model: its losses beside the labels."""

    def pair_features(delta, backbone, batch, key):
        losses, _ = task.loss(delta, backbone, batch, key)
        image = jnp.stack([losses, jnp.ones_like(losses)], axis=1)
        return tasks.PairFeatures(
            image, jax.nn.one_hot(batch["label"], 2) + 0.1, jnp.float32(1)
        )

    return pair_features


def texts(task: ffm.Task) -> dict[str, Any]:
    """For fedmkt, whatever the model: public texts, whose logits its losses make."""
    model = tuned(tuple(PEFT))
    own = model.clients[0]
    public = {**own, "labels": own["input_ids"] % 2}

    def logits(delta, backbone, batch):
        own = {name: x for name, x in batch.items() if name != "labels"}
        losses, _ = task.loss(delta, backbone, own, None)
        return losses[:, None, None] * jnp.ones((1, 3, 1)) * jnp.arange(2.0)

    reader = algorithms.Reader(logits, public, n_tokens=2)
    positions = np.tile(np.arange(3, dtype=np.int32), (2, 1))
    same = algorithms.Alignment(positions, np.arange(2))
    return {
        "client": reader,
        "server": reader,
        "to_client": same,
        "to_server": same,
        "server_backbone": model.adapted.backbone,
    }


def made(method: str, task: ffm.Task) -> ffm.Algorithm:
    """The method for any task."""
    rated = {"learning_rate": 0.1, **WALK}
    own = {"personal": "classifier"}
    draws = channels.natural()
    sparser = {"final_sparsity": 0.5, "last": 4}
    given: dict[str, dict[str, Any]] = {
        "diana": {**rated, "channel": draws},
        "ef21": {**rated, "channel": channels.sign()},  # which moves every leaf
        "fedpaq": {"channel": draws},
        "fedobd": {"dropped": 0.0, "quantizer_weight": 1e-9},
        "flasc": {"density_down": 0.9, "density_up": 1.0},
        "fedlin": {**rated, "client_channel": channels.sign()},
        "fedkseed": {**rated, "n_seeds": 8},
        "soteriafl": {
            "learning_rate": 0.1,
            "channel": draws,
            "clip_norm": 1.0,
            "noise_multiplier": 0.1,
            "batch_size": 2,
        },
        "fedper": own,
        "fedrep": own,
        "fedbabu": own,
        "fedala": own,
        "ditto": {"penalty": 0.1},
        "pfedme": {"penalty": 1.0},
        "per_fedavg": {"inner_rate": 0.1},
        "apfl": {"mix_rate": 0.1},
        "ifca": {"clusters": 2},
        "gossip": {"mixing": _on_a_ring},
        "hierarchical": {"tiers": (algorithms.Tier(2),)},
        "moon": {"features": features},
        "streaming_diloco": {"fragments": 2},
        "fedex_lora": {"scaling": 1.0},
        "flora": {"scaling": 1.0},
        "hetlora": {"ranks": [2, 1, 2], "gamma": 0.99, "tail_penalty": 0.0},
        "frlora": {"scaling": 1.0},
        "fedask": {"sketch": 2},
        "slora": {"scaling": 1.0, "sparse_rounds": 1, "density": 1.0},
        "fedlease": {"labels": [0, 1, 0]},
        "gradual_pruning": {**sparser, "initial_sparsity": 0.25},
        "movement_pruning": sparser,
        "soft_movement_pruning": {"penalty": 0.1},
        "lottery_ticket": {"levels": 2, "rounds_per_level": 2},
        "prunefl": {"time": algorithms.RoundTime(constant=1.0, entry=0.1)},
        "lotteryfl": {"rate": 0.5, "score": "accuracy"},
        "fedtiny": {"masks": {"classifier.kernel": np.eye(4, 2) > 0}},
        "dp_fedavg": {
            "noise": privacy.independent(),
            "noise_multiplier": 0.1,
            "clip_norm": 1.0,
        },
        "fedbuff": {"schedule": _schedule()},
        "feddpa_t": {"personal_task": of_adapters(task)},
        "feddpa_f": {
            "personal_task": of_adapters(task),
            "rounds": 1,
            "private_steps": 2,
        },
    }
    if method == "power_of_choice":
        plain = ffm.fedavg(task, SGD, **WALK)
        return algorithms.power_of_choice(plain, task, cohort_size=1, batch_size=2)
    if method == "fedclip":
        return algorithms.fedclip(pairs_of(task), SGD, **WALK)
    if method == "fada":
        return domain_problem.method()
    has = method in lora_rules.__all__
    factory = getattr(lora_rules if has else algorithms, method)
    how = texts(task) if method == "fedmkt" else given.get(method, {})
    if "learning_rate" not in how:
        how = {"client_optimizer": SGD, **WALK, **how}
    return factory(task, **how)


def of_adapters(task: ffm.Task) -> ffm.Task:
    """The task of a shared and a private delta, leaf by leaf."""

    def loss(both, backbone, batch, key):
        def mixed(shared, private):
            return (1 - both.mix) * shared + both.mix * private

        delta = jax.tree.map(mixed, both.shared, both.private)
        return task.loss(delta, backbone, batch, key)

    return ffm.Task(loss)


def _on_a_ring(n: int) -> np.ndarray:
    return algorithms.graphs.metropolis(algorithms.graphs.ring(n), n)


def _schedule() -> Any:
    log = fedbuff_rows.schedule()
    ids, versions = np.array([[0, 1], [2, 0]]), np.array([[0, 0], [0, 1]])
    return log._replace(
        ids=ids.astype(np.int32),
        versions=versions.astype(np.int32),
        started=np.zeros((2, 2)),
        arrived=np.ones((2, 2)) * [[1.0], [2.0]],
    )


def check_families(method: str) -> None:
    """One round moves leaves of every family that works, all in one model."""
    working = [name for name in PEFT if isinstance(cell_of(method, name), Works)]
    if not working:
        return
    model = tuned(tuple(working))
    population = ffm.Population.from_clients(model.clients)
    one = ffm.Simulator(
        made(method, model.task),
        population,
        backbone=model.adapted.backbone,
        cohort_size=2,
        devices=1,
    )
    start = model.adapted.delta
    if method == "fedmkt":
        start = algorithms.Models(server=start, client=start)
    state, metrics = one.run(one.init(start), 1)
    _check_finite(state.delta)
    assert np.isfinite(metrics["loss"]).all()
    changed = _changed(model.adapted.delta, _trained(one, state))
    if method == "frlora":  # whose factors go into the kernels
        kernels = one.model(state)[1]
        changed |= _changed(model.adapted.backbone, [kernels])
    leaves = LEAVES | ({"lora": "query.base.kernel"} if method == "frlora" else {})
    for name in working:
        assert any(leaves[name] in path for path in changed), name


def _trained(one: ffm.Simulator, state: Any) -> Any:
    """The models of the server and of all clients, where a part is a client's own."""
    if not one.is_personal:
        return [state.delta]
    everybody = range(one.population.n_clients)
    found = [one.model(state, client)[0] for client in everybody]
    if isinstance(state.delta, algorithms.Models):  # of the server and of clients
        return [state.delta.server, *found]
    shared = getattr(found[0], "shared", None)
    return [state.delta, *(x if shared is None else x.private for x in found)]


def _changed(before: Any, models: Sequence[Any]) -> set[str]:
    """Paths of the leaves that are not as they were in one of the models."""
    found = set()
    paths = [ffm.trees.path_of(path) for path, _ in jax.tree.leaves_with_path(before)]
    for model in models:
        leaves = zip(
            paths, jax.tree.leaves(before), jax.tree.leaves(model), strict=True
        )
        found |= {path for path, old, new in leaves if np.any(old != new)}
    return found


def check_family_refused(method: str, name: str) -> None:
    """The method refuses a model that only this family adapts."""
    model = tuned((name,))
    population = ffm.Population.from_clients(model.clients)
    with _refusal(cell_of(method, name)):
        one = ffm.Simulator(
            made(method, model.task),
            population,
            backbone=model.adapted.backbone,
            cohort_size=2,
            devices=1,
        )
        one.init(model.adapted.delta)


# Privacy


def check_private(method: str, where: str) -> None:
    """A round of the private form; the right bytes, and a promise that is held to."""
    problem = problem_of("dp_fedavg")
    task = ffm.Task(fedbuff_rows.mlp_loss)
    if where == "local":
        algorithm = made("soteriafl", task)
    else:
        servers = {
            "fedavgm": optax.sgd(1.0, momentum=0.9),
            "fedadam": server_optimizers.adam(0.1),
            "fedyogi": server_optimizers.yogi(0.1),
            "fedadagrad": server_optimizers.adagrad(0.1),
        }
        private = {"noise_multiplier": 0.1, "clip_norm": 1.0}
        algorithm = algorithms.dp_fedavg(
            task,
            SGD,
            servers.get(method),
            noise=privacy.independent(),
            **private,
            **WALK,
        )
    assert algorithm.privacy is not None
    one = simulator_of(problem, algorithm=algorithm)
    state, metrics = one.run(one.init(problem.delta), 1)
    _check_finite(state.delta)
    bytes_each = 18 if where == "local" else 64  # natural(): nine bits for each of 16
    assert metrics["uplink_bytes"].tolist() == [problem.cohort_size * bytes_each]


def check_no_noise(method: str, where: str) -> None:
    """The factory takes no noise; in front of a private method it refuses that."""
    task = ffm.Task(fedbuff_rows.mlp_loss)
    with _refusal(cell_of(method, where)):
        if method == "power_of_choice":
            private = made("soteriafl" if where == "local" else "dp_fedavg", task)
            how = {"cohort_size": 1, "batch_size": 2}
            algorithms.power_of_choice(private, task, **how)
        has = method in lora_rules.__all__
        factory = getattr(lora_rules if has else algorithms, method)
        required = {
            name: None
            for name, given in inspect.signature(factory).parameters.items()
            if given.default is inspect.Parameter.empty
        }
        factory(**required, noise_multiplier=1.0)


# Robust rules

RULES = {"coordinates": robust.coordinate_median(), "distances": robust.multi_krum(1)}


def check_robust(method: str, kind: str) -> None:
    """A round with the rule in the mean's place is finite, or refused in these words."""
    problem = problem_of(method)
    cell = cell_of(method, kind)
    with contextlib.nullcontext() if isinstance(cell, Works) else _refusal(cell):
        ruled = robust.robust(problem.algorithm, RULES[kind])
        one = simulator_of(problem, algorithm=ruled)
        state, metrics = one.run(one.init(problem.delta), 1)
        _check_finite(state.delta)
        assert np.isfinite(metrics["loss"]).all()
