"""Simulation states on disk, written by Orbax.

A checkpoint is complete or absent, the last two are kept, and each holds a digest of
its arrays.
"""

import contextlib
import functools
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedjax_fm import trees
from fedjax_fm.engine import hosts
from fedjax_fm.runs import digests, formats
from fedjax_fm.runs.errors import CheckpointError, DamagedCheckpoint, OtherRun
from fedjax_fm.runs.folder import cannot_write
from fedjax_fm.runs.processes import is_first

# A leaf's path begins with a bracket or a dot, so no leaf has these names.
DIGEST = "sha256"
ROWS = "sha256 of rows "  # and the path of a leaf that was written in parts


class Checkpoints:
    """Saves and restores whole states by round.

    Leaves are stored under their paths, because Orbax restores named tuples only with a
    target. Orbax refuses arrays of size zero: they are left out, and taken from the
    target. Orbax does not detect a changed byte of an array, so every checkpoint holds
    a digest of its arrays. Of several processes the first writes, but for clients'
    states whose rows lie on several hosts: of those each writes its own, and a checkpoint
    may be read by another number of processes.

    Args:
      folder: of all checkpoints, one folder a round; made if it is not there.
      keep: how many of the newest rounds are kept.

    Raises:
      CheckpointError: the folder cannot be made.

    Example:
      >>> import tempfile
      >>> states = Checkpoints(Path(tempfile.mkdtemp()) / "checkpoint")
      >>> states.save(3, {"w": jnp.arange(3.0)})
      >>> states.latest
      3
      >>> states.restore(3, {"w": jnp.zeros(3)})["w"].tolist()
      [0.0, 1.0, 2.0]
      >>> states.close()
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False
        )
        try:
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=options,
                item_handlers=ocp.StandardCheckpointHandler(),  # reads shapes, too
            )
        except OSError as error:
            raise CheckpointError(cannot_write(self._folder, error)) from error
        except (ValueError, TypeError, KeyError) as error:
            # Orbax reads what each checkpoint says of itself before any is asked for.
            rounds = sorted(
                int(x.name) for x in self._folder.iterdir() if x.name.isdigit()
            )
            raise DamagedCheckpoint(
                f"a checkpoint in {self._folder}, of the rounds {rounds}, cannot be read "
                f"({error}); move the damaged one away, and the run goes on from another"
            ) from error

    @property
    def latest(self) -> int | None:
        """The newest round that was saved in full."""
        return self._manager.latest_step()

    def save(self, round_index: int, state: Any) -> None:
        """Writes `state`; does nothing if that round is there already.

        Args:
          round_index: the round after which the state is saved.
          state: a pytree of arrays and keys.

        Raises:
          CheckpointError: it cannot be written. What was written of it is removed; the
            checkpoints before stay as they were.
        """
        if round_index == self.latest:
            return
        arrays = _with_digests(_by_path(state))
        how = ocp.args.StandardSave(arrays)  # type: ignore[call-arg]
        mark = formats.stamp(formats.CHECKPOINT)
        try:
            with _without_noise():
                self._manager.save(round_index, args=how, custom_metadata=mark)
        # Orbax passes on what its threads met, as a ValueError.
        except (OSError, ValueError, RuntimeError) as error:
            for half in self._folder.glob(f"{round_index}.*"):
                shutil.rmtree(half, ignore_errors=True)
            if self.latest is None:
                safe = "no round was saved before"
            else:
                safe = f"the rounds up to {self.latest} are safe there"
            place = self._folder / str(round_index)
            raise CheckpointError(cannot_write(place, error, safe)) from error

    def restore(self, round_index: int, target: Any) -> Any:
        """Reads the state of one round.

        Args:
          round_index: a round that was saved.
          target: a state of the same structure, shapes and dtypes. Its numpy arrays are
            restored as writable numpy arrays.

        Returns:
          The state, in the structure of `target`.

        Raises:
          DamagedCheckpoint: the files are missing, cut short or changed.
          OtherRun: they belong to another configuration; names the leaf.
          CheckpointError: a newer release wrote them.
        """
        found = self._read(round_index, _by_path(target))
        if problem := trees.difference(_by_path(target), found):
            raise OtherRun(
                f"the checkpoint of round {round_index} is of another run: {problem}"
            )
        leaves, structure = jax.tree.flatten_with_path(target)

        def restored(path: tuple, leaf: Any) -> Any:
            value = found.get(jax.tree_util.keystr(path), leaf)
            if _is_key(leaf):
                kind = jax.random.key_impl(leaf)
                return jax.random.wrap_key_data(value, impl=kind)
            if isinstance(leaf, np.ndarray):
                return np.array(value)  # a spilled store, which is written to
            return value

        return structure.unflatten([restored(path, leaf) for path, leaf in leaves])

    def _read(self, round_index: int, target: dict[str, Any]) -> dict[str, Any]:
        """The arrays of a round by path, in parts where those of the target are."""
        version = self._version(round_index)
        try:
            _ignore_late_reads()
            with _without_noise():
                written = dict(self._manager.item_metadata(round_index).tree)
                places = {
                    name: _place(target.get(name), written[name]) for name in written
                }
                how = ocp.args.StandardRestore(places)  # type: ignore[call-arg]
                found = dict(self._manager.restore(round_index, args=how))
        except Exception as error:
            why = _why(error)
            raise DamagedCheckpoint(
                f"the checkpoint of round {round_index} cannot be read: {why[:300]}"
            ) from error
        as_written = {name: x for name, x in found.items() if _is_digest(name)}
        arrays = {name: x for name, x in found.items() if not _is_digest(name)}
        in_parts = [name for name in arrays if ROWS + name in as_written]
        again = _digests(arrays, in_parts)
        if not _are_equal(as_written, again):
            raise DamagedCheckpoint(
                f"the checkpoint of round {round_index} is not what was written: its digest differs"
            )
        return formats.migrated(
            arrays, version, formats.CHECKPOINTS, formats.CHECKPOINT
        )

    def _version(self, round_index: int) -> int:
        """The version of a round's format, 0 if it has none; refuses a newer one."""
        what = f"the checkpoint of round {round_index} in {self._folder}"
        try:
            found = self._manager.metadata(round_index).custom_metadata or {}
        except Exception as error:
            raise DamagedCheckpoint(f"{what} cannot be read: {_why(error)}") from error
        version, by = found.get("format", 0), str(found.get("fedjax_fm", ""))
        return formats.checked(
            version, formats.CHECKPOINT, what, error=CheckpointError, by=by
        )

    def restore_newest(self, target: Any) -> tuple[Any | None, list[str]]:
        """Reads the newest state that is undamaged.

        A damaged checkpoint is moved to damaged-ROUND beside the folder, so that its
        round can be saved again; if that is there already, to damaged-ROUND-2 and so on.

        Args:
          target: as for `restore`.

        Returns:
          (state, a sentence for each damaged checkpoint that is newer); (None, []) if
          nothing was saved.

        Raises:
          DamagedCheckpoint: there are checkpoints, but none is whole; none is moved then.
          OtherRun: as `restore`.
          CheckpointError: a newer release wrote one.
        """
        problems: dict[int, str] = {}
        for round_index in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(round_index, target)
            except DamagedCheckpoint as error:
                problems[round_index] = str(error)
                continue
            self._put_aside(list(problems))
            return state, list(problems.values())
        if problems:
            raise DamagedCheckpoint(
                f"no checkpoint in {self._folder} is whole: {'; '.join(problems.values())}"
            )
        return None, []

    def _put_aside(self, damaged: list[int]) -> None:
        """Moves damaged checkpoints out of the way; the first of several processes does."""
        if not damaged:
            return
        if is_first():
            for round_index in damaged:
                place = self._folder / str(round_index)
                aside = self._folder.parent / f"damaged-{round_index}"
                os.replace(place, _unused(aside))
        hosts.meet("damaged checkpoints were moved")
        self._manager.reload()

    def close(self) -> None:
        """Waits for writes to end, and stops Orbax's threads."""
        self._manager.close()


def _why(error: Exception) -> str:
    """What a library says of files that it cannot read, in one line."""
    in_one_line = " ".join(str(error).split())
    told = in_one_line.partition(" [tensorstore_spec=")[0]
    if isinstance(error, (KeyError, AttributeError, TypeError)):
        return f"its metadata are missing or changed ({type(error).__name__}: {told})"
    return told


def _unused(place: Path) -> Path:
    """The path, or the first of those with -2, -3, … at its end that is not there."""
    found, number = place, 1
    while os.path.lexists(found):
        number += 1
        found = place.with_name(f"{place.name}-{number}")
    return found


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Silences the log of Orbax, whose threads log an error that is raised as well."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _ignore_late_reads() -> None:
    """Keeps Python from printing errors of reads that end after another one has failed.

    Nobody waits for them any more. If their event loop is closed by then, TensorStore's
    threads report that; if not, asyncio logs the error of the read once its future is
    collected. Both happen at any later time. All other errors are printed as before.
    """
    logging.getLogger("asyncio").addFilter(_is_no_late_read)
    print_unraisable, print_uncaught = sys.unraisablehook, sys.excepthook

    def unraisable(event: Any) -> None:
        if not _is_late_read(event.exc_value, event.exc_traceback):
            print_unraisable(event)

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not _is_late_read(error, trace):
            print_uncaught(kind, error, trace)

    sys.unraisablehook, sys.excepthook = unraisable, uncaught


def _is_no_late_read(record: logging.LogRecord) -> bool:
    """Whether a record of asyncio's log is about anything else than such a read."""
    error = record.exc_info[1] if record.exc_info else None
    unasked = "exception was never retrieved" in record.getMessage()
    return not (unasked and "OCDBT database" in str(error))  # of a checkpoint


def _is_late_read(error: BaseException | None, trace: TracebackType | None) -> bool:
    """Whether a thread outside of Python has called a closed event loop."""
    closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if not closed or trace is None:
        return False
    return trace.tb_frame.f_code.co_name == "call_soon_threadsafe"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _by_path(state: Any) -> dict[str, Any]:
    """{path: array} of all leaves that are not empty; keys as their data.

    Arrays of numpy, but for those that no process has all of.
    """
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if array.size:
            whole = array if hosts.is_in_parts(array) else np.asarray(array)
            arrays[jax.tree_util.keystr(path)] = whole
    return arrays


def _with_digests(arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays and their digests."""
    in_parts = [name for name, array in arrays.items() if hosts.is_in_parts(array)]
    return arrays | _digests(arrays, in_parts)


def _digests(arrays: dict[str, Any], by_rows: list[str]) -> dict[str, np.ndarray]:
    """{name: u8[32]}: of each of some arrays by rows, and one of all others together."""
    found = {ROWS + name: digests.of_rows(arrays[name]) for name in by_rows}
    rest = {name: array for name, array in arrays.items() if name not in by_rows}
    return found | {DIGEST: digests.of_arrays(rest)}


def _is_digest(name: str) -> bool:
    return name == DIGEST or name.startswith(ROWS)


def _are_equal(some: dict[str, Any], others: dict[str, Any]) -> bool:
    same_names = some.keys() == others.keys()
    return same_names and all(np.array_equal(some[name], others[name]) for name in some)


def _place(leaf: Any, written: Any) -> Any:
    """Where what was written goes: to the devices of the target's leaf, or to numpy."""
    if leaf is not None and hosts.is_in_parts(leaf):
        place = leaf.sharding
        return jax.ShapeDtypeStruct(written.shape, written.dtype, sharding=place)
    return np.empty(written.shape, written.dtype)
