"""Clients that lie: robust reductions for any method that averages, and attacks.

`robust(algorithm, rule)` puts a rule in the place of a method's mean. `attacks` makes
liars of some clients, without the server's knowledge.
"""

from fedjax_fm.robust import attacks
from fedjax_fm.robust.bulyan import bulyan
from fedjax_fm.robust.centred_clipping import centred_clipping
from fedjax_fm.robust.coordinates import coordinate_median, trimmed_mean
from fedjax_fm.robust.exchange import RobustState
from fedjax_fm.robust.fltrust import RootData, fltrust
from fedjax_fm.robust.geometric_median import geometric_median
from fedjax_fm.robust.krum import krum, multi_krum
from fedjax_fm.robust.leaves import by_leaf
from fedjax_fm.robust.mean import mean
from fedjax_fm.robust.norm_bound import norm_bound
from fedjax_fm.robust.rule import Reduced, Rule, Uploads
from fedjax_fm.robust.signs import sign_majority
from fedjax_fm.robust.wrapper import robust

__all__ = [
    "Reduced",
    "RobustState",
    "RootData",
    "Rule",
    "Uploads",
    "attacks",
    "bulyan",
    "by_leaf",
    "centred_clipping",
    "coordinate_median",
    "fltrust",
    "geometric_median",
    "krum",
    "mean",
    "multi_krum",
    "norm_bound",
    "robust",
    "sign_majority",
    "trimmed_mean",
]
