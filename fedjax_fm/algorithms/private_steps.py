"""DP-SGD inside a client: clipped gradients of single examples, and noise on their mean.

Abadi et al., 2016, "Deep Learning with Differential Privacy", arXiv 1607.00133. The
clipped gradients are added up in microbatches, which bound memory and change nothing
else.
"""

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
      microbatch: examples whose gradients exist at one time; None: all of a batch.
    """

    clip_norm: float
    noise: LocalNoise
    microbatch: int | None = None

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
            microbatch=self.microbatch,
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
    microbatch: int | None = None,
    method: str = "fedask",
) -> PrivateSteps | None:
    """Checks what makes a client private.

    Args:
      task: the loss.
      batches: how a client walks its data.
      clip_norm: G; None: no client is private.
      noise_multiplier: z, deviation of the noise on a mean gradient in units of G / m.
      accounting: what z is accounted for; None: nothing.
      microbatch: examples whose gradients exist at one time; None: all of a batch.
      method: its name, for messages.

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
                f"{method}: noise needs a bound on what one example moves, got "
                f"noise_multiplier={noise_multiplier}, accounting={accounting!r} and no "
                "clip_norm; give one"
            )
        return None
    check_no_weight(task, method)
    if microbatch is not None:
        _check_microbatch(microbatch, batches.batch_size)
    passes = None if accounting is None else _passes(batches, accounting.n_examples)
    noise = local_noise(
        noise_multiplier,
        clip_norm,
        accounting,
        batch_size=batches.batch_size,
        estimator="sgd",
        passes=passes,
    )
    return PrivateSteps(clip_norm, noise, microbatch)


def _check_microbatch(microbatch: int, batch_size: int) -> None:
    """Refuses microbatches that do not make up a batch."""
    checks.whole("microbatch", microbatch, least=1, most=batch_size)
    if batch_size % microbatch:
        raise ValueError(
            f"expected a microbatch that divides batch_size={batch_size}, got "
            f"microbatch={microbatch}"
        )


def _passes(batches: Batches, n_examples: int) -> int | None:
    """How often a round comes to one example; None for one batch that is drawn."""
    if batches.steps == 1:
        return None
    if batches.steps is None:
        return batches.epochs
    return math.ceil(batches.steps / math.ceil(n_examples / batches.batch_size))
