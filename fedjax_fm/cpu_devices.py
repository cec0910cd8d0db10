"""One CPU device of JAX for each core, chosen before JAX starts a backend.

Imports no JAX.
"""

import os
import sys

VARIABLE = "JAX_NUM_CPU_DEVICES"
_said: list[str] = []  # what we put into the environment, until JAX has read it


def use_cpu_cores_as_devices() -> None:
    """Gives JAX one CPU device for each core that this process may use.

    Does nothing if a backend has been started, or if the environment sets a number of
    devices: the configuration option would override XLA_FLAGS without a word. If JAX is
    not imported yet, the number goes into the environment variable that JAX reads when
    it is; `forget_the_variable` removes it afterwards, so that no child process
    inherits it.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags or VARIABLE in os.environ:
        return
    n_cores = _cores()
    if "jax" not in sys.modules:
        os.environ[VARIABLE] = str(n_cores)
        _said.append(str(n_cores))
        return
    import jax

    # No public function tells this without starting a backend.
    from jax._src import xla_bridge

    if not xla_bridge.backends_are_initialized():
        jax.config.update("jax_num_cpu_devices", n_cores)


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity:
        return len(affinity(0))
    return os.cpu_count() or 1


def forget_the_variable() -> None:
    """Removes what `use_cpu_cores_as_devices` put into the environment.

    Called once JAX is imported and has read it.
    """
    if _said and os.environ.get(VARIABLE) == _said.pop():
        del os.environ[VARIABLE]
