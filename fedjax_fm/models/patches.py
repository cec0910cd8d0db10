"""Images as rows of patches, so that the first layer is one matrix product."""

import jax
import jax.numpy as jnp


def to_patches(
    pixels: jax.Array,
    channels: int,
    image_size: int | tuple[int, int],
    patch_size: int,
) -> jax.Array:
    """Images cut into rows of flat patches.

    A patch is flat in the order (channel, row, column), that of the kernel of a
    convolution in torch: a product with the flattened kernel is that convolution, and
    on CPU several times faster inside a scan.

    Args:
      pixels: [B, C, H, W] or [B, H, W, C].
      channels: C.
      image_size: (H, W), or one number for both.
      patch_size: pixels of a patch's side, P, a divisor of H and of W.

    Returns:
      [B, N, C P^2], N = H / P * W / P, row by row.

    Raises:
      ValueError: pixels of another shape.

    Example:
      >>> pixels = jnp.ones((2, 3, 8, 8))
      >>> to_patches(pixels, channels=3, image_size=8, patch_size=4).shape
      (2, 4, 48)
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    first, last = (channels, *sides), (*sides, channels)
    if pixels.shape[1:] not in (first, last):
        raise ValueError(
            f"expected pixels of shape [B, {first}] or [B, {last}], got "
            f"{list(pixels.shape)}"
        )
    if pixels.shape[1:] != first:
        pixels = jnp.moveaxis(pixels, -1, 1)
    rows, columns = (side // patch_size for side in sides)
    shape = (-1, channels, rows, patch_size, columns, patch_size)
    cut = pixels.reshape(shape).transpose((0, 2, 4, 1, 3, 5))
    return cut.reshape(pixels.shape[0], rows * columns, -1)
