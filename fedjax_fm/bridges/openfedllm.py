"""Runs of OpenFedLLM: who holds which rows, who takes part, and what a run leaves.

OpenFedLLM is a program, no package. This follows its files in rui-ye/OpenFedLLM:
`federated_learning/split_dataset.py` and `config.py` at commit 274be4da,
`federated_learning/fed_global.py`, `utils/process_dataset.py` and `main_sft.py` at
9ee5d047, with `datasets` 2.13 of its `requirements.txt`.

Its prompts are `fedjax_fm.datasets.named.TEMPLATES["openfedllm"]` (`--template alpaca`)
and `TEMPLATES["vicuna"]`; its learning rate over the rounds is
`optax.cosine_decay_schedule(rate, rounds, alpha=1e-6 / rate)`.

References:
  Ye et al. (2024). OpenFedLLM: Training Large Language Models on Decentralized Private
  Data via Federated Learning. arXiv 2402.06954.
"""

import json
import os
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm import checks, peft
from fedjax_fm.peft import Adapted
from fedjax_fm.types import Sampler, Tree

PROCESSED_WITH = 2023  # seed of the shuffle before rows are chosen, fixed in theirs
ABSENT = -1.0  # the loss of a client that does not take part
ARGUMENTS, LOSSES = "args.json", "training_loss.npy"
PARTS = ("script_args", "fed_args")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Run(NamedTuple):
    """What a run of OpenFedLLM leaves in its folder.

    Attributes:
      script_args: its ScriptArguments, {name: value}.
      fed_args: its FedArguments, {name: value}.
      losses: f64[clients, rounds], the mean training loss; NaN of who took no part.
      checkpoints: {round, from 1: folder}.
    """

    script_args: dict[str, Any]
    fed_args: dict[str, Any]
    losses: np.ndarray
    checkpoints: dict[int, Path]


def split(
    n_rows: int,
    n_clients: int,
    *,
    seed: int = 2023,
    dataset_sample: int | None = 20_000,
    contiguous: bool = False,
) -> list[np.ndarray]:
    """The rows that each client gets (`--split_strategy iid`).

    The table is shuffled, cut to `dataset_sample` rows, shuffled again and dealt; the
    same rows in the same order as theirs, for `Population.from_table(table, rows=...)`.

    Args:
      n_rows: of the table after its columns are renamed; MathInstruct loses duplicated
        instructions before.
      n_clients: `--num_clients`.
      seed: `--seed`.
      dataset_sample: `--dataset_sample`; 0 or None keeps all rows.
      contiguous: blocks of neighbours, as `Dataset.shard` deals since datasets 3.0; False
        deals in turn, as the version that they require.

    Returns:
      Row numbers of each client.

    Raises:
      TypeError, ValueError: numbers out of bounds, or fewer rows than clients.

    Example:
      >>> rows = split(7, 2, seed=0)
      >>> [list(map(int, own)) for own in rows]
      [[5, 1, 6, 2], [4, 3, 0]]
    """
    checks.whole("n_clients", n_clients, least=1)
    checks.whole("n_rows", n_rows, least=n_clients)
    checks.whole("seed", seed, least=0)
    order = np.random.default_rng(PROCESSED_WITH).permutation(n_rows)
    if dataset_sample:
        checks.whole("dataset_sample", dataset_sample, least=n_clients)
        order = order[:dataset_sample]
    order = order[np.random.default_rng(seed).permutation(len(order))]
    if contiguous:
        return np.array_split(order, n_clients)
    return [order[k::n_clients] for k in range(n_clients)]


def cohort(round: int, n_clients: int, sample_clients: int) -> list[int]:
    """Who takes part in a round.

    Args:
      round: from 0.
      n_clients: `--num_clients`.
      sample_clients: `--sample_clients`; all take part where there are fewer.

    Returns:
      Client ids, sorted.

    Example:
      >>> [cohort(round, 20, 2) for round in range(3)]
      [[12, 13], [4, 18], [1, 2]]
    """
    checks.whole("round", round, least=0)
    checks.whole("n_clients", n_clients, least=1)
    checks.whole("sample_clients", sample_clients, least=1)
    if n_clients < sample_clients:
        return list(range(n_clients))
    return sorted(random.Random(round).sample(range(n_clients), sample_clients))


def sampler(rounds: int, n_clients: int, sample_clients: int) -> Sampler:
    """Draws the cohorts of OpenFedLLM, round after round.

    Args:
      rounds: how many are known; later ones have nobody.
      n_clients: `--num_clients`.
      sample_clients: `--sample_clients`.

    Returns:
      A sampler without a law: its cohorts are known beforehand.

    Example:
      >>> import jax
      >>> known = sampler(3, 20, 2)
      >>> ids, n_active, state = known.draw(known.init(), jax.random.key(0))
      >>> ids.tolist(), int(n_active)
      ([12, 13], 2)
    """
    checks.whole("rounds", rounds, least=1)
    cohorts = [cohort(t, n_clients, sample_clients) for t in range(rounds)]
    table = np.array(cohorts, np.int32)
    size = table.shape[1]

    def init():
        return jnp.int32(0)

    def draw(state, key):
        ids = jnp.asarray(table)[jnp.minimum(state, rounds - 1)]
        n_active = jnp.where(state < rounds, size, 0)
        return ids, n_active.astype(jnp.int32), state + 1

    return Sampler(init=init, draw=draw, capacity=size)


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Reads a run's folder.

    Args:
      folder: their `output_dir`, with args.json and training_loss.npy.

    Returns:
      The run; adapters stay on disk until `load_checkpoint`.

    Raises:
      FileNotFoundError: one of the files is missing; says what is there.
      ValueError: files that are not theirs.
    """
    folder = Path(folder)
    for name in (ARGUMENTS, LOSSES):
        if not (folder / name).is_file():
            there = (
                sorted(x.name for x in folder.iterdir()) if folder.is_dir() else None
            )
            raise FileNotFoundError(f"{folder} has no {name}; found {there}")
    try:
        arguments = json.loads((folder / ARGUMENTS).read_text(encoding="utf-8"))
        script, federated = (dict(arguments[part]) for part in PARTS)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {ARGUMENTS} with {list(PARTS)}, got {folder / ARGUMENTS}: {error}"
        ) from error
    return Run(
        script_args=script,
        fed_args=federated,
        losses=_losses(folder / LOSSES, federated.get("num_clients")),
        checkpoints=_checkpoints(folder),
    )


def write_run(folder: str | os.PathLike[str], run: Run) -> None:
    """Writes args.json and training_loss.npy as OpenFedLLM does.

    Args:
      folder: of the run.
      run: its arguments and losses; `save_checkpoint` writes adapters.

    Raises:
      ValueError: losses of another number of clients.
    """
    folder = Path(folder)
    _check_losses(run.losses, run.fed_args.get("num_clients"), "losses")
    folder.mkdir(parents=True, exist_ok=True)
    arguments = dict(zip(PARTS, run[:2], strict=True))
    text = json.dumps(arguments, indent=4)
    (folder / ARGUMENTS).write_text(text, encoding="utf-8")
    absent = np.isnan(run.losses)
    np.save(folder / LOSSES, np.where(absent, ABSENT, run.losses))


def save_checkpoint(
    folder: str | os.PathLike[str],
    round: int,
    adapted: Adapted,
    delta: Tree | None = None,
    *,
    base_model_name_or_path: str | None = None,
) -> Path:
    """Writes an adapter where OpenFedLLM and its evaluation look for one.

    Args:
      folder: of the run.
      round: how many rounds are done, from 1.
      adapted: from `peft.apply` or `peft.load_pretrained`.
      delta: for example `state.delta`; default: the values before training.
      base_model_name_or_path: as for `peft.save_pretrained`.

    Returns:
      Its folder, `checkpoint-ROUND`, in PEFT's format.

    Raises:
      ValueError: PEFT's format cannot hold what is trained.
    """
    checks.whole("round", round, least=1)
    path = Path(folder) / f"checkpoint-{round}"
    adapted.save_pretrained(
        path, delta, base_model_name_or_path=base_model_name_or_path
    )
    return path


def load_checkpoint(
    folder: str | os.PathLike[str], model: nnx.Module, round: int | None = None
) -> Adapted:
    """Adapts a model by an adapter of a run.

    Args:
      folder: of the run.
      model: the base model; it is not changed.
      round: which; None for the last that was saved.

    Returns:
      The parts, as of `peft.load_pretrained`.

    Raises:
      FileNotFoundError: no such checkpoint; says which there are.
      AdapterError: it does not fit the model.
    """
    known = _checkpoints(Path(folder))
    if round is None and known:
        round = max(known)
    if round not in known:
        asked = "any checkpoint" if round is None else f"checkpoint-{round}"
        raise FileNotFoundError(
            f"expected {asked} in {folder}, got rounds {list(known) or 'none'}"
        )
    return peft.load_pretrained(known[round], model)


def _checkpoints(folder: Path) -> dict[int, Path]:
    """{round: folder}, in their order."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        if match := CHECKPOINT.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def _losses(path: Path, n_clients: Any) -> np.ndarray:
    """Losses with NaN where there was no training."""
    try:
        losses = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no whole array: {error}") from error
    _check_losses(losses, n_clients, str(path))
    losses = losses.astype(np.float64)
    return np.where(losses == ABSENT, np.nan, losses)


def _check_losses(losses: np.ndarray, n_clients: Any, where: str) -> None:
    """Raises ValueError unless there is a row for each client."""
    shape = np.shape(losses)
    if len(shape) != 2 or shape[0] != n_clients:
        raise ValueError(
            f"expected {where} of shape [num_clients={n_clients}, rounds], got "
            f"{list(shape)}"
        )
