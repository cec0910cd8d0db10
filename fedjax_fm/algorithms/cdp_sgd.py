"""CDP-SGD: compressed gradients that clients make private, the baseline of SoteriaFL.

Li, Zhao, Li, Chi, 2022, arXiv 2206.09888, algorithm 1:

    client:  sends C(g_k + N(0, (z G / m)^2)),  g_k of m clipped gradients
    server:  x <- x - eta mean_k of what arrived
"""

from fedjax_fm.algorithms.soteriafl import soteriafl
from fedjax_fm.privacy.examples import LocalAccounting
from fedjax_fm.types import Algorithm, Channel, Task


def cdp_sgd(
    task: Task,
    learning_rate: float,
    channel: Channel,
    *,
    clip_norm: float,
    noise_multiplier: float,
    accounting: LocalAccounting | None = None,
    batch_size: int,
) -> Algorithm:
    """CDP-SGD: private gradients compressed as they are, without shifts.

    `soteriafl` with shift_rate=0; what is compressed does not go to zero.

    Args:
      task: the loss, without `weight`.
      learning_rate: eta, above 0.
      channel: C, unbiased.
      clip_norm: G, of each example's gradient.
      noise_multiplier: z, in units of G / m.
      accounting: what z is accounted for.
      batch_size: examples a round.

    Returns:
      As `soteriafl`.

    Raises:
      TypeError, ValueError: as `soteriafl`.

    References:
      Li et al. 2022, arXiv 2206.09888, algorithm 1.

    Example:
      >>> import fedjax_fm as ffm
      >>> task = Task(lambda w, backbone, batch, key: ((w - batch["x"]) ** 2, {}))
      >>> how = {"clip_norm": 1.0, "noise_multiplier": 4.0, "batch_size": 5}
      >>> method = cdp_sgd(task, 0.1, ffm.channels.random_k(0.1), **how)
      >>> method.privacy.mechanism
      'noise at the client is added, but nothing is accounted'
    """
    return soteriafl(
        task,
        learning_rate,
        channel,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        shift_rate=0.0,
        accounting=accounting,
        batch_size=batch_size,
    )
