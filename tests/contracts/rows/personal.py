"""Personal methods on a two-layer network: what one client does in a round, by plain loops."""

import jax
import jax.numpy as jnp
import optax
from contract import Problem, Row, own_state
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import algorithms

STEPS, RATE, INNER, PENALTY = 3, 0.05, 0.2, 2.0
SERVER = 0.7


def _make(name, **how):
    def make() -> Problem:
        delta, backbone = make_trees()
        algorithm = getattr(algorithms, name)(
            ffm.Task(mlp_loss),
            optax.sgd(RATE),
            optax.sgd(SERVER),
            local_steps=STEPS,
            batch_size=8,
            **how,
        )
        return Problem(
            algorithm=algorithm,
            delta=delta,
            backbone=backbone,
            clients=make_clients(sizes=(6, 1, 4, 2, 6, 3, 5)),
            cohort_size=4,
        )

    return make


def _slope(problem: Problem, client, delta):
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])

    return jax.grad(loss)(delta)


def _step(w, gradient, rate=RATE):
    return jax.tree.map(lambda x, g: x - rate * g, w, gradient)


def _at_the_server(problem, end):
    return jax.tree.map(lambda w, t: w - SERVER * (w - t), problem.delta, end)


def _fedavg(problem: Problem, client, key):
    delta = problem.delta
    for _ in range(STEPS):
        delta = _step(delta, _slope(problem, client, delta))
    return _at_the_server(problem, delta)


def _trained(problem, client, names, start):
    """Steps of some leaves."""
    for _ in range(STEPS):
        end = _step(start, _slope(problem, client, start))
        start = {n: end[n] if n in names else start[n] for n in start}
    return start


def _fedper(problem: Problem, client, key):
    return _fedavg(problem, client, key) | {"v": problem.delta["v"]}


def _fedrep(problem: Problem, client, key):
    with_head = _trained(problem, client, ("v",), problem.delta)
    end = _trained(problem, client, ("w",), with_head)
    return _at_the_server(problem, end) | {"v": problem.delta["v"]}


def _fedbabu(problem: Problem, client, key):
    end = _trained(problem, client, ("w",), problem.delta)
    return _at_the_server(problem, end)


def _pfedme(problem: Problem, client, key):
    w = theta = problem.delta
    for _ in range(STEPS):
        for _ in range(2):
            slope = _slope(problem, client, theta)
            pull = jax.tree.map(lambda t, x: PENALTY * (t - x), theta, w)
            theta = _step(theta, jax.tree.map(jnp.add, slope, pull))
        gap = jax.tree.map(lambda x, t: PENALTY * (x - t), w, theta)
        w = _step(w, gap)
    return _at_the_server(problem, w)


def _per_fedavg(problem: Problem, client, key):
    w = problem.delta
    for _ in range(STEPS):
        ahead = _step(w, _slope(problem, client, w), INNER)
        w = _step(w, _slope(problem, client, ahead))
    return _at_the_server(problem, w)


def _with_head(problem: Problem, state, client):
    if client is None:
        return state.delta, problem.backbone
    return {**state.delta, **own_state(state, client)}, problem.backbone


def _own(problem: Problem, state, client):
    delta = state.delta if client is None else own_state(state, client)
    return delta, problem.backbone


def _mixed(problem: Problem, state, client):
    if client is None:
        return state.delta, problem.backbone
    v, a = own_state(state, client)
    return jax.tree.map(
        lambda v, w: a * v + (1 - a) * w, v, state.delta
    ), problem.backbone


def _weighed(problem: Problem, state, client):
    if client is None or own_state(state, client).rounds == 0:
        return state.delta, problem.backbone
    own, shared = own_state(state, client), state.delta["v"]
    start = own.last["v"] + (shared - own.last["v"]) * own.weights["v"]
    return state.delta | {"v": start}, problem.backbone


def _of_cluster(problem: Problem, state, client):
    server = state.carry.server
    j = jnp.argmax(server.chosen) if client is None else own_state(state, client)
    j = jnp.argmax(server.chosen) if j == -1 else j
    return jax.tree.map(lambda x: x[j], server.models), problem.backbone


def _apart(delta, key, j):
    """The first cluster starts at the delta, where a single client is at home."""
    return jax.tree.map(lambda x: x + 3.0 * j, delta)


HEAD = {"personal": "^v$"}
NEAR = {"penalty": PENALTY}
ROWS = {
    "fedper": Row(_make("fedper", **HEAD), _fedper, _with_head),
    "fedrep": Row(_make("fedrep", **HEAD), _fedrep, _with_head),
    "fedbabu": Row(_make("fedbabu", **HEAD), _fedbabu),
    "fedbabu_heads": Row(
        _make("fedbabu", **HEAD, personal_steps=2), _fedbabu, _with_head
    ),
    "ditto": Row(_make("ditto", **NEAR, personal_steps=2), _fedavg, _own),
    "pfedme": Row(_make("pfedme", **NEAR, inner_steps=2), _pfedme, _own),
    "apfl": Row(_make("apfl", mix_rate=0.5), _fedavg, _mixed),
    "fedala": Row(_make("fedala", **HEAD, first_passes=3), _fedavg, _weighed),
    "per_fedavg": Row(
        _make("per_fedavg", inner_rate=INNER, keeps_own=True), _per_fedavg, _own
    ),
    "ifca": Row(_make("ifca", clusters=2, cluster_init=_apart), _fedavg, _of_cluster),
}
