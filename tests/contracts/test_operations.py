"""The operations of every method can be counted, so that its costs can be predicted."""

import pytest
from test_contracts import ROWS

from fedjax_fm.systems import per_example
from fedjax_fm.testing.contract import simulator_of


@pytest.mark.parametrize("name", sorted(ROWS))
def test_operations_are_counted(name):
    """`per_example` says why not where a client's program cannot be traced."""
    problem = ROWS[name].make()
    simulator = simulator_of(problem)
    simulator.init(problem.delta)
    found = per_example(simulator)
    assert found.why_not == ""
    assert found.steps > 0
