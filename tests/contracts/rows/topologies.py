"""Averaging without one server: with neighbours, and through tiers."""

import jax
import optax
from contract import Row, own_state

from fedjax_fm import channels
from fedjax_fm.algorithms import Tier, gossip, graphs, hierarchical
from rows.optimisation import RATE, TASK, WALK, plain, problem


def _on_a_ring(n):
    return graphs.metropolis(graphs.ring(n), n)


def _gossip():
    return problem(gossip(TASK, optax.sgd(RATE), mixing=_on_a_ring, **WALK))


def _own(row_problem, state, client):
    delta = state.delta if client is None else own_state(state, client)
    return delta, row_problem.backbone


def _hierarchical():
    feedback = channels.error_feedback(channels.top_k(1.0))
    tiers = (Tier(3, feedback), Tier(2))
    server = optax.sgd(0.7, momentum=0.9)
    return problem(hierarchical(TASK, optax.sgd(RATE), server, tiers=tiers, **WALK))


def _server_step(row_problem, client, key):
    end = plain(row_problem, client, key)
    return jax.tree.map(lambda w, e: w + 0.7 * (e - w), row_problem.delta, end)


ROWS = {
    "gossip": Row(_gossip, plain, _own),
    "hierarchical": Row(_hierarchical, _server_step),
}
