"""Simulation states on disk, written by Orbax.

A checkpoint is complete or absent, the last two are kept, and each holds a digest of
its arrays.
"""

import contextlib
import functools
import hashlib
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
from fedjax_fm.runs.errors import CheckpointError, DamagedCheckpoint, OtherRun
from fedjax_fm.runs.folder import cannot_write
from fedjax_fm.runs.processes import is_first

# A leaf's path begins with a bracket or a dot, so no leaf has this name.
DIGEST = "sha256"


class Checkpoints:
    """Saves and restores whole states by round.

    Leaves are stored under their paths, because Orbax restores named tuples only with a
    target. Orbax refuses arrays of size zero: they are left out, and taken from the
    target. Orbax does not detect a changed byte of an array, so every checkpoint holds
    a digest of its arrays.

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
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise CheckpointError(cannot_write(self._folder, error)) from error

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
        arrays = _by_path(state)
        arrays[DIGEST] = _digest(arrays)
        try:
            with _without_noise():
                self._manager.save(round_index, args=ocp.args.StandardSave(arrays))  # type: ignore[call-arg]
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
        """
        try:
            _ignore_late_reads()
            as_written = ocp.args.StandardRestore()  # type: ignore[call-arg]
            with _without_noise():
                found = dict(self._manager.restore(round_index, args=as_written))
        except Exception as error:
            in_one_line = " ".join(str(error).split())
            why = in_one_line.partition(" [tensorstore_spec=")[0]
            raise DamagedCheckpoint(
                f"the checkpoint of round {round_index} cannot be read: {why[:300]}"
            ) from error
        written = found.pop(DIGEST, None)
        if written is None or not np.array_equal(written, _digest(found)):
            raise DamagedCheckpoint(
                f"the checkpoint of round {round_index} is not what was written: its digest differs"
            )
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

    def restore_newest(self, target: Any) -> tuple[Any | None, list[str]]:
        """Reads the newest state that is undamaged.

        A damaged checkpoint is moved to damaged-ROUND beside the folder, so that its
        round can be saved again.

        Args:
          target: as for `restore`.

        Returns:
          (state, a sentence for each damaged checkpoint that is newer); (None, []) if
          nothing was saved.

        Raises:
          DamagedCheckpoint: there are checkpoints, but none is whole; none is moved then.
          OtherRun: as `restore`.
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
                os.replace(place, self._folder.parent / f"damaged-{round_index}")
        hosts.meet("damaged checkpoints were moved")
        self._manager.reload()

    def close(self) -> None:
        """Waits for writes to end, and stops Orbax's threads."""
        self._manager.close()


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


def _by_path(state: Any) -> dict[str, np.ndarray]:
    """{path: array} of all leaves that are not empty; keys as their data."""
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if array.size:
            arrays[jax.tree_util.keystr(path)] = np.asarray(array)
    return arrays


def _digest(arrays: dict[str, Any]) -> np.ndarray:
    """u8[32] of names, dtypes, shapes and bytes."""
    hashed = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        array = np.ascontiguousarray(value)
        head = f"{name} {array.dtype} {np.shape(value)}"
        hashed.update(head.encode())
        as_bytes = array.reshape(-1).view(np.uint8)
        hashed.update(as_bytes.data)
    return np.frombuffer(hashed.digest(), np.uint8)
