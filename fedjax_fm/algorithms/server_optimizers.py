"""FedAdagrad, FedYogi and FedAdam's server steps, as optax transformations.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, Adaptive Federated
Optimization, 2020, arXiv 2003.00295, algorithm 2. With Delta_t the mean of the clients'
changes (end - start), m_{-1} = 0 and v_{-1} = tau^2:

    m_t = b1 m_{t-1} + (1 - b1) Delta_t
    v_t = v_{t-1} + Delta_t^2                                                FedAdagrad
    v_t = v_{t-1} - (1 - b2) Delta_t^2 sign(v_{t-1} - Delta_t^2)             FedYogi
    v_t = b2 v_{t-1} + (1 - b2) Delta_t^2                                    FedAdam
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

optax's optimizers of these names are others: they correct the moments' bias, start v
elsewhere, and their epsilons are smaller by orders of magnitude, which tau, the degree
of adaptivity, is not meant to be.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_fm import checks
from fedjax_fm.types import Tree

__all__ = ["adagrad", "adam", "yogi"]

SecondMoment = Callable[[jax.Array, jax.Array], jax.Array]  # (v, Delta^2) -> the next v


class MomentsState(NamedTuple):
    """What the server keeps from round to round."""

    first: Tree  # m, of -Delta, as optax hands over gradients
    second: Tree  # v


def adagrad(
    learning_rate: Any,
    *,
    b1: float = 0.0,
    tau: float = 1e-3,
    initial: float | None = None,
) -> optax.GradientTransformation:
    """FedAdagrad's server step.

        v_t = v_{t-1} + Delta_t^2,   x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

    Args:
      learning_rate: eta > 0, or an optax schedule of the number of updates.
      b1: of the first moment, 0 <= b1 < 1; the paper's experiments have 0.
      tau: > 0, the degree of adaptivity; the smaller, the more.
      initial: v_{-1}, at least 0; None is the paper's least, tau^2.

    Returns:
      An optax transformation, to be the `server_optimizer` of a method.

    Raises:
      TypeError, ValueError: an argument is no number, or out of bounds.

    References:
      Reddi et al. 2020, arXiv 2003.00295, algorithm 2; defaults: appendix D.

    Example:
      >>> optimizer = adagrad(0.1)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> mean = jnp.ones(1)  # of start - end
      >>> updates, state = optimizer.update(mean, state)
      >>> # -0.1 / (sqrt(1 + 1e-6) + 1e-3)
      >>> [round(float(update), 4) for update in updates]
      [-0.0999]
    """

    def second_moment(v, square):
        return v + square

    return _server_optimizer(
        learning_rate, second_moment, b1=b1, tau=tau, initial=initial
    )


def yogi(
    learning_rate: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial: float | None = None,
) -> optax.GradientTransformation:
    """FedYogi's server step: v moves by at most (1 - b2) Delta^2, up or down.

        v_t = v_{t-1} - (1 - b2) Delta_t^2 sign(v_{t-1} - Delta_t^2)

    Args:
      learning_rate: eta > 0, or an optax schedule of the number of updates.
      b1: of the first moment, 0 <= b1 < 1.
      b2: of the second moment, 0 <= b2 < 1.
      tau: > 0, the degree of adaptivity; the smaller, the more.
      initial: v_{-1}, at least 0; None is the paper's least, tau^2.

    Returns:
      An optax transformation, to be the `server_optimizer` of a method.

    Raises:
      TypeError, ValueError: an argument is no number, or out of bounds.

    References:
      Reddi et al. 2020, arXiv 2003.00295, algorithm 2; defaults: appendix D.

    Example:
      >>> optimizer = yogi(0.1, b1=0.0)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> mean = jnp.ones(1)  # of start - end
      >>> updates, state = optimizer.update(mean, state)
      >>> [round(float(update), 2) for update in updates]  # -0.1 / (0.1 + 1e-3)
      [-0.99]
    """
    checks.real("b2", b2, least=0, below=1)

    def second_moment(v, square):
        return v - (1 - b2) * square * jnp.sign(v - square)

    return _server_optimizer(
        learning_rate, second_moment, b1=b1, tau=tau, initial=initial
    )


def adam(
    learning_rate: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial: float | None = None,
) -> optax.GradientTransformation:
    """FedAdam's server step, without bias correction.

        v_t = b2 v_{t-1} + (1 - b2) Delta_t^2

    Args:
      learning_rate: eta > 0, or an optax schedule of the number of updates.
      b1: of the first moment, 0 <= b1 < 1.
      b2: of the second moment, 0 <= b2 < 1.
      tau: > 0, the degree of adaptivity; the smaller, the more.
      initial: v_{-1}, at least 0; None is the paper's least, tau^2.

    Returns:
      An optax transformation, to be the `server_optimizer` of a method.

    Raises:
      TypeError, ValueError: an argument is no number, or out of bounds.

    References:
      Reddi et al. 2020, arXiv 2003.00295, algorithm 2; defaults: appendix D. The
      paper's listing takes the clients' plain mean as Delta; `fedavg` weighs them by
      examples.

    Example:
      >>> import optax
      >>> from fedjax_fm.algorithms import server_optimizers
      >>> # goes to `fedavg(task, client_optimizer, optimizer, ...)`
      >>> optimizer = server_optimizers.adam(0.1)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> mean = jnp.ones(1)  # of start - end
      >>> updates, state = optimizer.update(mean, state)
      >>> # -0.1 * 0.1 / (sqrt(0.01 + 0.99e-6) + 0.001)
      >>> [round(float(update), 4) for update in updates]
      [-0.099]
    """
    checks.real("b2", b2, least=0, below=1)

    def second_moment(v, square):
        return b2 * v + (1 - b2) * square

    return _server_optimizer(
        learning_rate, second_moment, b1=b1, tau=tau, initial=initial
    )


def _server_optimizer(
    learning_rate: Any,
    second_moment: SecondMoment,
    *,
    b1: float,
    tau: float,
    initial: float | None,
) -> optax.GradientTransformation:
    """Algorithm 2 with one of its three second moments."""
    if not callable(learning_rate):
        checks.real("learning_rate", learning_rate, above=0)
    checks.real("b1", b1, least=0, below=1)
    checks.real("tau", tau, above=0)
    if initial is not None:
        checks.real("initial", initial, least=0)

    def init(params):
        start = tau**2 if initial is None else initial
        first = jax.tree.map(jnp.zeros_like, params)
        second = jax.tree.map(lambda x: jnp.full_like(x, start), params)
        return MomentsState(first, second)

    def update(updates, state, params=None):
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, updates)
        second = jax.tree.map(
            lambda v, g: second_moment(v, g * g), state.second, updates
        )
        step = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), first, second)
        return step, MomentsState(first, second)

    adaptive = optax.GradientTransformation(init, update)
    rate = optax.scale_by_learning_rate(learning_rate)  # type: ignore[arg-type]
    return optax.chain(adaptive, rate)
