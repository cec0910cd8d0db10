"""How fast clients' machines are."""

from typing import NamedTuple

import numpy as np


class Profile(NamedTuple):
    """One entry a client."""

    seconds_per_step: np.ndarray  # f64[N], of one local step
    down: np.ndarray  # f64[N], bytes a second
    up: np.ndarray  # f64[N]
    latency: np.ndarray  # f64[N], seconds for each direction
    online: np.ndarray | None = None  # bool[N, periods]: in which of the day's periods it may start; None for always
    period: float = 3600.0  # seconds

    def checked(self) -> "Profile":
        """Self, or ValueError naming the field that makes no sense."""
        n = len(self.seconds_per_step)
        for name in ("seconds_per_step", "down", "up", "latency"):
            value = np.asarray(getattr(self, name))
            low_ok = (value >= 0).all() if name in ("seconds_per_step", "latency") else (value > 0).all()
            if value.shape != (n,) or not np.isfinite(value).all() or not low_ok:
                raise ValueError(f"expected {name} as {n} finite numbers, positive ones for bandwidths, got {value!r}")
        if self.online is not None and (
            self.online.ndim != 2 or len(self.online) != n or not self.online.any(axis=1).all()
        ):
            raise ValueError(
                f"expected online as bool[{n}, periods] with a period for every client, got {self.online.shape}"
            )
        if not self.period > 0:
            raise ValueError(f"expected period > 0, got {self.period}")
        return self

    def may_start(self, client: int, second: float) -> float:
        """The first second, from `second` on, in which the client is online."""
        if self.online is None:
            return second
        periods = self.online.shape[1]
        now = int(second // self.period)
        for wait in range(periods + 1):
            if self.online[client, (now + wait) % periods]:
                return second if wait == 0 else (now + wait) * self.period
        raise AssertionError("checked() lets nobody without a period through")


def client_seconds(profile: Profile, n_steps: np.ndarray, bytes_down: int, bytes_up: int) -> np.ndarray:
    """f64[N]: T_down + T_comp + T_up of every client, transfers being bytes / bandwidth + latency."""
    transfer = bytes_down / profile.down + bytes_up / profile.up + 2 * profile.latency
    return transfer + np.asarray(n_steps) * profile.seconds_per_step


def log_normal_profile(
    n_clients: int,
    seed: int,
    *,
    seconds_per_step: float = 0.1,
    bandwidth: float = 1e6,
    latency: float = 0.05,
    spread: float = 0.5,
) -> Profile:
    """Medians as given, log-normal between clients with standard deviation `spread` of the logarithm; uploads at a
    quarter of the downloads' bandwidth. Synthetic: no measured devices."""
    rng = np.random.default_rng(seed)
    draw = lambda median: median * np.exp(spread * rng.standard_normal(n_clients))
    down = draw(bandwidth)
    return Profile(draw(seconds_per_step), down, down / 4, np.full(n_clients, latency)).checked()
