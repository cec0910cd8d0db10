"""States on disk, by Orbax: atomic, the last two kept."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedjax_fm import trees


class CheckpointError(Exception):
    """A checkpoint that is damaged or of another run."""


class Checkpoints:
    """Saves and restores whole states by round.

    Leaves are stored under their paths: Orbax restores named tuples only with a target and refuses arrays of size
    zero, so those are left out and taken from the target.
    """

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The newest round that was saved in full."""
        return self._manager.latest_step()

    def save(self, round_index: int, state: Any) -> None:
        """Writes `state`; does nothing if that round is there already."""
        if round_index != self.latest:
            self._manager.save(round_index, args=ocp.args.StandardSave(_by_path(state)))  # type: ignore[call-arg]

    def restore(self, round_index: int, target: Any) -> Any:
        """The state of that round, in the structure, shapes and dtypes of `target`.

        Raises:
          CheckpointError: the files are damaged, or belong to another configuration; names the leaf.
        """
        wanted = _by_path(target)
        try:
            found = self._manager.restore(round_index, args=ocp.args.StandardRestore())  # type: ignore[call-arg]
        except Exception as error:
            raise CheckpointError(f"the checkpoint of round {round_index} cannot be read: {error}") from error
        if problem := trees.difference(wanted, found):
            raise CheckpointError(f"the checkpoint of round {round_index} is of another run: {problem}")
        leaves, structure = jax.tree.flatten_with_path(target)

        def restored(path: tuple, leaf: Any) -> Any:
            value = found.get(jax.tree_util.keystr(path), leaf)
            if _is_key(leaf):
                return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
            return np.array(value) if isinstance(leaf, np.ndarray) else value  # spilled stores are written to

        return structure.unflatten([restored(path, leaf) for path, leaf in leaves])

    def close(self) -> None:
        """Waits for writes and lets go of the folder."""
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _by_path(state: Any) -> dict[str, np.ndarray]:
    arrays = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)
    leaves = jax.tree.leaves_with_path(arrays)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves if leaf.size}
