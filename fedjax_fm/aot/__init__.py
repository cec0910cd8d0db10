"""Rounds compiled for machines that are not here, and what the compilers say of them.

    target = ffm.aot.topology("v5e:2x4")
    simulator = ffm.Simulator(method, population, cohort_size=64, target=target)
    print(ffm.aot.report(simulator.compile(delta)))

Nothing is run: what is said is computed by the real compilers for these machines.
"""

from fedjax_fm.aot.collectives import Collective
from fedjax_fm.aot.report import Report, report
from fedjax_fm.aot.topologies import KINDS, topology
from fedjax_fm.engine.compiled import Compiled, DoesNotFit
from fedjax_fm.engine.target import Target, this_machine

__all__ = [
    "KINDS",
    "Collective",
    "Compiled",
    "DoesNotFit",
    "Report",
    "Target",
    "report",
    "this_machine",
    "topology",
]
