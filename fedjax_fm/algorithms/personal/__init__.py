"""Methods that give each client a model of its own."""

from fedjax_fm.algorithms.personal.apfl import apfl
from fedjax_fm.algorithms.personal.ditto import ditto
from fedjax_fm.algorithms.personal.fedala import fedala
from fedjax_fm.algorithms.personal.fedbabu import fedbabu
from fedjax_fm.algorithms.personal.fedper import fedper
from fedjax_fm.algorithms.personal.fedrep import fedrep
from fedjax_fm.algorithms.personal.fine_tune import fine_tune
from fedjax_fm.algorithms.personal.ifca import IFCAState, ifca
from fedjax_fm.algorithms.personal.mixing import MixedModel
from fedjax_fm.algorithms.personal.per_fedavg import per_fedavg
from fedjax_fm.algorithms.personal.pfedme import pfedme
from fedjax_fm.algorithms.personal.weighing import WeighedLeaves

__all__ = [
    "IFCAState",
    "MixedModel",
    "WeighedLeaves",
    "apfl",
    "ditto",
    "fedala",
    "fedbabu",
    "fedper",
    "fedrep",
    "fine_tune",
    "ifca",
    "per_fedavg",
    "pfedme",
]
