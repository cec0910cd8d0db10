"""Every cell of docs/pairs.md: what works runs, what is refused raises in its words."""

import pair_runs
import pytest
from pairs import (
    METHODS,
    PARTS,
    PEFT,
    PRIVACY,
    ROBUST,
    ROUNDS,
    Meaningless,
    Refused,
    Works,
    cell_of,
)


def cells(parts, kind):
    """(method, part) of that kind."""
    return [(m, p) for m in METHODS for p in parts if isinstance(cell_of(m, p), kind)]


@pytest.mark.parametrize("parts", pair_runs.TOGETHER, ids=" and ".join)
@pytest.mark.parametrize("method", METHODS)
def test_rounds(method, parts):
    pair_runs.check_round(method, parts)


@pytest.mark.parametrize(("method", "part"), cells(ROUNDS, Refused))
def test_rounds_that_are_refused(method, part):
    pair_runs.check_refusal(method, part)


@pytest.mark.parametrize("method", METHODS)
def test_families(method):
    pair_runs.check_families(method)


@pytest.mark.parametrize(("method", "part"), cells(PEFT, Refused))
def test_families_that_are_refused(method, part):
    pair_runs.check_family_refused(method, part)


@pytest.mark.parametrize(("method", "where"), cells(PRIVACY, Works))
def test_private(method, where):
    pair_runs.check_private(method, where)


@pytest.mark.parametrize(("method", "where"), cells(PRIVACY, Refused))
def test_noise_that_is_refused(method, where):
    pair_runs.check_no_noise(method, where)


@pytest.mark.parametrize(("method", "kind"), cells(ROBUST, Works | Refused))
def test_robust_rules(method, kind):
    pair_runs.check_robust(method, kind)


def test_what_is_meaningless_has_a_reason():
    for method, part in cells(PARTS, Meaningless):
        cell = cell_of(method, part)
        assert isinstance(cell, Meaningless)
        assert len(cell.reason) > 10
