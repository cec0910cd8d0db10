"""Federated methods, one file each; those for low-rank adapters are in `lora_rules`."""

from fedjax_fm.algorithms import lora_rules, server_optimizers
from fedjax_fm.algorithms.cdp_sgd import cdp_sgd
from fedjax_fm.algorithms.diana import diana
from fedjax_fm.algorithms.distillation import Architecture
from fedjax_fm.algorithms.docofl import docofl
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg
from fedjax_fm.algorithms.ef21 import ef21
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.algorithms.fedbuff import fedbuff
from fedjax_fm.algorithms.feddf import feddf
from fedjax_fm.algorithms.feddpa import feddpa_f, feddpa_t
from fedjax_fm.algorithms.fedkseed import fedkseed
from fedjax_fm.algorithms.fedlin import fedlin
from fedjax_fm.algorithms.fedmd import fedmd
from fedjax_fm.algorithms.fedobd import fedobd, fedobd_second_stage
from fedjax_fm.algorithms.fedpaq import fedpaq
from fedjax_fm.algorithms.fedpm import fedpm
from fedjax_fm.algorithms.fjord import fjord
from fedjax_fm.algorithms.flasc import flasc
from fedjax_fm.algorithms.heterofl import heterofl
from fedjax_fm.algorithms.local import client_weight, train
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.nested import nest
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.algorithms.soteriafl import soteriafl

__all__ = [
    "AdaptiveClip",
    "Architecture",
    "cdp_sgd",
    "client_weight",
    "diana",
    "docofl",
    "dp_fedavg",
    "ef21",
    "fedavg",
    "fedbert",
    "fedbuff",
    "feddf",
    "feddpa_f",
    "feddpa_t",
    "fedkseed",
    "fedlin",
    "fedmd",
    "fedobd",
    "fedobd_second_stage",
    "fedpaq",
    "fedpm",
    "fjord",
    "flasc",
    "heterofl",
    "local_only",
    "lora_rules",
    "masked_loss",
    "nest",
    "server_optimizers",
    "soteriafl",
    "train",
    "weighted_mean",
]
