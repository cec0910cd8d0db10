"""How fast clients' machines are."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks


class Profile(NamedTuple):
    """One entry a client."""

    seconds_per_step: np.ndarray  # f64[N], of one local step
    down: np.ndarray  # f64[N], bytes a second
    up: np.ndarray  # f64[N]
    latency: np.ndarray  # f64[N], seconds for each direction
    online: np.ndarray | None = (
        None  # bool[N, periods]: in which of the day's periods it may start; None for always
    )
    period: float = 3600.0  # seconds

    def checked(self) -> "Profile":
        """Self, or an error naming the field that makes no sense."""
        n = len(self.seconds_per_step)
        for name in ("seconds_per_step", "latency"):
            numbers_of_clients(name, getattr(self, name), n)
        for name in ("down", "up"):
            numbers_of_clients(name, getattr(self, name), n, positive=True)
        if self.online is not None:
            online = np.asarray(self.online)
            whole = online.dtype == bool and online.ndim == 2 and len(online) == n
            if not whole or not online.any(axis=1).all():
                raise ValueError(
                    f"expected online as bool[{n}, periods] with a period for every client, "
                    f"got {online.dtype}{list(online.shape)}"
                )
        checks.real("period", self.period, above=0)
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


def numbers_of_clients(
    name: str, values: Any, n: int | None = None, *, positive: bool = False
) -> np.ndarray:
    """f64[n] of `values`, one finite number >= 0 (> 0 with `positive`) for each client.

    Raises:
      ValueError: another shape, no numbers, NaN, infinity, below the bound: named with `name`.
    """
    array = np.asarray(values)
    is_real = np.issubdtype(array.dtype, np.integer) or np.issubdtype(
        array.dtype, np.floating
    )
    right_shape = array.ndim == 1 and (n is None or len(array) == n)
    if (
        not is_real
        or not right_shape
        or not np.isfinite(array).all()
        or (array < 0).any()
        or (positive and 0 in array)
    ):
        many = (
            "one finite number for each client" if n is None else f"{n} finite numbers"
        )
        raise ValueError(
            f"expected {name} as {many}, {'> 0' if positive else '>= 0'}, got {name}={values!r}"
        )
    return array.astype(np.float64)


def client_seconds(
    profile: Profile, n_steps: np.ndarray, bytes_down: int, bytes_up: int
) -> np.ndarray:
    """f64[N]: T_down + T_comp + T_up of every client, transfers being bytes / bandwidth
    + latency.
    """
    checks.real("bytes_down", bytes_down, least=0)
    checks.real("bytes_up", bytes_up, least=0)
    n_steps = numbers_of_clients("n_steps", n_steps, len(profile.seconds_per_step))
    transfer = bytes_down / profile.down + bytes_up / profile.up + 2 * profile.latency
    return transfer + n_steps * profile.seconds_per_step


def log_normal_profile(
    n_clients: int,
    seed: int,
    *,
    seconds_per_step: float = 0.1,
    bandwidth: float = 1e6,
    latency: float = 0.05,
    spread: float = 0.5,
) -> Profile:
    """Medians as given, log-normal between clients with standard deviation `spread` of
    the logarithm; uploads at a quarter of the downloads' bandwidth. Synthetic: no
    measured devices.
    """
    checks.whole("n_clients", n_clients, least=1)
    checks.whole("seed", seed, least=0)
    checks.real("seconds_per_step", seconds_per_step, least=0)
    checks.real("bandwidth", bandwidth, above=0)
    checks.real("latency", latency, least=0)
    checks.real("spread", spread, least=0)
    rng = np.random.default_rng(seed)

    def draw(median):
        return median * np.exp(spread * rng.standard_normal(n_clients))

    down = draw(bandwidth)
    return Profile(
        seconds_per_step=draw(seconds_per_step),
        down=down,
        up=down / 4,
        latency=np.full(n_clients, latency),
    ).checked()
