"""What FADA's networks minimise, and the weights of its sources."""

import jax
import jax.numpy as jnp


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over real rows; 0 without one.

    Args:
      values: f32[B].
      mask: bool[B], False in rows that must not count.

    Returns:
      f32[].
    """
    total = jnp.sum(jnp.where(mask, values, 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)


def telling(
    source: jax.Array, source_mask: jax.Array, target: jax.Array, target_mask: jax.Array
) -> jax.Array:
    """What a domain identifier minimises: -E log DI(source) - E log(1 - DI(target)).

    Args:
      source: f32[B], logits of "from the source" of a source's features.
      source_mask: bool[B], its real rows.
      target: f32[B], the logits of the target's features.
      target_mask: bool[B], its real rows.

    Returns:
      f32[]; 2 log 2 where nothing is told.

    Example:
      >>> rows = jnp.zeros(3), jnp.ones(3, bool)
      >>> round(float(telling(*rows, *rows)), 4)
      1.3863
    """
    from_source = masked_mean(jax.nn.softplus(-source), source_mask)
    return from_source + masked_mean(jax.nn.softplus(target), target_mask)


def confusing(
    source: jax.Array, source_mask: jax.Array, target: jax.Array, target_mask: jax.Array
) -> jax.Array:
    """What both extractors minimise: `telling` with the domains the other way round.

    Args:
      source: as for `telling`.
      source_mask: as for `telling`.
      target: as for `telling`.
      target_mask: as for `telling`.

    Returns:
      f32[].
    """
    return telling(target, target_mask, source, source_mask)


def negative_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Minus the mean entropy of the predicted classes, -log K at the least.

    Args:
      logits: f32[B, K].
      mask: bool[B], the real rows.

    Returns:
      f32[], in nats.
    """
    logs = jax.nn.log_softmax(logits)
    return masked_mean(jnp.sum(jnp.exp(logs) * logs, axis=-1), mask)


def mutual_information(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """MINE's lower bound on the mutual information of two features.

        mean_i T(p_i, q_i) - log mean_ij exp T(p_i, q_j)

    over all pairs of a batch; the paper draws one q_j for every p_i, which has the same
    expectation inside of the logarithm.

    Args:
      scores: f32[B, B], T of feature p of row i and feature q of row j.
      mask: bool[B], the real rows.

    Returns:
      f32[], in nats; 0 without a real row.

    References:
      Belghazi et al. 2018, arXiv 1801.04062, equation 5.

    Example:
      >>> bound = mutual_information(jnp.full((2, 2), 7.0), jnp.ones(2, bool))
      >>> round(float(bound), 5)  # a constant tells nothing
      0.0
    """
    together = masked_mean(jnp.diagonal(scores), mask)
    real = mask[:, None] & mask[None, :]
    count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
    shown = jnp.where(real, scores, -jnp.inf)
    # Without a real row there is nothing to add up.
    shown = jnp.where(jnp.any(mask), shown, 0.0)
    apart = jax.nn.logsumexp(shown) - 2 * jnp.log(count)
    return jnp.where(jnp.any(mask), together - apart, 0.0)


def spread_in_clusters(
    features: jax.Array, mask: jax.Array, clusters: int, steps: int
) -> jax.Array:
    """The mean square distance to the own cluster's centre, after k-means.

        I = sum_r (1 / 2 n_r) sum_{i, j in r} |f_i - f_j|^2 / n

    The first centre is the first real row, each further one the row that is farthest
    from those before; then `steps` steps of Lloyd's.

    Args:
      features: f32[n, h].
      mask: bool[n], the real rows.
      clusters: k.
      steps: of Lloyd's algorithm.

    Returns:
      f32[]; 0 without a real row.

    References:
      Tibshirani, Walther, Hastie 2001, on the gap statistic.

    Example:
      >>> rows = jnp.array([[0.0], [1.0], [9.0], [9.0]])
      >>> float(spread_in_clusters(rows, jnp.ones(4, bool), clusters=2, steps=3))
      0.125
    """
    centres = _farthest_rows(features, mask, clusters)

    def improve(_, centres):
        own = jnp.argmin(_distances(features, centres), axis=1)
        belongs = jax.nn.one_hot(own, clusters) * mask[:, None]
        count = jnp.sum(belongs, axis=0)[:, None]
        means = belongs.T @ features / jnp.maximum(count, 1)
        return jnp.where(count > 0, means, centres)

    centres = jax.lax.fori_loop(0, steps, improve, centres)
    return masked_mean(jnp.min(_distances(features, centres), axis=1), mask)


def attention(gains: jax.Array, present: jax.Array, temperature: float) -> jax.Array:
    """The weights of the sources, a softmax of their gains.

    Args:
      gains: f32[N], by how much each source's update tightens the target's clusters.
      present: bool[N], who is a source that arrived.
      temperature: gains are divided by it.

    Returns:
      f32[N], of sum one; zeros where nobody is present.

    Example:
      >>> present = jnp.array([True, True, False])
      >>> attention(jnp.array([2.0, 2.0, 9.0]), present, 1.0).tolist()
      [0.5, 0.5, 0.0]
    """
    shown = jnp.where(present, gains / temperature, -jnp.inf)
    shown = jnp.where(jnp.any(present), shown, 0.0)
    return jnp.where(present, jax.nn.softmax(shown), 0.0)


def _distances(features: jax.Array, centres: jax.Array) -> jax.Array:
    """Squares of the distances of rows and centres, f32[n, k]."""
    return jnp.sum((features[:, None] - centres[None]) ** 2, axis=-1)


def _farthest_rows(features: jax.Array, mask: jax.Array, clusters: int) -> jax.Array:
    """Rows that are far from each other, f32[k, h]."""
    first = features[jnp.argmax(mask)]
    centres = jnp.broadcast_to(first, (clusters, features.shape[1]))

    def add(r, centres):
        nearest = jnp.min(_distances(features, centres), axis=1)
        farthest = jnp.argmax(jnp.where(mask, nearest, -1.0))
        return centres.at[r].set(features[farthest])

    return jax.lax.fori_loop(1, clusters, add, centres)
