"""What the backward pass keeps of a layer, and what it computes again."""

from collections.abc import Callable

import jax

# By name: the policy of `jax.checkpoint`, or None for no checkpoint at all.
POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
# `with kept_by("full"):` around what is traced; JAX traces anew for another value.
kept_by = jax.make_user_context("dots")


def checkpointed(apply: Callable) -> Callable:
    """A layer as the backward pass is to see it, by `kept_by`.

    Args:
      apply: `(state, hidden) -> hidden`. It takes the layer's state: modules of nnx
        cannot be arguments of `jax.checkpoint`.

    Returns:
      The same function.
    """
    policy = POLICIES[kept_by.value]
    if policy is None:
        return apply
    # Inside a scan nothing could be shared between the passes anyway: prevent_cse would
    # only cost.
    return jax.checkpoint(apply, policy=policy, prevent_cse=False)
