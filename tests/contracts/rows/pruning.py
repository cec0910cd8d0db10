"""The methods that prune, on a two-layer network of which one layer is pruned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import Problem, Row
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import algorithms

STEPS, RATE = 2, 0.05
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(RATE)
WALK = {"local_steps": STEPS, "batch_size": 8}
SIZES = (6, 1, 4, 2, 6, 3, 5)


def _scored(delta, backbone, batch, key):
    losses, _ = mlp_loss(delta, backbone, batch, key)
    return losses, {"good": jnp.ones_like(losses)}


def _made(make, task=TASK, **how):
    def of_row() -> Problem:
        delta, backbone = make_trees()
        return Problem(
            algorithm=make(task, SGD, **WALK, **how),
            delta=delta,
            backbone=backbone,
            clients=make_clients(sizes=SIZES),
            cohort_size=4,
        )

    return of_row


def _largest(scores, k):
    """bool like the scores: the k largest, ties to the lowest index."""
    kept = np.argsort(-np.ravel(scores), kind="stable")[:k]
    mask = np.zeros(np.size(scores), bool)
    mask[kept] = True
    return mask.reshape(np.shape(scores))


def _trained(problem, client, start, mask):
    """SGD on the entries of w that a mask keeps, and on all of v."""
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])

    delta = {"w": jnp.where(mask, start["w"], 0), "v": jnp.asarray(start["v"])}
    for _ in range(STEPS):
        g = jax.grad(loss)(delta)
        w = delta["w"] - RATE * jnp.where(mask, g["w"], 0)
        delta = {"w": w, "v": delta["v"] - RATE * g["v"]}
    return delta


def _gradual(problem, client, key):
    start = problem.delta
    mask = _largest(np.abs(start["w"]), 6)
    end = _trained(problem, client, start, mask)
    after = _largest(np.where(mask, np.abs(end["w"]), -1), 3)
    return {"w": jnp.where(after, end["w"], 0), "v": end["v"]}


def _ticket(problem, client, key):
    start = problem.delta
    end = _trained(problem, client, start, np.ones((3, 4), bool))
    after = _largest(np.abs(end["w"]), 6)
    return {"w": jnp.where(after, start["w"], 0), "v": start["v"]}


def _movement(problem, client, key):
    """Scores of zero: the first six entries of w are kept in each local step but for
    what the scores say in the second one."""
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])

    delta, scores = problem.delta, np.zeros((3, 4), np.float32)
    for _ in range(STEPS):
        mask = _largest(scores, 6)
        g = jax.grad(loss)({"w": delta["w"] * mask, "v": delta["v"]})
        scores = scores - 0.1 * np.asarray(g["w"]) * np.asarray(delta["w"])
        w = delta["w"] - RATE * g["w"] * mask
        delta = {"w": w, "v": delta["v"] - RATE * g["v"]}
    return delta


def _movement_model(problem, state, client):
    server = state.carry.server
    mask = _largest(server.scores["w"], 3)
    kept = jnp.where(mask, server.delta["w"], 0)
    return {"w": kept, "v": server.delta["v"]}, problem.backbone


def _soft(problem, client, key):
    """All scores are above the threshold."""
    return _trained(problem, client, problem.delta, np.ones((3, 4), bool))


def _prunefl(problem, client, key):
    """One entry of w stays, and those whose squares are worth their time."""
    batch = jax.tree.map(jnp.asarray, client)

    def loss(delta):
        return jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])

    delta, total = problem.delta, jax.tree.map(np.zeros_like, problem.delta)
    for _ in range(STEPS):
        g = jax.grad(loss)(delta)
        total = jax.tree.map(np.add, total, g)
        delta = jax.tree.map(lambda w, g: w - RATE * g, delta, g)
    n = STEPS * len(client["y"])
    squares = {name: np.float64(n * x**2) for name, x in total.items()}
    kept = _largest(np.abs(delta["w"]), 1).ravel()
    flat, gain, time = squares["w"].ravel(), squares["v"].sum(), 3.0 + 4 * 0.5
    for i in sorted(np.flatnonzero(~kept), key=lambda i: -flat[i]):
        if flat[i] / 0.5 <= (gain + flat[kept].sum()) / (time + 0.5 * kept.sum()):
            break
        kept[i] = True
    return {"w": jnp.where(kept.reshape(3, 4), delta["w"], 0), "v": delta["v"]}


def _lotteryfl(problem, client, key):
    """The larger half of w is left at once; nobody else holds the other half."""
    start = problem.delta
    mask = _largest(np.abs(start["w"]), 6)
    end = _trained(problem, client, start, mask)
    return {"w": jnp.where(mask, end["w"], start["w"]), "v": end["v"]}


def _lotteryfl_model(problem, state, client):
    if client is None:
        return state.delta, problem.backbone
    mask = state.carry.clients.masks["w"][client]
    kept = jnp.where(mask, state.delta["w"], 0)
    return {"w": kept, "v": state.delta["v"]}, problem.backbone


MASKS = {"w": np.arange(12).reshape(3, 4) % 2 == 0}


def _fedtiny(problem, client, key):
    """Three of the six kept entries go; those that come are still zero."""
    mask = MASKS["w"]
    end = _trained(problem, client, problem.delta, mask)
    stays = _largest(np.where(mask, np.abs(end["w"]), -1), 3)
    return {"w": jnp.where(stays, end["w"], 0), "v": end["v"]}


def _selection(problem, client, key):
    """Nothing is trained."""
    return problem.delta


def _selected(problem, state, client):
    """The chosen mask, and the statistics in the backbone."""
    server = state.carry.server
    chosen = int(np.argmin(server.losses))
    mean = server.statistics[chosen]
    kept = jnp.where(server.masks["w"][chosen], server.delta["w"], 0)
    shifted = {"w": problem.backbone["w"] + mean[:, None]}
    return {"w": kept, "v": server.delta["v"]}, shifted


def _with_mean(delta, backbone, mean):
    return delta, {"w": backbone["w"] + mean[:, None]}


def _select(task, optimizer, local_steps, batch_size, **how):
    return algorithms.fedtiny_selection(
        task,
        density=0.5,
        initial=np.zeros(3, np.float32),
        statistics=lambda delta, backbone, batch, key: batch["x"] * delta["v"][:3],
        with_statistics=_with_mean,
        candidates=3,
        batch_size=batch_size,
        **how,
    )


ROWS = {
    "fedtiny": Row(
        _made(algorithms.fedtiny, masks=MASKS, every=1, stop=2, share=0.5), _fedtiny
    ),
    "fedtiny_selection": Row(_made(_select), _selection, _selected),
    "lotteryfl": Row(
        _made(algorithms.lotteryfl, ffm.Task(_scored), rate=0.5, score="good"),
        _lotteryfl,
        _lotteryfl_model,
    ),
    "prunefl": Row(
        _made(
            algorithms.prunefl,
            time=algorithms.RoundTime(constant=3.0, entry=0.5),
            every=1,
            dropped=0.9,
        ),
        _prunefl,
    ),
    "movement_pruning": Row(
        _made(
            algorithms.movement_pruning,
            initial_sparsity=0.5,
            final_sparsity=0.75,
            last=1,
            score_optimizer=optax.sgd(0.1),
        ),
        _movement,
        _movement_model,
    ),
    "soft_movement_pruning": Row(
        _made(algorithms.soft_movement_pruning, penalty=0.1), _soft
    ),
    "gradual_pruning": Row(
        _made(
            algorithms.gradual_pruning,
            initial_sparsity=0.5,
            final_sparsity=0.75,
            last=1,
        ),
        _gradual,
    ),
    "lottery_ticket": Row(
        _made(algorithms.lottery_ticket, levels=2, rounds_per_level=1, rate=0.5),
        _ticket,
    ),
}
