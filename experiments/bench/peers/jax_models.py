"""The models as users of JAX libraries write them: plain functions of a dictionary of arrays."""

import jax
import jax.numpy as jnp


def mlp(p, x):
    """Logits of two dense layers, whose sizes are those of the parameters."""
    hidden = jax.nn.relu(x @ p["dense1"] + p["dense1_bias"])
    return hidden @ p["dense2"] + p["dense2_bias"]


def cnn(p, x):
    """Two convolutions of 3 x 3 without padding, max-pool 2, two dense layers."""
    for name in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(
            x, p[name], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + p[f"{name}_bias"])
    x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    return mlp(p, x.reshape(x.shape[0], -1))


def mean_loss(workload):
    """`f(parameters, batch) -> f32[]`: the cross-entropy of the workload's model."""
    model = cnn if workload == "cifar-cnn" else mlp

    def loss(parameters, batch):
        log_probabilities = jax.nn.log_softmax(model(parameters, batch["x"]))
        return -jnp.mean(
            jnp.take_along_axis(log_probabilities, batch["y"][:, None], axis=1)
        )

    return loss
