"""States on disk, by Orbax: atomic, the last two kept, each with a digest of its own."""

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
from fedjax_fm.runs.errors import CheckpointError, DamagedCheckpoint, OtherRun
from fedjax_fm.runs.folder import cannot_write

DIGEST = (
    "sha256"  # a leaf's path begins with a bracket or a dot, so no leaf is called that
)


class Checkpoints:
    """Saves and restores whole states by round.

    Leaves are stored under their paths: Orbax restores named tuples only with a target
    and refuses arrays of size zero, so those are left out and taken from the target.
    Orbax finds neither a changed byte of an array nor which file is to blame, so every
    checkpoint holds a digest of its arrays.
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

        Raises:
          CheckpointError: the disk took no more; the checkpoints before are as they
            were, half of this one is taken away.
        """
        if round_index == self.latest:
            return
        arrays = _by_path(state)
        arrays[DIGEST] = _digest(arrays)
        try:
            with _without_noise():
                self._manager.save(round_index, args=ocp.args.StandardSave(arrays))  # type: ignore[call-arg]
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # Orbax passes on what its threads met, as a ValueError
            for half in self._folder.glob(f"{round_index}.*"):
                shutil.rmtree(half, ignore_errors=True)
            safe = (
                "no round was saved before"
                if self.latest is None
                else f"the rounds up to {self.latest} are safe there"
            )
            raise CheckpointError(
                cannot_write(self._folder / str(round_index), error, safe)
            ) from error

    def restore(self, round_index: int, target: Any) -> Any:
        """The state of that round, in the structure, shapes and dtypes of `target`.

        Raises:
          DamagedCheckpoint: the files are missing, cut short or changed.
          OtherRun: they belong to another configuration; names the leaf.
        """
        try:
            _ignore_late_reads()
            with _without_noise():
                found = dict(
                    self._manager.restore(round_index, args=ocp.args.StandardRestore())
                )  # type: ignore[call-arg]
        except Exception as error:
            why = " ".join(str(error).split()).partition(" [tensorstore_spec=")[0]
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
                return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
            return (
                np.array(value) if isinstance(leaf, np.ndarray) else value
            )  # spilled stores are written to

        return structure.unflatten([restored(path, leaf) for path, leaf in leaves])

    def restore_newest(self, target: Any) -> tuple[Any | None, list[str]]:
        """(the newest state that is whole, what was found of damaged ones).

        (None, []) if nothing was ever saved.

        A damaged checkpoint is moved to damaged-ROUND beside the folder, so that its
        round can be saved again.

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
            for damaged in problems:
                os.replace(
                    self._folder / str(damaged),
                    self._folder.parent / f"damaged-{damaged}",
                )
            if problems:
                self._manager.reload()
            return state, list(problems.values())
        if problems:
            raise DamagedCheckpoint(
                f"no checkpoint in {self._folder} is whole: {'; '.join(problems.values())}"
            )
        return None, []

    def close(self) -> None:
        """Waits for writes and lets go of the folder."""
        self._manager.close()


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Keeps Orbax from telling an error twice: its threads log it with their whole stacks.

    The error itself is raised.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _ignore_late_reads() -> None:
    """Drops what reads report that are on their way when one before them has failed.

    Their event loop is closed by then.

    TensorStore's threads have these printed by Python, at any time from then on; all
    else passes through.
    """
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


def _is_late_read(error: BaseException | None, trace: TracebackType | None) -> bool:
    """Whether a thread that is none of Python's has called a closed event loop."""
    closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    return (
        closed
        and trace is not None
        and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
    )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _by_path(state: Any) -> dict[str, np.ndarray]:
    arrays = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state
    )
    leaves = jax.tree.leaves_with_path(arrays)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in leaves
        if leaf.size
    }


def _digest(arrays: dict[str, Any]) -> np.ndarray:
    """u8[32] of names, dtypes, shapes and bytes."""
    hashed = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        array = np.ascontiguousarray(value)
        hashed.update(f"{name} {array.dtype} {np.shape(value)}".encode())
        hashed.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(hashed.digest(), np.uint8)
