"""Federated methods, one file each.

Those for low-rank adapters are in `lora_rules`, those that give each client a model of
its own in `personal`.
"""

from fedjax_fm.algorithms import lora_rules, server_optimizers
from fedjax_fm.algorithms.distillation import Architecture
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.algorithms.fedbuff import fedbuff
from fedjax_fm.algorithms.feddf import feddf
from fedjax_fm.algorithms.feddpa import feddpa_f, feddpa_t
from fedjax_fm.algorithms.fedkseed import fedkseed
from fedjax_fm.algorithms.fedmd import fedmd
from fedjax_fm.algorithms.fedpm import fedpm
from fedjax_fm.algorithms.fjord import fjord
from fedjax_fm.algorithms.heterofl import heterofl
from fedjax_fm.algorithms.local import client_weight, train
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.nested import nest
from fedjax_fm.algorithms.personal import (
    apfl,
    ditto,
    fedala,
    fedbabu,
    fedper,
    fedrep,
    fine_tune,
    ifca,
    per_fedavg,
    pfedme,
)
from fedjax_fm.algorithms.reduce import weighted_mean

__all__ = [
    "AdaptiveClip",
    "Architecture",
    "apfl",
    "client_weight",
    "ditto",
    "dp_fedavg",
    "fedala",
    "fedavg",
    "fedbabu",
    "fedbert",
    "fedbuff",
    "feddf",
    "feddpa_f",
    "feddpa_t",
    "fedkseed",
    "fedmd",
    "fedper",
    "fedpm",
    "fedrep",
    "fine_tune",
    "fjord",
    "heterofl",
    "ifca",
    "local_only",
    "lora_rules",
    "masked_loss",
    "nest",
    "per_fedavg",
    "pfedme",
    "server_optimizers",
    "train",
    "weighted_mean",
]
