"""What the author of a method needs to test it.

`check_algorithm(make)` holds a method to the promises that all methods of this package
keep; the other functions are what such tests are made of. Nothing here is imported by
the rest of the package.
"""

from fedjax_fm.testing.contract import PROMISES, Case, Problem, check_algorithm
from fedjax_fm.testing.handles import client_key, compile_count, fixed_cohort, round_key

__all__ = [
    "PROMISES",
    "Case",
    "Problem",
    "check_algorithm",
    "client_key",
    "compile_count",
    "fixed_cohort",
    "round_key",
]
