"""A virtual clock: how long rounds would take on real devices.

profile = systems.log_normal_profile(1000, seed=0)
seconds = systems.client_seconds(profile, n_steps, bytes_down, bytes_up)
ends = systems.synchronous_seconds(sampler, seed, rounds, seconds)
"""

from fedjax_fm.systems.clock import Schedule, asynchronous, synchronous_seconds
from fedjax_fm.systems.profile import Profile, client_seconds, log_normal_profile

__all__ = [
    "Profile",
    "Schedule",
    "asynchronous",
    "client_seconds",
    "log_normal_profile",
    "synchronous_seconds",
]
