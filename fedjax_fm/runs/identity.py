"""What makes a run this run and no other: settings, data, weights and program.

identity.json is written when a run begins, and compared whenever it goes on:

    settings   hyper-parameters, channels, sampler, cohort, seed, found by a walk
               through the functions that close over them
    arrays     digests of data, backbone and the first delta; of large arrays see
               `fingerprint.array_print`
    program    digest of the round as JAX has traced it, with the code of the loss
    code       versions; where they differ there is a warning, and programs are not
               compared
"""

import hashlib
import importlib.metadata
import platform
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import trees
from fedjax_fm.engine import DealtPopulation, Simulator
from fedjax_fm.engine.data import shapes_of
from fedjax_fm.engine.shapes import first_state
from fedjax_fm.engine.state import SimulationState
from fedjax_fm.runs.fingerprint import array_print, describe, same_but_for_rounding
from fedjax_fm.runs.provenance import commit
from fedjax_fm.types import Tree

FILE = "identity.json"
SHOWN = 6  # differences


class Comparison(NamedTuple):
    """How a run that goes on differs from the one that was begun, a sentence each."""

    refused: list[str]  # differences of another run
    warnings: list[str]  # differences with which it may go on


def identity_of(
    simulator: Simulator, delta: Tree, key: jax.Array | None = None
) -> dict[str, Any]:
    """All parts of the identity but the program, which needs a layout.

    Args:
      simulator: before or after `init`.
      delta: the tree that training starts from.
      key: of the state; default: the simulator's.

    Returns:
      {"settings": {path: text}, "arrays": {name: print}, "code": {name: version}}.
    """
    found = {
        "seed": _seed(simulator.key if key is None else key),
        "n_clients": repr(simulator.population.n_clients),
    }
    found |= describe("", simulator.defined_by)
    population = simulator.population
    is_dealt = isinstance(population, DealtPopulation)
    data = {} if is_dealt else population.arrays
    arrays = {f"data.{name}": array for name, array in data.items()}
    arrays["where clients' examples begin"] = simulator.population.offsets
    for name, tree in (("delta", delta), ("backbone", simulator.backbone)):
        arrays |= {
            f"{name}{jax.tree_util.keystr(path)}": leaf
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
    prints = _prints_of(population) if is_dealt else {}
    for name, leaf in arrays.items():
        is_array = hasattr(leaf, "dtype")
        prints[name] = array_print(leaf if is_array else jnp.asarray(leaf))
    prints |= {path: entry for path, entry in found.items() if isinstance(entry, dict)}
    settings = {
        path.removeprefix("."): entry
        for path, entry in found.items()
        if isinstance(entry, str)
    }
    return {
        "settings": settings,
        "arrays": prints,
        "code": _code(),
    }


def program_of(simulator: Simulator, state: SimulationState, delta: Tree) -> str | None:
    """Digest of a round as JAX has traced it.

    Where whole rounds run on the device, the trace is the one that the run will use;
    else it is one more.

    Args:
      simulator: with a layout.
      state: of any round.
      delta: the tree that training starts from.

    Returns:
      The digest; None under `pmap`, whose rounds are several programs.
    """
    engine, programs = simulator.engine, simulator.programs
    if engine.parallel == "pmap":
        return None
    carry, data = state.carry, simulator.data
    if simulator.spills or data is None:
        first = trees.shapes(delta)

        def begin(tree: Tree) -> Any:
            return first_state(
                engine,
                simulator.sampler,
                simulator.shapes,
                delta=tree,
                key=simulator.key,
                spills=False,
            )

        carry = jax.eval_shape(begin, first)
        data = trees.shapes(shapes_of(simulator.population))
    first_round = jnp.int32(1)
    arguments = (carry, simulator.backbone, data, first_round, simulator.key)
    traced = programs.fused.trace(*arguments).jaxpr
    # Functions that are parameters of an operation are printed with their addresses.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr))
    prints = [array_print(jnp.asarray(constant)) for constant in traced.consts]
    lines = "\n".join([text, *(one["sha256"] for one in prints)])
    return hashlib.sha256(lines.encode()).hexdigest()


def compare(before: dict[str, Any], now: dict[str, Any]) -> Comparison:
    """How two identities differ.

    Weights that are computed anew on another machine may differ by rounding, which is a
    warning; data may not. Programs are compared where both identities have one, made by
    the same code.

    Args:
      before: what lies in identity.json.
      now: `identity_of` the run that is to go on, with its program.

    Returns:
      Differences that make it another run, and those that do not.
    """
    refused, warnings = _of_settings(before["settings"], now["settings"]), []
    all_before, all_now = before["arrays"], now["arrays"]
    for name in sorted(all_before.keys() | all_now.keys()):
        old, new = all_before.get(name), all_now.get(name)
        if old is None or new is None:
            refused.append(f"{name}: {'new' if old is None else 'gone'}")
        elif old["type"] != new["type"]:
            refused.append(f"{name}: {old['type']} → {new['type']}")
        elif old["sha256"] == new["sha256"]:
            continue
        elif not _is_data(name) and same_but_for_rounding(old, new):
            warnings.append(
                f"{name} is not the same to the bit; the difference is of the size of rounding"
            )
        else:
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


def _prints_of(population: DealtPopulation) -> dict[str, Any]:
    """As `array_print` has them, of the examples of all hosts."""
    shapes = shapes_of(population).arrays
    return {
        f"data.{name}": {
            "type": f"{shape.dtype}{list(shape.shape)}",
            "sha256": population.digests[name],
        }
        for name, shape in shapes.items()
    }


def _is_data(name: str) -> bool:
    """Whether the array is read and not computed, so that rounding explains nothing."""
    return name.startswith("data.")


def shown(differences: list[str]) -> str:
    """The first few differences in one line.

    Args:
      differences: of a `Comparison`.

    Returns:
      Six of them, and how many more there are.
    """
    more = len(differences) - SHOWN
    return "; ".join(differences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _of_settings(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Changed settings, each once: all functions of a channel close over its number."""
    changes: dict[tuple, str] = {}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name, "absent"), now.get(name, "absent")
        if old != new:
            old, new = _cut(old), _cut(new)
            key = (name.rpartition(".")[2], old, new)
            changes.setdefault(key, f"{name}: {old} → {new}")
    # Numbers say more than functions that came or went with them.
    return sorted(changes.values(), key=lambda text: "absent" in text)


def _cut(text: str) -> str:
    return text if len(text) < 100 else text[:97] + "..."


def _seed(key: jax.Array) -> str:
    """The seed of a default key if it has 32 bits; else all words of the key."""
    words = [int(word) for word in jax.random.key_data(key)]
    has_seed = len(words) == 2 and words[0] == 0
    return str(words[1] if has_seed else words)


def _code() -> dict[str, str]:
    return {
        "fedjax_fm": importlib.metadata.version("fedjax-fm"),
        "commit": commit(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
    }
