"""What makes a run this run and no other: settings, data, weights and the program of a round.

identity.json is written when a run begins and compared whenever it goes on:

    settings   hyper-parameters, channels, sampler, cohort, seed, found by a walk
    through what they are made of arrays     digests of data, backbone and the first
    delta (see `fingerprint.array_print` for large ones) program    digest of the round
    as JAX has traced it: what only the code of a loss says is in there code
    versions; another one is a warning, and then programs are not compared
"""

import hashlib
import importlib.metadata
import platform
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.engine import Simulator
from fedjax_fm.engine.data import shapes_of
from fedjax_fm.engine.shapes import first_state
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.runs.fingerprint import array_print, describe, same_but_for_rounding
from fedjax_fm.runs.provenance import commit
from fedjax_fm.types import Tree

FILE = "identity.json"
SHOWN = 6  # differences


class Comparison(NamedTuple):
    """How what a run was begun as and what goes on with it differ, a sentence each."""

    refused: list[str]
    warnings: list[str]


def identity_of(
    simulator: Simulator, delta: Tree, key: jax.Array | None = None
) -> dict[str, Any]:
    """Everything but the program, which needs a layout.

    Args:
      simulator: before or after `init`.
      delta: the tree that training starts from.
      key: of the state; default: the simulator's.
    """
    found = {
        "seed": _seed(simulator.key if key is None else key),
        "n_clients": repr(simulator.population.n_clients),
    }
    found |= describe("", simulator.defined_by)
    arrays = {
        f"data.{name}": array for name, array in simulator.population.arrays.items()
    }
    arrays["where clients' examples begin"] = simulator.population.offsets
    for name, tree in (("delta", delta), ("backbone", simulator.backbone)):
        arrays |= {
            f"{name}{jax.tree_util.keystr(path)}": leaf
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
    prints = {
        name: array_print(jnp.asarray(leaf) if not hasattr(leaf, "dtype") else leaf)
        for name, leaf in arrays.items()
    }
    prints |= {path: entry for path, entry in found.items() if isinstance(entry, dict)}
    settings = {
        path.removeprefix("."): entry
        for path, entry in found.items()
        if isinstance(entry, str)
    }
    return {"settings": settings, "arrays": prints, "code": _code()}


def program_of(simulator: Simulator, state: SimulationState, delta: Tree) -> str | None:
    """Digest of a round as it was traced; None under `pmap`, whose rounds are several programs.

    Where whole rounds run on the device, the trace is the one that the run will use;
    else it is one more.
    """
    engine, programs = simulator.engine, simulator.programs
    if engine.parallel == "pmap":
        return None
    carry, data = state.carry, simulator.data
    if simulator.spills or data is None:
        first = trees.shapes(delta)
        carry = jax.eval_shape(
            lambda tree: first_state(
                engine,
                simulator.sampler,
                simulator.shapes,
                delta=tree,
                key=simulator.key,
                spills=False,
            ),
            first,
        )
        data = trees.shapes(shapes_of(simulator.population))
    traced = programs.fused.trace(
        carry, simulator.backbone, data, jnp.int32(1), simulator.key
    ).jaxpr
    # Functions that are parameters of an operation are printed with their addresses.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr))
    constants = [
        array_print(jnp.asarray(constant))["sha256"] for constant in traced.consts
    ]
    return hashlib.sha256("\n".join([text, *constants]).encode()).hexdigest()


def compare(before: dict[str, Any], now: dict[str, Any]) -> Comparison:
    """How two identities differ; programs are compared where both have one, made by the same code.

    Weights may be computed anew, and on another machine differ by rounding: a warning.
    Data may not.
    """
    refused, warnings = _of_settings(before["settings"], now["settings"]), []
    for name in sorted(before["arrays"].keys() | now["arrays"].keys()):
        old, new = before["arrays"].get(name), now["arrays"].get(name)
        if old is None or new is None:
            refused.append(f"{name}: {'new' if old is None else 'gone'}")
        elif old["type"] != new["type"]:
            refused.append(f"{name}: {old['type']} → {new['type']}")
        elif (
            old["sha256"] != new["sha256"]
            and not _is_data(name)
            and same_but_for_rounding(old, new)
        ):
            warnings.append(
                f"{name} is not the same to the bit; the difference is of the size of rounding"
            )
        elif old["sha256"] != new["sha256"]:
            refused.append(f"{name}: other values")
    code = [
        f"{name} {before['code'].get(name)} → {version}"
        for name, version in now["code"].items()
        if before["code"].get(name) != version
    ]
    if code:
        warnings.append(
            f"the code is another one ({', '.join(code)}), so the next rounds may be, too"
        )
    programs = (before.get("program"), now.get("program"))
    if not (refused or code or None in programs) and programs[0] != programs[1]:
        refused.append(
            "the program of a round is another one, though all settings are the "
            "same: a loss, or a constant that it reads, has changed"
        )
    return Comparison(refused, warnings)


def _is_data(name: str) -> bool:
    """Whether the array is read and not computed.

    One changed value among millions is no rounding there.
    """
    return name.startswith("data.")


def shown(differences: list[str]) -> str:
    """The first few, in one line."""
    more = len(differences) - SHOWN
    return "; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _of_settings(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Each change once: the functions of a channel all close over the same number."""
    changes: dict[tuple, str] = {}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name, "absent"), now.get(name, "absent")
        if old != new:
            old, new = (
                text if len(text) < 100 else text[:97] + "..." for text in (old, new)
            )
            changes.setdefault(
                (name.rpartition(".")[2], old, new), f"{name}: {old} → {new}"
            )
    # Numbers say more than functions that came or went with them.
    return sorted(changes.values(), key=lambda text: "absent" in text)


def _seed(key: jax.Array) -> str:
    """The number that `jax.random.key` was made of, for the default kind of keys and
    seeds of 32 bits.
    """
    words = [int(word) for word in jax.random.key_data(key)]
    return str(words[1]) if len(words) == 2 and words[0] == 0 else str(words)


def _code() -> dict[str, str]:
    return {
        "fedjax_fm": importlib.metadata.version("fedjax-fm"),
        "commit": commit(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
    }
