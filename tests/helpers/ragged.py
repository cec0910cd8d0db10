"""`jax.lax.ragged_all_to_all` for CPUs, where XLA has none: all rows to all, then chosen."""

import jax
import jax.numpy as jnp


def ragged_all_to_all(
    operand,
    output,
    input_offsets,
    send_sizes,
    output_offsets,
    recv_sizes,
    *,
    axis_name,
):
    """For slices of at most one row, as the documentation of JAX says it in pseudocode.

    Rows that a receiver does not expect, or waits for in vain, poison all it gets.
    """
    n, me = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

    def sent_to_me(entries):
        every = jax.lax.all_gather(entries, axis_name)  # [sender, n * S]
        return every.reshape(n, n, -1)[:, me]  # [sender, S]

    operands = jax.lax.all_gather(operand, axis_name)
    sizes, where = sent_to_me(send_sizes), sent_to_me(output_offsets)
    found = jax.vmap(lambda rows, places: rows[places])(
        operands, sent_to_me(input_offsets)
    )
    nowhere = output.shape[0]
    where = jnp.where(sizes == 1, where, nowhere).reshape(-1)
    received = output.at[where].set(found.reshape(-1, *operand.shape[1:]), mode="drop")
    agrees = jnp.array_equal(sizes, recv_sizes.reshape(n, -1))
    return jnp.where(agrees, received, jnp.full_like(received, 77))
