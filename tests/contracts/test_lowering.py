"""Every method's rounds in the languages of the compilers for TPUs and for GPUs.

Lowered on CPU devices as if they were those of other machines; nothing is compiled.
"""

import jax
import pytest
from test_contracts import KINDS, ROWS

from fedjax_fm import aot
from fedjax_fm.testing.contract import simulator_of


def rows_with_marks():
    for name in sorted(ROWS):
        marks = () if name in KINDS else pytest.mark.slow
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("name", list(rows_with_marks()))
def test_rounds_lower(name, platform):
    here = aot.this_machine()
    target = here._replace(name=platform, platform=platform, is_here=False)
    problem = ROWS[name].make()
    simulator = simulator_of(problem, target=target, devices=2, block_size=1)
    delta = jax.eval_shape(lambda: problem.delta)
    text = simulator.lower(delta).as_text()
    assert "stablehlo.while" in text
    assert "all_reduce" in text
