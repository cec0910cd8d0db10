"""How many inputs are made: 500 in all, 10,000 with `HYPOTHESIS_PROFILE=nightly`."""

import os

from hypothesis import HealthCheck, settings

N_READERS = 10
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
for name, total in (("default", 500), ("nightly", 10_000)):
    settings.register_profile(
        f"fuzz-{name}",
        max_examples=total // N_READERS,
        deadline=None,
        suppress_health_check=SLOW,
        derandomize=name == "default",
    )
PROFILE = settings.get_profile(
    f"fuzz-{os.environ.get('HYPOTHESIS_PROFILE', 'default')}"
)
