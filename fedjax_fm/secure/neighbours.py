"""Who shares masks with whom: all pairs, or a few neighbours on a random circle."""

import numpy as np

from fedjax_fm import checks


def neighbours(n_clients: int, degree: int | None, seed: int = 0) -> list[np.ndarray]:
    """The neighbours of each client.

    With a degree k, clients stand on a circle in random order, and each has the k / 2
    next on either side (a Harary graph). All pairs cost m^2 masks, and this m k, with k
    of the order of log m.

    Args:
      n_clients: m, at least 2.
      degree: k, even, from 2 to m - 1; None: all others.
      seed: of the order.

    Returns:
      i64[k] of each client, ascending; symmetric.

    Raises:
      TypeError, ValueError: sizes out of bounds, or an odd degree.

    References:
      Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic
      Overhead", ePrint 2020/704, algorithm 2.

    Example:
      >>> [len(one) for one in neighbours(7, degree=4)]
      [4, 4, 4, 4, 4, 4, 4]
    """
    checks.whole("n_clients", n_clients, least=2)
    everyone = np.arange(n_clients)
    if degree is None:
        return [np.delete(everyone, k) for k in everyone]
    checks.whole("degree", degree, least=2, most=n_clients - 1)
    if degree % 2:
        raise ValueError(f"expected an even degree, got degree={degree}")
    circle = np.random.default_rng([seed, 0x5A]).permutation(n_clients)
    near = np.arange(1, degree // 2 + 1)
    steps = np.concatenate([near, -near])
    found = {
        int(client): np.sort(circle[(place + steps) % n_clients])
        for place, client in enumerate(circle)
    }
    return [found[k] for k in range(n_clients)]
