"""Federated methods, one file each."""

from fedjax_fm.algorithms.fedavg import fedavg
from fedjax_fm.algorithms.local import masked_loss, train
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.algorithms.reduce import weighted_mean

__all__ = ["fedavg", "local_only", "masked_loss", "train", "weighted_mean"]
