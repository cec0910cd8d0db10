"""Federated methods, one file each.

Those for low-rank adapters are in `lora_rules`, those that give each client a model of
its own in `personal`.
"""

from fedjax_fm.algorithms import graphs, lora_rules, server_optimizers
from fedjax_fm.algorithms.cdp_sgd import cdp_sgd
from fedjax_fm.algorithms.diana import diana
from fedjax_fm.algorithms.diloco import diloco
from fedjax_fm.algorithms.distillation import Architecture
from fedjax_fm.algorithms.docofl import docofl
from fedjax_fm.algorithms.dp_fedavg import AdaptiveClip, dp_fedavg
from fedjax_fm.algorithms.ef21 import ef21
from fedjax_fm.algorithms.fada import fada
from fedjax_fm.algorithms.fada_networks import FADANetworks, fada_networks
from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.algorithms.fedbuff import fedbuff
from fedjax_fm.algorithms.fedclip import fedclip
from fedjax_fm.algorithms.feddf import feddf
from fedjax_fm.algorithms.feddpa import feddpa_f, feddpa_t
from fedjax_fm.algorithms.feddyn import feddyn
from fedjax_fm.algorithms.fedkseed import fedkseed
from fedjax_fm.algorithms.fedlin import fedlin
from fedjax_fm.algorithms.fedmd import fedmd
from fedjax_fm.algorithms.fedmkt import Models, fedmkt
from fedjax_fm.algorithms.fednova import fednova
from fedjax_fm.algorithms.fedobd import fedobd, fedobd_second_stage
from fedjax_fm.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedjax_fm.algorithms.fedpaq import fedpaq
from fedjax_fm.algorithms.fedpm import fedpm
from fedjax_fm.algorithms.fedprox import fedprox
from fedjax_fm.algorithms.fedprox_adaptive import fedprox_adaptive
from fedjax_fm.algorithms.fedsgd import fedsgd
from fedjax_fm.algorithms.fjord import fjord
from fedjax_fm.algorithms.flasc import flasc
from fedjax_fm.algorithms.gossip import edge_bytes, gossip
from fedjax_fm.algorithms.heterofl import heterofl
from fedjax_fm.algorithms.hierarchical import Tier, hierarchical
from fedjax_fm.algorithms.knowledge import Alignment, Reader
from fedjax_fm.algorithms.local import client_weight, train
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.algorithms.mime import mime
from fedjax_fm.algorithms.mimelite import mimelite
from fedjax_fm.algorithms.moon import moon
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
from fedjax_fm.algorithms.power_of_choice import power_of_choice
from fedjax_fm.algorithms.pruning import (
    RoundTime,
    fedtiny,
    fedtiny_selection,
    gradual_pruning,
    lottery_ticket,
    lotteryfl,
    movement_pruning,
    prunefl,
    prunefl_first_stage,
    soft_movement_pruning,
)
from fedjax_fm.algorithms.qfedavg import qfedavg
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.algorithms.scaffold import scaffold
from fedjax_fm.algorithms.soteriafl import soteriafl
from fedjax_fm.algorithms.streaming_diloco import streaming_diloco

__all__ = [
    "AdaptiveClip",
    "Alignment",
    "Architecture",
    "FADANetworks",
    "Models",
    "Reader",
    "RoundTime",
    "Tier",
    "apfl",
    "cdp_sgd",
    "client_weight",
    "diana",
    "diloco",
    "ditto",
    "docofl",
    "dp_fedavg",
    "edge_bytes",
    "ef21",
    "fada",
    "fada_networks",
    "fedadagrad",
    "fedadam",
    "fedala",
    "fedavg",
    "fedavgm",
    "fedbabu",
    "fedbert",
    "fedbuff",
    "fedclip",
    "feddf",
    "feddpa_f",
    "feddpa_t",
    "feddyn",
    "fedkseed",
    "fedlin",
    "fedmd",
    "fedmkt",
    "fednova",
    "fedobd",
    "fedobd_second_stage",
    "fedpaq",
    "fedper",
    "fedpm",
    "fedprox",
    "fedprox_adaptive",
    "fedrep",
    "fedsgd",
    "fedtiny",
    "fedtiny_selection",
    "fedyogi",
    "fine_tune",
    "fjord",
    "flasc",
    "gossip",
    "gradual_pruning",
    "graphs",
    "heterofl",
    "hierarchical",
    "ifca",
    "local_only",
    "lora_rules",
    "lottery_ticket",
    "lotteryfl",
    "masked_loss",
    "mime",
    "mimelite",
    "moon",
    "movement_pruning",
    "nest",
    "per_fedavg",
    "pfedme",
    "power_of_choice",
    "prunefl",
    "prunefl_first_stage",
    "qfedavg",
    "scaffold",
    "server_optimizers",
    "soft_movement_pruning",
    "soteriafl",
    "streaming_diloco",
    "train",
    "weighted_mean",
]
