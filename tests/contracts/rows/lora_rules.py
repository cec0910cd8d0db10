"""The LoRA aggregation rules, with ranks that differ by client."""

import fedlease_problem
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ravan_problem
from contract import Problem, Row, own_state
from lora_problem import (
    HOW,
    LAYERS,
    MIXED,
    RATE,
    SCALING,
    base,
    cut,
    in_numpy,
    loss,
    make_clients,
    make_trees,
    tail_gradient,
    tail_size,
    train,
    train_entries,
)

import fedjax_fm as ffm
from fedjax_fm.algorithms import lora_rules
from fedjax_fm.engine.keys import Purpose, derive

RANK = MIXED[0]  # of client 0
GAMMA, PENALTY = 0.7, 0.5  # three rows, of which two are kept


def _make(name, **how):
    def make() -> Problem:
        algorithm = getattr(lora_rules, name)(
            ffm.Task(loss), optax.sgd(RATE), ranks=MIXED, **HOW, **how
        )
        return Problem(
            algorithm, *make_trees(squares=name == "fed_sb"), make_clients()[:7], 4
        )

    return make


def _trained(*fixed):
    return lambda problem, client, key: train(
        problem.delta, problem.backbone, client, RANK, fixed
    )


def _make_frlora() -> Problem:
    algorithm = lora_rules.frlora(
        ffm.Task(loss), optax.sgd(RATE), scaling=SCALING, **HOW
    )
    trees = lora_rules.principal_start(*make_trees(), scaling=SCALING)
    return Problem(algorithm, *trees, make_clients()[:7], 4)


def _make_ravan() -> Problem:
    algorithm = lora_rules.ravan(
        ffm.Task(ravan_problem.loss),
        optax.sgd(RATE),
        heads=[2, 1, 2, 1, 1, 2, 1, 2],
        **HOW,
    )
    return Problem(algorithm, *ravan_problem.make_trees(), make_clients()[:7], 4)


def _heads(problem: Problem, client, key):
    return ravan_problem.train(problem.delta, problem.backbone, client)


def _primed(problem: Problem, client, key):
    """All entries trained, and the first three singular values of their change."""
    start = base(problem.delta, problem.backbone)
    end = train_entries(start, client, {})
    delta = {"head": end["head"]}
    for name in LAYERS:
        change = (end[name] - start[name]) / SCALING
        u, s, vt = np.linalg.svd(change, full_matrices=False)
        u, vt, root = u[..., :3], vt[..., :3, :], np.sqrt(s[..., None, :3])
        largest = np.take_along_axis(u, np.abs(u).argmax(-2, keepdims=True), -2)
        root = root * np.sign(largest)
        delta[name] = {"lora_a": root * u, "lora_b": np.swapaxes(root, -1, -2) * vt}
    return delta


def _make_fedlease() -> Problem:
    algorithm = lora_rules.fedlease(
        ffm.Task(fedlease_problem.loss),
        optax.sgd(RATE),
        labels=[0, 1, 0, 1, 1, 0, 1],
        **fedlease_problem.HOW,
    )
    clients = fedlease_problem.CLIENTS
    return Problem(algorithm, fedlease_problem.make_delta(), (), clients, 4)


def _make_warm_up() -> Problem:
    algorithm = lora_rules.fedlease_warm_up(ffm.Task(loss), optax.sgd(RATE), **HOW)
    return Problem(algorithm, *make_trees(), make_clients()[:7], 4)


def _as_it_was(problem: Problem, client, key):
    """The common start; what clients sent is looked at in test_fedlease.py."""
    return problem.delta


def _own_expert(problem: Problem, client, key):
    """Client 0 is of cluster 0, whose expert comes first."""
    router = problem.delta["layer"]["router"]
    return fedlease_problem.train(problem.delta, router, client, 0)


def _own_expert_first(problem: Problem, state, client):
    cluster = 0 if client is None else max(int(own_state(state, client)), 0)
    layer = fedlease_problem.swapped(state.delta["layer"], cluster)
    layer["router"] = state.carry.server.routers["layer"][cluster]
    return {**state.delta, "layer": layer}, problem.backbone


def _head_alone(problem: Problem, client, key):
    """The factors are back at their start."""
    end = train(problem.delta, problem.backbone, client)
    return {**problem.delta, "head": end["head"]}


def _without_b(problem: Problem, client, key):
    delta = train(problem.delta, problem.backbone, client, RANK)
    for name in LAYERS:
        delta[name]["lora_b"] = problem.delta[name]["lora_b"]
    return delta


def _fresh(problem: Problem, client, key):
    """Trained head, A drawn anew, B = 0."""
    delta = train(problem.delta, problem.backbone, client, RANK)
    for number, name in enumerate(LAYERS):
        a, b = (problem.delta[name][kind] for kind in ("lora_a", "lora_b"))
        shape = (a.shape[-1], *a.shape[:-1])
        draw = jax.random.uniform(
            jax.random.fold_in(derive(key, Purpose.SERVER, 0), number), shape
        )
        delta[name] = {
            "lora_a": jnp.moveaxis((2 * draw - 1) / np.sqrt(a.shape[-2]), 0, -1),
            "lora_b": np.zeros_like(b),
        }
    return delta


def _pruned(problem: Problem, client, key):
    def penalty(delta):
        return tail_gradient(delta, 2, PENALTY)

    end = train(problem.delta, problem.backbone, client, RANK, penalty=penalty)
    return (
        cut(end, 2)
        if tail_size(end, 2) < tail_size(in_numpy(problem.delta), 2)
        else end
    )


def _by_svd(problem: Problem, client, key):
    return _by_svd_of(train(problem.delta, problem.backbone, client, RANK))


def _by_svd_of(delta):
    for name in LAYERS:
        u, s, vt = np.linalg.svd(
            delta[name]["lora_a"] @ delta[name]["lora_b"], full_matrices=False
        )
        u, vt = u[..., :3], s[..., :3, None] * vt[..., :3, :]
        largest = np.take_along_axis(
            u, np.abs(u).argmax(axis=-2, keepdims=True), axis=-2
        )
        sign = np.sign(largest)
        delta[name] = {"lora_a": u * sign, "lora_b": np.swapaxes(sign, -1, -2) * vt}
    return delta


def _by_balanced_svd(problem: Problem, client, key):
    """Singular values on both sides, from client 0's rank of three."""
    delta = _by_svd(problem, client, key)
    for name in LAYERS:
        a, b = delta[name]["lora_a"], delta[name]["lora_b"]
        root = np.sqrt(np.linalg.norm(b, axis=-1))
        delta[name] = {"lora_a": a * root[..., None, :], "lora_b": b / root[..., None]}
    return delta


def _orthonormal(problem: Problem, client, key):
    delta = train(problem.delta, problem.backbone, client, RANK, ("lora_a",))
    return _by_svd_of(delta)


def _with_residual(problem: Problem, state, client):
    """The kernels have taken in what the server added."""
    residual, backbone = (
        state.carry.server.residual,
        jax.tree.map(np.asarray, problem.backbone),
    )
    for name in LAYERS:
        newest = residual.newest[name]
        if hasattr(newest, "a"):
            newest = np.einsum("r...i,r...o->...io", newest.a.values, newest.b.values)
        kernel = backbone[name]["base"]["kernel"] + residual.total[name] + newest
        backbone[name] = {**backbone[name], "base": {"kernel": kernel}}
    return state.delta, backbone


def _with_own_b(problem: Problem, state, client):
    if client is None:
        return state.delta, problem.backbone
    delta, own = dict(state.delta), own_state(state, client)
    for name in LAYERS:
        delta[name] = {**delta[name], "lora_b": np.moveaxis(own[name], 0, -2)}
    return delta, problem.backbone


ROWS = {
    "fedit": Row(_make("fedit"), _trained()),
    "ffa_lora": Row(_make("ffa_lora"), _trained("lora_a")),
    "fedsa_lora": Row(_make("fedsa_lora"), _without_b, _with_own_b),
    "rolora": Row(_make("rolora"), _trained("lora_a")),
    "fedex_lora": Row(_make("fedex_lora", scaling=SCALING), _trained(), _with_residual),
    "flora": Row(_make("flora", scaling=SCALING), _fresh, _with_residual),
    # Singular vectors of close singular values turn with the last digits of a sum.
    "flexlora": Row(_make("flexlora"), _by_svd, rtol=1e-3, atol=1e-3),
    "hetlora": Row(_make("hetlora", gamma=GAMMA, tail_penalty=PENALTY), _pruned),
    "lora_fair": Row(_make("lora_fair"), _trained()),
    # Singular vectors of close singular values turn, as for FlexLoRA.
    "fedsvd": Row(_make("fedsvd"), _orthonormal, rtol=1e-3, atol=1e-3),
    "fedrot_lora": Row(
        _make("fedrot_lora", strength=0.7), _trained(), rtol=1e-4, atol=1e-4
    ),
    "frlora": Row(_make_frlora, _head_alone, _with_residual),
    "fedrpca": Row(_make("fedrpca", beta=1.0), _trained(), rtol=1e-4, atol=1e-4),
    "fslora": Row(_make("fslora", server_optimizer=optax.sgd(1.0)), _trained()),
    "fedask": Row(_make("fedask", sketch=4), _by_balanced_svd, rtol=2e-3, atol=2e-3),
    "ravan": Row(_make_ravan, _heads),
    "lora_a2": Row(_make("lora_a2"), _trained("lora_a")),
    # The second round is of stage 2; singular vectors turn, as for FlexLoRA.
    "slora": Row(
        _make("slora", scaling=SCALING, sparse_rounds=1, density=1.0),
        _primed,
        rtol=1e-3,
        atol=1e-3,
    ),
    "fedlease_warm_up": Row(_make_warm_up, _as_it_was),
    "fedlease": Row(_make_fedlease, _own_expert, _own_expert_first),
    "fed_sb": Row(_make("fed_sb"), _trained()),
}
