"""Deprecated names warn their callers, and nothing of ours is one of them."""

import subprocess
import sys
import types
import warnings

import pytest

from fedjax_fm.deprecation import Moved, deprecated, message, moved, warn
from fedjax_fm.spelling import nearest

WHEN = {"since": "0.2", "until": "0.4"}


@deprecated("fedjax_fm.old", use="fedjax_fm.new", **WHEN)
def old(x):
    """Doubles."""
    return 2 * x


def told(call):
    """What a call returns, and the warnings of it."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        value = call()
    return value, found


def test_a_function_warns_its_caller_and_works():
    value, (warning,) = told(lambda: old(2))
    assert value == 4
    assert old.__doc__ == "Doubles."
    assert warning.category is DeprecationWarning
    assert warning.filename == __file__
    for part in ("fedjax_fm.old", "since 0.2", "use fedjax_fm.new", "0.4 removes it"):
        assert part in str(warning.message)


def test_a_name_that_has_moved_is_found_and_warns():
    module = types.ModuleType("fedjax_fm.checks")
    gone = {"closest": Moved("fedjax_fm.spelling.nearest", **WHEN)}
    module.__getattr__ = moved("fedjax_fm.checks", gone)
    value, (warning,) = told(lambda: module.closest)
    assert value is nearest
    assert warning.filename == __file__
    assert str(warning.message).startswith("fedjax_fm.checks.closest is deprecated")
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        _ = module.other


def test_an_argument_warns_the_caller_of_the_function():
    def method(steps=None):
        warn("fedjax_fm.method(steps=)", use="local_steps", **WHEN)

    _, (warning,) = told(lambda: method(steps=1))
    assert warning.filename == __file__
    line = test_an_argument_warns_the_caller_of_the_function.__code__.co_firstlineno
    assert warning.lineno == line + 4


def test_ours_are_errors_in_these_tests():
    with pytest.raises(DeprecationWarning, match=r"fedjax_fm\.old"):
        old(1)


def test_others_are_not_errors():
    warnings.warn("numpy.old is deprecated", DeprecationWarning, stacklevel=1)


def test_a_name_of_others_is_refused():
    with pytest.raises(ValueError, match=r"begins with fedjax_fm\., got 'jax\.old'"):
        message("jax.old", use="jax.new", **WHEN)


def test_a_script_shows_the_warning():
    code = (
        "from fedjax_fm.deprecation import deprecated\n"
        "@deprecated('fedjax_fm.old', use='fedjax_fm.new', since='0.2', until='0.4')\n"
        "def old(): pass\n"
        "old()\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DeprecationWarning: fedjax_fm.old is deprecated since 0.2" in said.stderr
