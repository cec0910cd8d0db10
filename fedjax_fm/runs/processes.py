"""Several processes with one run folder: the first writes, and all know whether it could."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar

from fedjax_fm.runs.errors import RunFolderError, UsageError

SECONDS = 60  # to find the others
SILENCE = 30  # seconds after which a process that says nothing is taken for dead
# What launchers leave in the environment of a process that is one of several; JAX reads
# addresses and numbers from there by itself.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
NAMES = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
# Whether process 0 does something that the others wait for.
_works_alone: ContextVar[bool] = ContextVar("_works_alone", default=False)
HOSTS = "TPU_WORKER_HOSTNAMES"  # of a slice of a TPU, with commas between them


def are_several() -> bool:
    """Whether this process was joined to others.

    JAX is not imported for this: without it there is one process.
    """
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process writes files and shows progress: process 0, or the only one."""
    return not are_several() or sys.modules["jax"].process_index() == 0


def first_does(work: Callable[[], object]) -> None:
    """Process 0 does something that the others wait for.

    Args:
      work: raises where it cannot be done. What it does by this function again, it does
        at once.

    Raises:
      RunFolderError: in the other processes, if it raised in process 0.
    """
    if not are_several() or _works_alone.get():
        work()
        return
    error: Exception | None = None
    if is_first():
        token = _works_alone.set(True)
        try:
            work()
        except Exception as raised:
            error = raised
        finally:
            _works_alone.reset(token)
    failed = as_first_sees(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RunFolderError("process 0 could not write; its own message says why")


def as_first_sees(value: bool) -> bool:
    """What process 0 sees, in all processes: of files that it may write a moment later.

    Args:
      value: what this process sees.
    """
    if not are_several() or _works_alone.get():
        return value
    from fedjax_fm.engine import hosts

    return bool(hosts.first_says(int(value)))


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process beside others: SLURM, Open MPI, a TPU.

    Args:
      environment: of the process.

    Example:
      >>> is_one_of_several({"SLURM_NTASKS": "4"}), is_one_of_several({})
      (True, False)
    """
    if any(int(environment.get(name, 1)) > 1 for name in COUNTS):
        return True
    has_hosts = "," in environment.get(HOSTS, "")
    return has_hosts or any(name in environment for name in NAMES)


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins this process to the others, if there are any; before JAX computes anything.

    Args:
      coordinator: HOST:PORT of process 0, where no launcher says it.
      processes: how many there are.
      process: the number of this one.

    Raises:
      UsageError: some of the three, but not all; nobody answers.
    """
    given = (coordinator, processes, process)
    if None in given and set(given) != {None}:
        raise UsageError(
            "give --coordinator HOST:PORT, --processes and --process together, got "
            f"{coordinator}, {processes}, {process}"
        )
    if coordinator is None and not is_one_of_several():
        return
    if coordinator is not None and process != 0:
        _wait_for(coordinator)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        initialization_timeout=SECONDS,
        heartbeat_timeout_seconds=SILENCE,
    )


def _wait_for(coordinator: str) -> None:
    """Waits until somebody listens there; JAX would end the process with a crash."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"expected --coordinator HOST:PORT, got {coordinator!r}")
    end = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UsageError(
                    f"nobody answers at {coordinator} after {SECONDS} s ({error}): is "
                    "process 0 running, and can its port be reached?"
                ) from error
        time.sleep(0.2)
