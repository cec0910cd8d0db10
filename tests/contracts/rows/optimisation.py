"""Methods of federated optimisation on a two-layer network: FedProx to streaming DiLoCo."""

import jax
import jax.numpy as jnp
import optax
from contract import Problem, Row
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm import algorithms

STEPS, RATE = 3, 0.05
TASK, SGD = ffm.Task(mlp_loss), optax.sgd(RATE)
SIZES = (6, 1, 4, 2, 6, 3, 5)
WALK = {"local_steps": STEPS, "batch_size": 8}


def problem(algorithm) -> Problem:
    delta, backbone = make_trees()
    return Problem(
        algorithm=algorithm,
        delta=delta,
        backbone=backbone,
        clients=make_clients(sizes=SIZES),
        cohort_size=4,
    )


def made(make, *args, **how):
    def of_row() -> Problem:
        return problem(make(TASK, *args, **how))

    return of_row


# Plain loops of one client; one batch holds all of its examples


def loss_of(problem: Problem, client, delta):
    batch = jax.tree.map(jnp.asarray, client)
    return jnp.mean(mlp_loss(delta, problem.backbone, batch, None)[0])


def gradient_of(problem: Problem, client, delta):
    return jax.grad(lambda d: loss_of(problem, client, d))(delta)


def leafwise(fn, *trees):
    return jax.tree.map(fn, *trees)


def trained(problem: Problem, client, delta=None, bend=None, steps=STEPS):
    """SGD, the gradient bent by `(gradient leaf, w leaf, start leaf) -> leaf`."""
    start = problem.delta if delta is None else delta
    w = start
    for _ in range(steps):
        g = gradient_of(problem, client, w)
        if bend is not None:
            g = leafwise(bend, g, w, start)
        w = leafwise(lambda x, y: x - RATE * y, w, g)
    return w


def plain(problem, client, key):
    return trained(problem, client)


def moved(problem, end, factor):
    return leafwise(lambda w, e: w + factor * (e - w), problem.delta, end)


def with_pull(problem, client, key):
    return trained(problem, client, bend=lambda g, w, s: g + 0.5 * (w - s))


def one_step(problem, client, key):
    return trained(problem, client, steps=1)


def with_momentum(problem, client, key):
    """The first step of a Nesterov momentum of 0.9 is 1.9 times as long."""
    return moved(problem, trained(problem, client), 0.7 * 1.9)


def adaptive(second):
    def server_step(problem, client, key):
        end = trained(problem, client)

        def step(w, e):
            d = e - w
            return w + 0.1 * 0.5 * d / (jnp.sqrt(second(d * d)) + 0.1)

        return leafwise(step, problem.delta, end)

    return server_step


TAU2 = 0.1**2
HOW = {"b1": 0.5, "tau": 0.1}


def adagrad_v(square):
    return TAU2 + square


def yogi_v(square):
    return TAU2 - 0.01 * square * jnp.sign(TAU2 - square)


def adam_v(square):
    return 0.99 * TAU2 + 0.01 * square


def dynamic(problem, client, key):
    """w_k - h / alpha with h = alpha (w - w_k): twice the way of the bent training."""
    end = trained(problem, client, bend=lambda g, w, s: g + 0.5 * (w - s))
    return moved(problem, end, 2.0)


def fair(problem, client, key):
    end, loss = trained(problem, client), loss_of(problem, client, problem.delta)
    d = leafwise(lambda w, e: (w - e) / RATE, problem.delta, end)
    square = sum(jnp.sum(x * x) for x in jax.tree.leaves(d))
    size = 2.0 * loss * square + loss**2 / RATE
    return leafwise(lambda w, x: w - loss**2 * x / size, problem.delta, d)


def mimicked(problem, client, key):
    """One client: g(y) - g(x) + c is g(y), and the momentum is still zero."""
    return trained(problem, client)


def inner_adam(problem, client, key):
    inner = optax.adam(0.01)
    w, moments = problem.delta, inner.init(problem.delta)
    for _ in range(STEPS):
        updates, moments = inner.update(gradient_of(problem, client, w), moments, w)
        w = optax.apply_updates(w, updates)
    return moved(problem, w, 0.7 * 1.9)


def streamed(problem, client, key):
    """Two exchanges of two steps; each row is moved by half of its way when it is sent."""
    w = server = leafwise(jnp.asarray, problem.delta)
    for p in range(2):
        if p:  # the first fragment comes back and is taken up whole
            w = leafwise(lambda x, s: x.at[0::2].set(s[0::2]), w, server)
        w = trained(problem, client, w, steps=2)

        def exchanged(s, x, first, p=p):
            return s.at[p::2].set((first + 0.5 * (x - first))[p::2])

        server = leafwise(exchanged, server, w, problem.delta)
    return server


def features(delta, backbone, batch, key):
    return jnp.tanh(batch["x"] @ (backbone["w"] + delta["w"]))


def chosen() -> Problem:
    fedavg = ffm.fedavg(TASK, SGD, **WALK)
    method = algorithms.power_of_choice(fedavg, TASK, cohort_size=1, batch_size=4)
    return problem(method)


ADAPTIVE = {**HOW, **WALK}
ROWS = {
    "fedprox": Row(made(algorithms.fedprox, SGD, mu=0.5, **WALK), with_pull),
    "fedprox_adaptive": Row(
        made(algorithms.fedprox_adaptive, SGD, mu=0.5, **WALK), with_pull
    ),
    "fedsgd": Row(made(algorithms.fedsgd, SGD, epochs=1, batch_size=4), one_step),
    "fedavgm": Row(
        made(
            algorithms.fedavgm,
            SGD,
            server_learning_rate=0.7,
            nesterov=True,
            **WALK,
        ),
        with_momentum,
    ),
    "fedadagrad": Row(
        made(algorithms.fedadagrad, SGD, **ADAPTIVE), adaptive(adagrad_v)
    ),
    "fedyogi": Row(made(algorithms.fedyogi, SGD, **ADAPTIVE), adaptive(yogi_v)),
    "fedadam": Row(made(algorithms.fedadam, SGD, **ADAPTIVE), adaptive(adam_v)),
    "scaffold": Row(made(algorithms.scaffold, SGD, **WALK), plain),
    "scaffold_i": Row(made(algorithms.scaffold, SGD, option="I", **WALK), plain),
    "fednova": Row(made(algorithms.fednova, SGD, **WALK), plain),
    "feddyn": Row(made(algorithms.feddyn, SGD, alpha=0.5, **WALK), dynamic),
    "mime": Row(made(algorithms.mime, optax.sgd(RATE, momentum=0.9), **WALK), mimicked),
    "mimelite": Row(
        made(algorithms.mimelite, optax.sgd(RATE, momentum=0.9), **WALK), mimicked
    ),
    "diloco": Row(made(algorithms.diloco, optax.adam(0.01), **WALK), inner_adam),
    "streaming_diloco": Row(
        made(
            algorithms.streaming_diloco,
            SGD,
            optax.sgd(0.5),
            fragments=2,
            alpha=0.0,
            local_steps=4,
            batch_size=8,
        ),
        streamed,
    ),
    "moon": Row(made(algorithms.moon, SGD, features=features, **WALK), plain),
    "qfedavg": Row(made(algorithms.qfedavg, SGD, q=2.0, **WALK), fair),
    "power_of_choice": Row(chosen, plain),
}
