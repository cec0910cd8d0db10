"""What can be told of functions, settings and arrays, so that two processes can compare theirs.

Algorithms, channels and samplers are named tuples of functions that close over their
hyper-parameters. A walk through them gives each number its path; no address, order of a
set or hash seed of the process enters.
"""

import functools
import hashlib
import inspect
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

READ_WHOLE = 64 << 20  # bytes; of larger arrays PLACES entries are read
PLACES = 1 << 16
MOST_ENTRIES = 20_000  # of one walk
GOLDEN = (math.sqrt(5) - 1) / 2

# Functions of these close over hyper-parameters only; what else a user's function
# closes over (whole data sets, a configuration with its number of rounds) is not a
# setting, and what it does is in the program.
LIBRARIES = ("fedjax_fm", "optax")
Found = dict[str, Any]  # path: text of a setting, or what `array_print` gives


def array_print(array: Any) -> dict[str, Any]:
    """Type, digest and a few moments of an array of numpy or jax.

    Returns:
      {"type": "float32[3, 4]", "sha256": str, "moments": [mean, root mean square, mean
      along a fixed direction]}, the moments of floats only, so that other values can be
      told from rounding. Arrays above 64 MiB are judged by 65,536 entries that lie
      evenly over them: a change of few entries elsewhere is not seen.
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    name = f"{array.dtype}{list(array.shape)}"
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return {"type": name, "sha256": "in parts on several hosts"}
    large = array.size * array.dtype.itemsize > READ_WHOLE
    values = np.asarray(_evenly(array) if large else array)
    hashed = hashlib.sha256(name.encode())
    hashed.update(
        repr(values.tolist()).encode() if values.dtype.hasobject else _bytes_of(values)
    )
    found: dict[str, Any] = {"type": name, "sha256": hashed.hexdigest()}
    if jnp.issubdtype(array.dtype, jnp.floating) and array.size:
        found["moments"] = _moments(values if large else np.asarray(_evenly(values)))
    return found


def same_but_for_rounding(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two prints of different digest are of like values."""
    if before["type"] != now["type"] or "moments" not in before:
        return False
    rounding = float(jnp.finfo(before["type"].partition("[")[0]).eps)
    scale = before["moments"][1] + now["moments"][1]
    return all(
        abs(a - b) <= max(1e-5, 4 * rounding) * scale
        for a, b in zip(before["moments"], now["moments"], strict=True)
    )


def describe(name: str, value: Any) -> Found:
    """Settings and arrays of `value` by path.

    Example:
      >>> describe("channel", {"bits": 4, "shares": (0.5, None)})
      {'channel.bits': '4', 'channel.shares.0': '0.5', 'channel.shares.1': 'None'}
    """
    found: Found = {}
    for path, entry in _walk(name, value, ()):
        found.setdefault(path, entry)
        if len(found) >= MOST_ENTRIES:
            break
    return found


def _walk(path: str, value: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """(path, setting or print) of everything below `value`.

    `above` are the objects that it lies in.
    """
    if id(value) in above:
        return
    above = (*above, id(value))
    if isinstance(value, (jax.Array, np.ndarray)):
        yield path, array_print(value)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        yield path, repr(value)
    elif isinstance(value, np.generic):
        yield path, repr(value.item())
    else:
        yield from _inside(path, value, above)


def _inside(path: str, value: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (functools.partial, jax.tree_util.Partial)):
        parts = {
            "": value.func,
            **{str(i): v for i, v in enumerate(value.args)},
            **value.keywords,
        }
    elif inspect.ismethod(value):
        parts = {"": value.__func__, "self": value.__self__}
    elif isinstance(value, types.FunctionType):
        yield path, _name_of(value)
        parts = _closed_over(value)
    elif callable(value) and hasattr(
        value, "__wrapped__"
    ):  # jit, cache, custom derivatives
        parts = {"": value.__wrapped__}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = value._asdict()  # type: ignore[attr-defined]
    elif isinstance(value, (list, tuple)):
        parts = {str(i): part for i, part in enumerate(value)}
    elif isinstance(value, (dict, types.MappingProxyType)):
        parts = {str(key): value[key] for key in sorted(value, key=str)}
    elif isinstance(value, (set, frozenset)):
        parts = {str(i): part for i, part in enumerate(sorted(value, key=repr))}
    else:
        yield (
            path,
            _name_of(
                value
                if isinstance(value, type) or hasattr(value, "__name__")
                else type(value)
            ),
        )
        return
    for name, part in parts.items():
        yield from _walk(f"{path}.{name}" if name else path, part, above)


def _closed_over(function: types.FunctionType) -> dict[str, Any]:
    """Variables that a function closes over, and its defaults.

    Of a user's function only what can be a setting.
    """
    parts = {}
    for name, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=True
    ):
        try:
            parts[name] = cell.cell_contents
        except ValueError:  # not yet bound
            continue
    parts |= {
        name: parameter.default
        for name, parameter in inspect.signature(
            function, follow_wrapped=False
        ).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    if _is_library(function):
        return parts
    return {name: part for name, part in parts.items() if _may_be_setting(part)}


def _may_be_setting(value: Any) -> bool:
    numbers = value is None or isinstance(
        value, (bool, int, float, complex, np.generic)
    )
    return (
        numbers
        or inspect.isroutine(value)
        or _is_library(type(value))
        or hasattr(value, "__wrapped__")
    )


def _is_library(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] in LIBRARIES


def _name_of(value: Any) -> str:
    """A name that is the same in a script, in a notebook and in an import of the script."""
    name = getattr(value, "__qualname__", None) or getattr(
        value, "__name__", type(value).__qualname__
    )
    module = getattr(value, "__module__", None) or ""
    known = _is_library(value) or module.partition(".")[0] in sys.stdlib_module_names
    return f"{module}.{name}" if known else str(name)


def _evenly(array: Any) -> Any:
    """At most PLACES entries, whose places fill the array evenly in every dimension.

    A small array whole.
    """
    if array.size <= PLACES:
        return array.reshape(-1)
    places = (np.arange(PLACES) * GOLDEN % 1 * array.size).astype(np.int64)
    return array[np.unravel_index(np.sort(places), array.shape)]


def _bytes_of(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _moments(values: np.ndarray) -> list[float]:
    flat = np.nan_to_num(
        values.reshape(-1).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0
    )
    direction = np.cos(np.arange(len(flat)) * 1.7)
    return [
        float(flat.mean()),
        float(np.sqrt((flat**2).mean())),
        float((flat * direction).mean()),
    ]
