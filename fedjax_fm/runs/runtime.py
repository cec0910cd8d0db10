"""What a run sets in JAX before it starts: kept programs, a trace."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from fedjax_fm.runs.errors import UsageError

KEPT = "~/.cache/fedjax_fm/programs"
LEAST_SECONDS = 1.0  # of compiling, for a program to be kept


def keep_programs() -> Path | None:
    """Keeps compiled programs from run to run on accelerators, which compile for minutes.

    On CPUs they depend on the machine's own instructions, and nothing is changed; nor is
    it where `JAX_COMPILATION_CACHE_DIR` says where they go.

    Returns:
      Where they are kept, None if nothing was changed.
    """
    is_said = "JAX_COMPILATION_CACHE_DIR" in os.environ
    if is_said or jax.default_backend() == "cpu":
        return None
    folder = Path(KEPT).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


@contextlib.contextmanager
def traced(folder: Path | None) -> Iterator[None]:
    """JAX's profiler around a run, for TensorBoard or Perfetto.

    The stages of a round bear the names deal, broadcast, client, encode, decode, reduce
    and server, its loops blocks, steps, layers and chunks.

    Args:
      folder: where the trace is written; None: there is none.

    Raises:
      UsageError: a file is in the place of the folder.
    """
    if folder is None:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--trace takes a folder, and {folder} is a file")
    with jax.profiler.trace(str(folder)):
        yield
