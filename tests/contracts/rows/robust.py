"""A robust rule in FedAvg: of one client's upload it makes that upload."""

import optax
from contract import Row
from mlp_problem import mlp_loss

import fedjax_fm as ffm
from fedjax_fm import robust
from rows.optimisation import RATE, WALK, plain, problem

FEDAVG = ffm.fedavg(ffm.Task(mlp_loss), optax.sgd(RATE), **WALK)
RULES = {
    "robust_median": robust.coordinate_median(),
    "robust_multi_krum": robust.multi_krum(1),
    "robust_geometric_median": robust.geometric_median(),
}


def row_of(rule) -> Row:
    return Row(lambda: problem(robust.robust(FEDAVG, rule)), plain)


ROWS = {name: row_of(rule) for name, rule in RULES.items()}
