"""How fast clients' machines are, and when they are online."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks


class Profile(NamedTuple):
    """Speeds of all clients' machines, one entry a client.

    Attributes:
      seconds_per_step: f64[N], of one local step.
      down: f64[N], bytes a second towards the client.
      up: f64[N], bytes a second from the client.
      latency: f64[N], seconds for each direction.
      online: bool[N, periods], in which of the day's periods a client may start; None
        for always.
      period: seconds of a period of `online`.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import systems
      >>> profile = systems.Profile(
      ...     seconds_per_step=np.array([0.1, 0.4]),
      ...     down=np.array([1e6, 2e6]),
      ...     up=np.array([1e5, 1e5]),
      ...     latency=np.array([0.05, 0.05]),
      ...     online=np.array([[True, False], [False, True]]),
      ... ).checked()
      >>> profile.may_start(client=1, second=5.0)
      3600.0
    """

    seconds_per_step: np.ndarray
    down: np.ndarray
    up: np.ndarray
    latency: np.ndarray
    online: np.ndarray | None = None
    period: float = 3600.0

    def checked(self) -> "Profile":
        """Self, or an error naming the field that makes no sense.

        Raises:
          ValueError: another shape, numbers out of bounds, a client without a period.
        """
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
                    f"expected online as bool[{n}, periods] with a period for every "
                    f"client, got {online.dtype}{list(online.shape)}"
                )
        checks.real("period", self.period, above=0)
        return self

    def may_start(self, client: int, second: float) -> float:
        """The first second, from `second` on, in which the client is online.

        Args:
          client: its number.
          second: from the start of the run; periods begin with the run.
        """
        if self.online is None:
            return second
        periods = self.online.shape[1]
        now = int(second // self.period)
        for wait in range(periods + 1):
            if self.online[client, (now + wait) % periods]:
                return second if wait == 0 else (now + wait) * self.period
        raise AssertionError("checked() lets no profile without a period through")


def numbers_of_clients(
    name: str, values: Any, n: int | None = None, *, positive: bool = False
) -> np.ndarray:
    """f64[n] of `values`, one finite number >= 0 for each client.

    Args:
      name: of the values, for the message.
      values: numbers [n].
      n: how many there must be; None for any number.
      positive: whether 0 is refused, too.

    Raises:
      ValueError: another shape, no numbers, NaN, infinity, below the bound.
    """
    array = np.asarray(values)
    if not _are_numbers(array, n) or (array < 0).any() or (positive and 0 in array):
        many = (
            "one finite number for each client" if n is None else f"{n} finite numbers"
        )
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"expected {name} as {many}, {bound}, got {name}={values!r}")
    return array.astype(np.float64)


def _are_numbers(array: np.ndarray, n: int | None) -> bool:
    """Whether an array is one row of finite numbers, n of them."""
    if array.ndim != 1 or (n is not None and len(array) != n):
        return False
    kinds = np.integer, np.floating
    if not any(np.issubdtype(array.dtype, kind) for kind in kinds):
        return False
    return bool(np.isfinite(array).all())


def client_seconds(
    profile: Profile, n_steps: np.ndarray, bytes_down: int, bytes_up: int
) -> np.ndarray:
    """Seconds of a round for every client: download, computation and upload.

        T = bytes_down / down + bytes_up / up + 2 latency + n_steps seconds_per_step

    Args:
      profile: speeds of the machines.
      n_steps: [N], local steps of each client.
      bytes_down: billed bytes of a client's download.
      bytes_up: billed bytes of a client's upload.

    Returns:
      f64[N].

    Raises:
      ValueError: a negative number, or another shape of `n_steps`.

    Example:
      >>> import numpy as np
      >>> from fedjax_fm import systems
      >>> profile = systems.Profile(
      ...     seconds_per_step=np.array([0.5]),
      ...     down=np.array([100.0]),
      ...     up=np.array([50.0]),
      ...     latency=np.array([0.0]),
      ... )
      >>> systems.client_seconds(profile, np.array([4]), 100, 100).tolist()
      [5.0]
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
    """A synthetic profile: log-normal speeds around given medians.

        speed_k = median exp(spread g_k),  g_k ~ N(0, 1)

    Uploads have a quarter of the downloads' bandwidth; all clients have one latency.
    These are no measured devices.

    Args:
      n_clients: N.
      seed: of the draws, not negative.
      seconds_per_step: median seconds of a local step.
      bandwidth: median bytes a second towards the client.
      latency: seconds for each direction, of every client.
      spread: standard deviation of the logarithms; 0 makes all clients alike.

    Returns:
      A `Profile` of clients that are always online.

    Raises:
      ValueError: a number out of bounds.

    Example:
      >>> from fedjax_fm import systems
      >>> profile = systems.log_normal_profile(3, seed=0, spread=0.0)
      >>> profile.down.tolist(), profile.up.tolist()
      ([1000000.0, 1000000.0, 1000000.0], [250000.0, 250000.0, 250000.0])
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
