"""What rounds would cost on real devices: a virtual clock."""

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
