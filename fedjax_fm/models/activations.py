"""Activation functions under Hugging Face's names."""

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """GELU, x Phi(x), with the exact normal distribution function Phi.

    Args:
      x: f[...], any shape.

    Returns:
      f[...] of the shape and dtype of x.

    References:
      Hendrycks and Gimpel, 2016, arXiv 1606.08415.
    """
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of x Phi(x).

    Args:
      x: f[...], any shape.

    Returns:
      f[...] of the shape and dtype of x.

    References:
      Hendrycks and Gimpel, 2016, arXiv 1606.08415, section 2.
    """
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU: x sigmoid(1.702 x).

    Args:
      x: f[...], any shape.

    Returns:
      f[...] of the shape and dtype of x.
    """
    return x * jax.nn.sigmoid(1.702 * x)


def relu_squared(x: jax.Array) -> jax.Array:
    """The square of the positive part: max(x, 0)^2.

    Args:
      x: f[...], any shape.

    Returns:
      f[...] of the shape and dtype of x.
    """
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "mish": jax.nn.mish,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu2": relu_squared,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def check_activation(field: str, name: str) -> None:
    """Checks that there is an activation of that name.

    Args:
      field: the configuration's field, for the error message.
      name: what it says.

    Raises:
      ValueError: `name` is not in `ACTIVATIONS`.

    Example:
      >>> check_activation("hidden_act", "gelu")
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"{field} must be one of {sorted(ACTIVATIONS)}, got {name!r}")
