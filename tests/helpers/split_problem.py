"""A small model cut in two places: tied ends, a mask as context, and noise that both
ends must draw alike.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_fm.split import Split

LENGTH, WIDTH, INSIDE = 5, 3, 4  # L, h, hidden units of the body
SIZES = (6, 1, 4, 2, 6, 3, 5)


def split(scale: float = 0.1) -> Split:
    """Tokens are rows of a table; the body mixes the real ones; the head takes the
    noise off and finds the token.
    """

    def noise(batch, key):
        return scale * jax.random.normal(key, (*batch["ids"].shape, WIDTH))

    def embed(client, batch, key):
        return client["table"][batch["ids"]] + noise(batch, key), batch["real"]

    def body(server, activations, context):
        mean = (
            jnp.sum(jnp.where(context[..., None], activations, 0.0), axis=1)
            / jnp.sum(context, axis=1)[:, None]
        )
        return jnp.tanh((activations + mean[:, None]) @ server["in"]) @ server["out"]

    def head(client, features, batch, key):
        logits = (features - noise(batch, key)) @ client["table"].T + client["bias"]
        losses = -jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch["ids"][..., None], axis=-1
        )[..., 0]
        return jnp.mean(jnp.where(batch["real"], losses, 0.0), axis=1), {
            "largest": jnp.max(logits, axis=(1, 2))
        }

    sent = (
        jax.ShapeDtypeStruct((LENGTH, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((LENGTH,), jnp.bool_),
    )
    return Split(embed=embed, body=body, head=head, sent=sent)


def delta(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "client": {"table": draw(7, WIDTH), "bias": draw(7)},
        "server": {"in": draw(WIDTH, INSIDE), "out": draw(INSIDE, WIDTH)},
    }


def clients(sizes=SIZES, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "ids": rng.integers(0, 7, (n, LENGTH)).astype(np.int32),
            "real": np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (n, 1)),
        }
        for n in sizes
    ]
