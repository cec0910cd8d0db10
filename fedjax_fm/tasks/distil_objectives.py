"""What a student may learn from a teacher: distances of predictions and of features.

He, Shi, Mueller, Zha, Li, Karypis, 2021, Distiller, arXiv 2109.11105, compare them. Each
is a number an example, in f32; none is differentiated in the teacher.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.tasks.classification import cross_entropy

# `(student [B, T, d], teacher [B, T, d], real bool[B, T] or None) -> f32[B]`
Distance = Callable[[jax.Array, jax.Array, Any], jax.Array]


def soft_targets(
    student: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """Hinton's T^2 KL(softmax(z_t / T) || softmax(z_s / T)).

    Its gradient in z_s is T (softmax(z_s / T) - softmax(z_t / T)), which is as large
    for every T; for T -> infinity it is half the mean square of the difference of the
    logits, each less its mean.

    Args:
      student: z_s, [..., K].
      teacher: z_t, [..., K].
      temperature: T, above 0; 1 to 4 is usual.

    Returns:
      f32[...].

    Raises:
      TypeError, ValueError: a temperature of another kind, or logits whose shapes
        differ.

    References:
      Hinton et al. 2015, arXiv 1503.02531, section 2.

    Example:
      >>> z = jnp.array([[1.0, 2.0]])
      >>> float(soft_targets(z, z, 2.0)[0])
      0.0
    """
    checks.real("temperature", temperature, above=0)
    student, teacher = compared(student, teacher)
    of_student = jax.nn.log_softmax(student / temperature)
    of_teacher = jax.nn.log_softmax(teacher / temperature)
    terms = jnp.exp(of_teacher) * (of_teacher - of_student)
    return temperature**2 * jnp.sum(terms, axis=-1)


def hard_targets(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """The cross-entropy with the teacher's likeliest class: DeiT's distillation token.

    Args:
      student: z_s, [..., K], of the head on the distillation token.
      teacher: z_t, [..., K].

    Returns:
      f32[...].

    Raises:
      ValueError: logits whose shapes differ.

    References:
      Touvron et al. 2020, arXiv 2012.12877, equation (3).

    Example:
      >>> loss = hard_targets(jnp.zeros((1, 2)), jnp.array([[1.0, 2.0]]))
      >>> round(float(loss[0]), 4)
      0.6931
    """
    student, teacher = compared(student, teacher)
    return cross_entropy(student, jnp.argmax(teacher, axis=-1))


def mean_square(
    student: jax.Array, teacher: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """The mean square of the difference, over real tokens and the width.

    Args:
      student: [B, T, d].
      teacher: [B, T, d].
      real: bool[B, T]; None: all tokens.

    Returns:
      f32[B].

    Raises:
      ValueError: features whose shapes differ.
    """
    student, teacher = compared(student, teacher)
    squares = jnp.square(student - teacher)
    return _over_tokens(jnp.mean(squares, axis=-1), real)


def unit_square(
    student: jax.Array, teacher: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """The squared distance of the features scaled to length one, over real tokens.

    Args:
      student: [B, T, d].
      teacher: [B, T, d].
      real: bool[B, T]; None: all tokens.

    Returns:
      f32[B], from 0 to 4: twice the `cosine_distance`.

    Raises:
      ValueError: features whose shapes differ.
    """
    student, teacher = compared(student, teacher)
    squares = jnp.square(unit(student) - unit(teacher))
    return _over_tokens(jnp.sum(squares, axis=-1), real)


def cosine_distance(
    student: jax.Array, teacher: jax.Array, real: jax.Array | None = None
) -> jax.Array:
    """One less the cosine between the features, over real tokens.

    Args:
      student: [B, T, d].
      teacher: [B, T, d].
      real: bool[B, T]; None: all tokens.

    Returns:
      f32[B], from 0 to 2.

    Raises:
      ValueError: features whose shapes differ.
    """
    student, teacher = compared(student, teacher)
    cosines = jnp.sum(unit(student) * unit(teacher), axis=-1)
    return _over_tokens(1 - cosines, real)


def mutual_information(alpha: float = 0.5, temperature: float = 0.1) -> Distance:
    """Minus a lower bound of the information that features share: MI-alpha.

        I = 1 + mean_t [log r(t, t)] - mean_{s, t} r(s, t)
        r(s, t) = exp f(s, t) / (alpha mean_u exp f(u, t) + (1 - alpha) e)

    s, u are the student's tokens of an example and t the teacher's, f is their cosine
    over a temperature. alpha = 1 is InfoNCE, at most log T; alpha = 0 is the bound of
    Nguyen, Wainwright and Jordan, of higher variance. The pairs are those of one text,
    so that an example's loss is its own.

    Args:
      alpha: 0 <= alpha <= 1.
      temperature: of the critic f, above 0.

    Returns:
      A distance: f32[B], the lower the more the features share.

    Raises:
      TypeError, ValueError: an argument is of another kind or out of bounds; later,
        features whose shapes differ.

    References:
      He et al. 2021, arXiv 2109.11105; Poole et al. 2019, arXiv 1905.06922, the
      interpolated bound I_alpha.

    Example:
      >>> tokens = jnp.eye(4)[None]
      >>> close = mutual_information(alpha=1.0)(tokens, tokens, None)
      >>> round(-float(close[0]), 3)  # nearly log 4
      1.386
    """
    checks.real("alpha", alpha, least=0, most=1)
    checks.real("temperature", temperature, above=0)

    def distance(student: jax.Array, teacher: jax.Array, real: Any = None):
        student, teacher = compared(student, teacher)
        shape = student.shape[:2]
        real = jnp.ones(shape, bool) if real is None else real.astype(bool)
        critic = unit(student) @ jnp.swapaxes(unit(teacher), -1, -2) / temperature
        bounds = jax.vmap(lambda f, mask: _bound(f, mask, alpha))
        return -bounds(critic, real)

    return distance


def _bound(critic: jax.Array, real: jax.Array, alpha: float) -> jax.Array:
    """The bound of one text, from f[s, t]."""
    n = jnp.maximum(jnp.sum(real), 1)
    seen = jnp.where(real[:, None], critic, -jnp.inf)
    # log(alpha mean_u exp f(u, t) + (1 - alpha) e), of each t.
    mean = jax.nn.logsumexp(seen, axis=0) - jnp.log(n)
    of_mean = mean + jnp.log(alpha) if alpha > 0 else jnp.full_like(mean, -jnp.inf)
    of_rest = 1 + jnp.log1p(-alpha) if alpha < 1 else -jnp.inf
    below = jnp.where(real, jnp.logaddexp(of_mean, of_rest), 0.0)
    joint = jnp.where(real, jnp.diagonal(critic) - below, 0.0)
    pairs = real[:, None] & real[None]
    ratios = jnp.where(pairs, jnp.exp(jnp.where(pairs, critic - below[None], 0)), 0)
    return 1 + jnp.sum(joint) / n - jnp.sum(ratios) / n**2


def compared(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both in f32, the teacher's without a gradient, if they are of one shape.

    Args:
      student: any array.
      teacher: one of the same shape.

    Raises:
      ValueError: names both shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            "student and teacher cannot be compared: their outputs have the shapes "
            f"{list(student.shape)} and {list(teacher.shape)}; project the student's "
            "features to the teacher's width, or take a map of layers and classes that "
            "both have"
        )
    student = student.astype(jnp.float32)
    return student, jax.lax.stop_gradient(teacher.astype(jnp.float32))


def unit(x: jax.Array) -> jax.Array:
    """Vectors of length one; zero stays zero, with a gradient of zero.

    Args:
      x: f[..., d].
    """
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return x / length


def _over_tokens(values: jax.Array, real: jax.Array | None) -> jax.Array:
    """The mean over the real tokens, f32[B]; 0 where there is none."""
    if real is None:
        return jnp.mean(values, axis=-1)
    real = real.astype(bool)
    total = jnp.sum(jnp.where(real, values, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(real, axis=-1), 1)
