"""Counts what XLA compiles."""

import jax


class Compiles:
    """Names of what was compiled inside."""

    def __enter__(self):
        self.names: list[str] = []
        self._on = True
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def _note(self, event, seconds, **more):
        if self._on and event == "/jax/core/compile/backend_compile_duration":
            self.names.append(more.get("fun_name", event))

    def of(self, name: str) -> int:
        """How many of a name there were."""
        return sum(name in one for one in self.names)

    def __exit__(self, *_):
        self._on = False
