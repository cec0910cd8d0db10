"""The dense product and its gradients against `@`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_fm.kernels import dense


def both(f, *arguments):
    return f(dense)(*arguments), f(jnp.matmul)(*arguments)


@pytest.mark.parametrize("leading", [(), (5,), (2, 5)], ids=str)
def test_value_and_gradients_are_those_of_the_product(leading):
    rng = np.random.default_rng(0)
    x, w = (
        rng.normal(size=shape).astype(np.float32) for shape in ((*leading, 3), (3, 4))
    )

    def gradients(product):
        return jax.jit(
            jax.value_and_grad(
                lambda x, w: jnp.sum(jnp.sin(product(x, w))), argnums=(0, 1)
            )
        )

    ours, expected = both(gradients, x, w)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        ours,
        expected,
    )


def test_under_vmap_over_kernels_and_in_low_precision():
    rng = np.random.default_rng(1)
    x, w = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        for shape in ((6, 5, 3), (6, 3, 4))
    )

    def gradients(product):
        return jax.vmap(jax.grad(lambda w, x: jnp.sum(product(x, w) ** 2)))

    ours, expected = both(gradients, w, x)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        ours.astype(np.float32), expected.astype(np.float32), rtol=0.05, atol=0.05
    )


def test_on_cpu_the_transposition_is_an_operation_of_its_own():
    step = jax.jit(lambda w, x: w - jax.grad(lambda w: jnp.sum(dense(x, w) ** 2))(w))
    text = step.lower(jnp.ones((64, 8)), jnp.ones((4, 64))).compile().as_text()
    assert "lhs_contracting_dims={0}" not in text


def test_in_forward_mode_and_twice():
    rng = np.random.default_rng(2)
    x, w, x_dot, w_dot = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 5, 3), (3, 4)) * 2
    )

    def tangents(product):
        return jax.jvp(lambda x, w: jnp.sin(product(x, w)), (x, w), (x_dot, w_dot))

    def second(product):
        gradient = jax.grad(lambda w: jnp.sum(jnp.sin(product(x, w))))
        return jax.jvp(gradient, (w,), (w_dot,))[1], jax.hessian(
            lambda w: jnp.sum(jnp.sin(product(x, w)))
        )(w)

    for derivative in (tangents, second):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            derivative(dense),
            derivative(jnp.matmul),
        )
