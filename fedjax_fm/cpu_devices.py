"""How many CPU devices JAX shall have: one for each core, said before JAX starts a backend.

Imports no JAX.
"""

import os
import sys

VARIABLE = "JAX_NUM_CPU_DEVICES"
_said: list[str] = []  # what we put into the environment, until JAX has read it


def use_cpu_cores_as_devices() -> None:
    """One CPU device per core that this process may use.

    Does nothing if a backend is already up or if the user has said how many devices
    there shall be: the configuration option would silently override XLA_FLAGS. JAX need
    not be imported for this: it reads the number from its environment variable later,
    which `forget_the_variable` then takes back, so that no child process inherits it.
    """
    if (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or VARIABLE in os.environ
    ):
        return
    affinity = getattr(os, "sched_getaffinity", None)
    n_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if "jax" not in sys.modules:
        os.environ[VARIABLE] = str(n_cores)
        _said.append(str(n_cores))
        return
    import jax
    from jax._src import (
        xla_bridge,
    )  # no public function tells this without starting a backend

    if not xla_bridge.backends_are_initialized():
        jax.config.update("jax_num_cpu_devices", n_cores)


def forget_the_variable() -> None:
    """Takes back what `use_cpu_cores_as_devices` put into the environment.

    For when JAX is imported.
    """
    if _said and os.environ.get(VARIABLE) == _said.pop():
        del os.environ[VARIABLE]
