"""What every federated method promises, one row a method; `rows/` holds them."""

import importlib
import pkgutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
import rows
from contract import Row

from fedjax_fm.testing import PROMISES, Case
from fedjax_fm.testing.contract import case_of, one_client_is_centralised

ROWS: dict[str, Row] = {}
for module in pkgutil.iter_modules(rows.__path__):
    ROWS |= importlib.import_module(f"rows.{module.name}").ROWS


# `make test` holds one row of each kind to the promises, `make test-all` all of them.
KINDS = ("fedavg", "dp_fedavg", "fedkseed", "fedpm", "heterofl", "fedmd", "fedbert")
KINDS += ("fedit", "fedsa_lora")


def rows_with_marks():
    for name in sorted(ROWS):
        marks = () if name in KINDS else pytest.mark.slow
        yield pytest.param(name, marks=marks)


class Method(NamedTuple):
    """A row, and its first rounds."""

    row: Row
    case: Case


@pytest.fixture(scope="module", params=rows_with_marks())
def method(request):
    """Some rounds, computed once a row."""
    row = ROWS[request.param]
    return Method(row, case_of(row.make(), rtol=row.rtol, atol=row.atol))


def test_every_kind_has_a_row():
    assert set(KINDS) <= set(ROWS)


@pytest.mark.parametrize("promise", PROMISES)
def test_promise(method, promise):
    PROMISES[promise](method.case)


def test_one_client_is_centralised_training(method):
    one_client_is_centralised(method.case, method.row.centralised)


def test_the_model_to_evaluate_is_the_methods(method):
    """`row.model` says by itself what it is."""
    row, case = method

    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=row.rtol, atol=row.atol)

    for client in (None, 0, 3):
        expected = row.model(case.problem, case.state, client)
        jax.tree.map(close, case.simulator.model(case.state, client), expected)
