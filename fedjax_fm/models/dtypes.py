"""The two dtypes of weights and their spellings."""

from typing import Any

import jax.numpy as jnp

_SPELLINGS = {
    "float32": ("float32", "fp32", "f32", "float"),
    "bfloat16": ("bfloat16", "bf16"),
}


def checked_dtype(dtype: Any) -> Any:
    """The NumPy dtype, float32 or bfloat16, that a name or a dtype means.

    Args:
      dtype: a name ("bf16"), `jnp.bfloat16`, or torch's dtype.

    Raises:
      ValueError: any other.

    Example:
      >>> checked_dtype("bf16") == checked_dtype(jnp.bfloat16)
      True
    """
    name = dtype if isinstance(dtype, str) else _name_of(dtype)
    for found, spellings in _SPELLINGS.items():
        if name.removeprefix("torch.").lower() in spellings:
            return jnp.dtype(found)
    raise ValueError(
        "expected dtype 'float32' (or 'fp32', jnp.float32) or 'bfloat16' (or "
        f"'bf16', jnp.bfloat16), got {dtype!r}"
    )


def _name_of(dtype: Any) -> str:
    """The dtype's name."""
    if dtype is None:
        return "None"  # which NumPy would take for float64
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)  # torch.bfloat16
