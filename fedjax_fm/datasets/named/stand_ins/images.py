"""Pictures of classes: a prototype, which a client may tilt, and noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_fm.datasets.named.benchmark import Request

NOISE = 40.0  # standard deviation, of 255
TILT = 30.0  # standard deviation of a client's brightness


def prototypes(n_classes: int, size: int, channels: int) -> np.ndarray:
    """One picture a class: a grid of 4 by 4 random greys, always the same, enlarged.

    Args:
      n_classes: how many.
      size: height and width, a multiple of 4.
      channels: 1 or 3.

    Returns:
      f32[n_classes, size, size, channels] in [40, 215].

    Example:
      >>> prototypes(10, 28, 1).shape
      (10, 28, 28, 1)
    """
    rng = np.random.default_rng(n_classes)
    grid = rng.uniform(40, 215, (n_classes, 4, 4, channels))
    tall = np.repeat(grid, size // 4, axis=1)
    return np.repeat(tall, size // 4, axis=2).astype(np.float32)


def pictures(
    n_classes: int,
    size: int,
    channels: int,
    image: str,
    more: Callable[[int, int], dict[str, Any]],
) -> Callable[[Request], list[dict[str, Any]]]:
    """A generator of prototypes with noise.

    Args:
      n_classes: how many.
      size: height and width.
      channels: 1 or 3; of one the rows have no axis, as the hub gives them.
      image: column of the picture.
      more: from (label, client) to the other columns of the row.

    Returns:
      A function of a request.
    """

    def generate(request: Request) -> list[dict[str, Any]]:
        rng = request.rng
        means = prototypes(n_classes, size, channels)
        tilt = rng.normal(0, TILT, max(request.n_clients, 1))
        rows = []
        for client in request.clients.tolist():
            label = int(rng.integers(n_classes))
            noise = rng.standard_normal(means[label].shape, np.float32)
            picture = means[label] + NOISE * noise
            if client >= 0:
                picture = picture + tilt[client]
            bytes_ = np.clip(picture, 0, 255).astype(np.uint8)
            if channels == 1:
                bytes_ = bytes_[:, :, 0]
            rows.append({image: bytes_, **more(label, client)})
        return rows

    return generate
