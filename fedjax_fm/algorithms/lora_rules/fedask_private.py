"""FedASK's private clients: B by clipped and noisy gradients, beside A as it came."""

import math
from collections.abc import Callable
from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.algorithms.clipped_gradients import Draw, Estimator, estimated
from fedjax_fm.algorithms.local_noise import LocalNoise, check_no_weight, local_noise
from fedjax_fm.algorithms.losses import masked_loss
from fedjax_fm.privacy.examples import LocalAccounting
from fedjax_fm.types import Batches, ClientData, Task


class PrivateSteps(NamedTuple):
    """DP-SGD's gradient, in the place of the mean loss's.

    Attributes:
      clip_norm: G, of each example's gradient.
      noise: on their mean.
    """

    clip_norm: float
    noise: LocalNoise

    def gradient_of(self, task: Task, data: ClientData) -> Callable:
        """`(delta, backbone, batch, mask, key) -> (gradients, sums)`, for `local.walk`.

        Args:
          task: the loss, without weights of examples.
          data: the client's.
        """
        clipped = Estimator(
            task=task,
            name="sgd",
            clip_norm=self.clip_norm,
            snapshot_rate=1.0,
            table_rows=None,
            index=None,
        )

        def gradient(delta, backbone, batch, mask, key):
            draw = Draw(backbone=backbone, batch=batch, mask=mask, data=data, key=key)
            mean, _ = estimated(clipped, delta, (), draw)
            seen = {"batch": batch, "mask": mask, "key": key}
            _, sums = masked_loss(task, delta, backbone, **seen)
            return self.noise.added(mean, mask, data, key), sums

        return gradient


def private_steps(
    task: Task,
    batches: Batches,
    *,
    clip_norm: float | None,
    noise_multiplier: float,
    accounting: LocalAccounting | None,
) -> PrivateSteps | None:
    """Checks what makes a client private.

    Args:
      task: the loss.
      batches: how a client walks its data.
      clip_norm: G; None: no client is private.
      noise_multiplier: z, deviation of the noise on a mean gradient in units of G / m.
      accounting: what z is accounted for; None: nothing.

    Returns:
      The gradient; None where no client is private.

    Raises:
      TypeError, ValueError: noise or an account without a clip norm, and as of
        `local_noise`.
    """
    if clip_norm is None:
        checks.real("noise_multiplier", noise_multiplier, least=0)
        if noise_multiplier > 0 or accounting is not None:
            raise ValueError(
                "fedask: noise needs a bound on what one example moves, got "
                f"noise_multiplier={noise_multiplier}, accounting={accounting!r} and no "
                "clip_norm; give one"
            )
        return None
    check_no_weight(task, "fedask")
    passes = None if accounting is None else _passes(batches, accounting.n_examples)
    noise = local_noise(
        noise_multiplier,
        clip_norm,
        accounting,
        batch_size=batches.batch_size,
        estimator="sgd",
        passes=passes,
    )
    return PrivateSteps(clip_norm, noise)


def _passes(batches: Batches, n_examples: int) -> int | None:
    """How often a round comes to one example; None for one batch that is drawn."""
    if batches.steps == 1:
        return None
    if batches.steps is None:
        return batches.epochs
    return math.ceil(batches.steps / math.ceil(n_examples / batches.batch_size))
