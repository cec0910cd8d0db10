"""The matmul form of convolution and the reshape form of max-pool against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.experiments.bench.conv import conv_as_matmul, max_pool_2


def native(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("window", [(3, 3), (1, 1), (2, 5)], ids=str)
def test_convolution_and_its_gradients_equal_lax_conv(window):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 9, 7, 3)).astype(np.float32)
    kernel = rng.standard_normal((*window, 3, 4)).astype(np.float32)
    weights = rng.standard_normal(native(x, kernel).shape).astype(np.float32)
    np.testing.assert_allclose(
        conv_as_matmul(x, kernel), native(x, kernel), rtol=1e-5, atol=1e-5
    )
    gradients = [
        jax.grad(lambda x, k, conv=conv: jnp.sum(conv(x, k) * weights), (0, 1))(
            x, kernel
        )
        for conv in (conv_as_matmul, native)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients
    )


def test_max_pool():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    expected = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(max_pool_2(jnp.asarray(x)), expected)
