"""A robust rule in FedAvg: of one client's upload it makes that upload."""

import optax
from contract import Row

import fedjax_fm as ffm
from fedjax_fm import robust
from rows.optimisation import RATE, TASK, WALK, plain, problem

FEDAVG = ffm.fedavg(TASK, optax.sgd(RATE), **WALK)
RULES = {
    "robust_median": robust.coordinate_median(),
    "robust_multi_krum": robust.multi_krum(1),
    "robust_geometric_median": robust.geometric_median(),
}


def row_of(rule) -> Row:
    return Row(lambda: problem(robust.robust(FEDAVG, rule)), plain)


ROWS = {name: row_of(rule) for name, rule in RULES.items()}
