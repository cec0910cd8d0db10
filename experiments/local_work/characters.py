"""Windows of the characters of Shakespeare's roles, and the network that reads them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm import tasks
from fedjax_fm.experiments.shared.plays import is_of_tuning, roles
from fedjax_fm.study.judged import joined

WIDTH, SYMBOLS = 8, 96  # characters that are read; printable ASCII, all else a blank
Arrays = dict[str, np.ndarray]


class Data(NamedTuple):
    """Windows of the roles' characters."""

    clients: list[Arrays]  # {"read": i32[n, 8], "label": i32[n]}
    test: Arrays


def windows(text: str) -> Arrays:
    """Every character of a text, behind the eight before it."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    codes = np.where((codes >= 32) & (codes < 127), codes - 32, 0)
    read = np.lib.stride_tricks.sliding_window_view(codes, WIDTH)[:-1]
    return {"read": read.copy(), "label": codes[WIDTH:]}


def data(config: Any, seed: int, split: str) -> Data:
    """Draws roles of the plays of a split: every third play is for tuning."""
    by_name = sorted(roles().items())
    texts = [
        " ".join(role.speeches)
        for _, role in by_name
        if is_of_tuning(role.play) == (split == "tuning")
    ]
    long = [text for text in texts if len(text) >= config.characters]
    n_roles = config.roles if split == "final" else config.roles // 2
    drawn = np.random.default_rng(seed).permutation(len(long))[:n_roles]
    cut = config.characters * 4 // 5
    mine = [long[k][: config.characters] for k in drawn]
    test = joined([windows(text[cut:]) for text in mine])
    return Data([windows(text[:cut]) for text in mine], test)


def logits(w: Any, backbone: Any, batch: dict, key: Any) -> jax.Array:
    """f32[n, 96]."""
    read = w["embedding"][batch["read"]].reshape(len(batch["read"]), -1)
    hidden = jnp.tanh(read @ w["inner"] + w["shift"][None])
    return hidden @ w["outer"] + w["bias"][None]


TASK = tasks.from_logits(logits)


def weights(config: Any, seed: int) -> dict[str, jax.Array]:
    """Before training, of deviation 1 / sqrt(inputs)."""
    rng = np.random.default_rng(seed)
    n_read, hidden = WIDTH * config.embedding, config.hidden

    def draw(n_in: int, n_out: int, scale: float) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=(n_in, n_out)), jnp.float32)

    return {
        "embedding": draw(SYMBOLS, config.embedding, 1.0),
        "inner": draw(n_read, hidden, n_read**-0.5),
        "shift": jnp.zeros(hidden),
        "outer": draw(hidden, SYMBOLS, hidden**-0.5),
        "bias": jnp.zeros(SYMBOLS),
    }
