"""DINOv2: a ViT with scaled branches that takes images of any number of patches.

As a ViT (see `vit`), but each branch of a layer is multiplied by a trained vector
(LayerScale), and the table of positions, made for one size of image, is interpolated to
the size that comes. Module names follow Hugging Face's `Dinov2Model` without the layer
number.

References:
  Oquab et al., 2023, DINOv2, arXiv 2304.07193; LayerScale: Touvron et al., 2021, arXiv
  2103.17239, equation 9; positions: Dosovitskiy et al., 2020, arXiv 2010.11929, section
  3.2.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.bert import layer_norm
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.stacked import run_stacked, stack
from fedjax_fm.models.vit import ViTAttention, ViTPatchEmbeddings
from fedjax_fm.models.weights import Naming

_CUBIC = -0.75  # the free number of torch's cubic kernel


@dataclass(frozen=True)
class Dinov2Config:
    """A DINOv2's sizes: the fields of `config.json` that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      hidden_size: d, width of the hidden states.
      num_hidden_layers: encoder layers.
      num_attention_heads: heads, a divisor of `hidden_size`.
      mlp_ratio: width inside the feed-forward network, as a multiple of d.
      hidden_act: an activation's name, see `activations.ACTIVATIONS`.
      layer_norm_eps: what layer normalisation adds to the variance.
      image_size: pixels of a side of the images that the table of positions is made
        for; other sizes are taken, too.
      patch_size: pixels of a patch's side, a divisor of `image_size`.
      num_channels: of an image.
      layerscale_value: of the branches' scales at first.
      qkv_bias: must be True.
      use_swiglu_ffn: must be False; the largest DINOv2 has it.

    Raises:
      ValueError: heads that do not divide the width, patches that do not divide the
        image, an unknown activation, no biases, or SwiGLU.

    Example:
      >>> Dinov2Config(image_size=518).num_patches
      1369
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    layerscale_value: float = 1.0
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of "
                f"patch_size={self.patch_size}"
            )
        if not self.qkv_bias:
            raise ValueError("qkv_bias=False is not supported")
        if self.use_swiglu_ffn:
            raise ValueError("use_swiglu_ffn=True is not supported")
        check_activation("hidden_act", self.hidden_act)

    @property
    def num_patches(self) -> int:
        """Patches that the table of positions is made for, N."""
        return (self.image_size // self.patch_size) ** 2


@functools.cache
def bicubic(old: int, new: int) -> np.ndarray:
    """The matrix that interpolates `old` numbers in a row to `new` ones.

    Output i reads the place (i + 1/2) old / new - 1/2 by Keys' cubic kernel with
    a = -0.75; beyond the ends the last number is repeated. That is torch's
    `interpolate(mode="bicubic")` along one axis: it does not smooth before it shrinks.

    Args:
      old: numbers that there are.
      new: numbers that are wanted.

    Returns:
      f32[new, old]; rows sum to 1.

    References:
      Keys, 1981, Cubic convolution interpolation for digital image processing.

    Example:
      >>> bicubic(3, 3).tolist()
      [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    places = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        read = np.floor(places) + offset
        column = np.clip(read, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), column), _kernel(np.abs(places - read)))
    return matrix.astype(np.float32)


def _kernel(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel at distances x in [0, 2]."""
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = _CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)


class Dinov2Embeddings(nnx.Module):
    """The class token and the patches of an image, with their positions.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Dinov2Config, rngs: nnx.Rngs, dtype: Any):
        d, init = config.hidden_size, nnx.initializers.normal(0.02)
        self.config = config
        self.patch_embeddings = ViTPatchEmbeddings(config, rngs, dtype)
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, d), dtype))
        self.position_embeddings = nnx.Param(
            init(rngs.params(), (1, 1 + config.num_patches, d), dtype)
        )

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, 1 + N, d] of pixels [B, C, H, W] or [B, H, W, C]."""
        sides = self._sides(pixels)
        patches = self.patch_embeddings(pixels.astype(self.cls_token.dtype), sides)
        batch, _, width = patches.shape
        first = jnp.broadcast_to(self.cls_token[...], (batch, 1, width))
        return jnp.concatenate([first, patches], axis=1) + self._positions(sides)

    def _sides(self, pixels: jax.Array) -> tuple[int, int]:
        """(H, W) of pixels, multiples of the patch's side."""
        config, shape = self.config, pixels.shape
        channels, patch = config.num_channels, config.patch_size
        is_first = len(shape) == 4 and shape[1] == channels
        if is_first or (len(shape) == 4 and shape[3] == channels):
            height, width = shape[2:] if is_first else shape[1:3]
            if height and width and height % patch == width % patch == 0:
                return height, width
        raise ValueError(
            f"expected pixels of shape [B, {channels}, H, W] or [B, H, W, {channels}], "
            f"H and W multiples of patch_size={patch}, got {list(shape)}"
        )

    def _positions(self, sides: tuple[int, int]) -> jax.Array:
        """[1, 1 + N, d], the table interpolated to an image's size in f32."""
        config, table = self.config, self.position_embeddings[...]
        if sides == (config.image_size, config.image_size):
            return table
        old = config.image_size // config.patch_size
        to_rows, to_columns = (
            bicubic(old, side // config.patch_size) for side in sides
        )
        grid = table[0, 1:].reshape(old, old, -1).astype(jnp.float32)
        # Two products of a few rows: exact, also where a product is of fewer bits.
        grid = jnp.einsum("ih,hwd->iwd", to_rows, grid, precision="highest")
        grid = jnp.einsum("jw,iwd->ijd", to_columns, grid, precision="highest")
        flat = grid.reshape(1, -1, table.shape[-1]).astype(table.dtype)
        return jnp.concatenate([table[:, :1], flat], axis=1)


class LayerScale(nnx.Module):
    """Multiplies by a trained vector.

    Args:
      config: sizes, and the vector's first value.
      dtype: of the vector.
    """

    def __init__(self, config: Dinov2Config, dtype: Any):
        start = jnp.full((config.hidden_size,), config.layerscale_value, dtype)
        self.lambda1 = nnx.Param(start)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[..., d] of hidden [..., d]."""
        return hidden * self.lambda1[...]


class Dinov2MLP(nnx.Module):
    """The feed-forward network of a layer.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Dinov2Config, rngs: nnx.Rngs, dtype: Any):
        d = config.hidden_size
        wide = int(d * config.mlp_ratio)
        self.act = config.hidden_act
        self.fc1 = nnx.Linear(d, wide, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(wide, d, param_dtype=dtype, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[..., d] of hidden [..., d]."""
        return self.fc2(ACTIVATIONS[self.act](self.fc1(hidden)))


class Dinov2Layer(nnx.Module):
    """One encoder layer, pre-norm, its branches scaled.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Dinov2Config, rngs: nnx.Rngs, dtype: Any):
        d, epsilon = config.hidden_size, config.layer_norm_eps
        self.norm1 = layer_norm(d, epsilon, dtype, rngs)
        self.attention = ViTAttention(config, rngs, dtype)
        self.layer_scale1 = LayerScale(config, dtype)
        self.norm2 = layer_norm(d, epsilon, dtype, rngs)
        self.mlp = Dinov2MLP(config, rngs, dtype)
        self.layer_scale2 = LayerScale(config, dtype)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, 1 + N, d] from hidden [B, 1 + N, d]."""
        seen = self.attention(self.norm1(hidden))
        hidden = hidden + self.layer_scale1(seen)
        wide = self.mlp(self.norm2(hidden))
        return hidden + self.layer_scale2(wide)


class Dinov2Encoder(nnx.Module):
    """All layers; every parameter of `layer` has a leading axis of num_hidden_layers.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Dinov2Config, rngs: nnx.Rngs, dtype: Any):
        self.layer = stack(
            lambda r: Dinov2Layer(config, r, dtype), config.num_hidden_layers, rngs
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, 1 + N, d] from hidden [B, 1 + N, d]."""
        return run_stacked(self.layer, hidden)


class Dinov2Model(nnx.Module):
    """DINOv2's encoder: pixels in, hidden states out.

    The class token comes first. Images may have any sides that are multiples of the
    patch's; transformers drops the pixels of the last patch that is not whole, here
    they are refused.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations, f32 by default.

    References:
      Oquab et al., 2023, arXiv 2304.07193.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.Dinov2Config(
      ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     image_size=8, patch_size=4,
      ... )
      >>> def run(inputs):
      ...     return models.Dinov2Model(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 3, 12, 8))).shape  # traced, not computed
      (3, 7, 8)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "dinov2."),
        ignored=(r"(^|\.)embeddings\.mask_token$", r"^classifier\."),
    )

    def __init__(self, config: Dinov2Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.embeddings = Dinov2Embeddings(config, rngs, dtype)
        self.encoder = Dinov2Encoder(config, rngs, dtype)
        self.layernorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )

    def __call__(
        self, pixel_values: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """The hidden states [B, 1 + N, d] of images, normalised.

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Raises:
          ValueError: pixels of another shape, or no whole patches.
        """
        with randomness(key):
            hidden = self.encoder(self.embeddings(pixel_values))
            return self.layernorm(hidden)


class Dinov2ForImageClassification(nnx.Module):
    """DINOv2 with a linear classifier.

    It reads the class token beside the mean of the patches, 2 d numbers.

    Args:
      config: sizes.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the encoder's weights and activations; the classifier stays f32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.Dinov2Config(
      ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     image_size=8, patch_size=4,
      ... )
      >>> def run(inputs):
      ...     return models.Dinov2ForImageClassification(config, 2, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 3, 8, 8))).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "dinov2."),
        new=("classifier",),
        ignored=(r"(^|\.)embeddings\.mask_token$",),
    )

    def __init__(
        self,
        config: Dinov2Config,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.dinov2 = Dinov2Model(config, rngs, dtype)
        self.classifier = classifier(2 * config.hidden_size, num_labels, rngs)

    def features(
        self, pixel_values: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """What the classifier sees, [B, 2 d].

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        hidden = self.dinov2(pixel_values, key)
        return jnp.concatenate([hidden[:, 0], hidden[:, 1:].mean(axis=1)], axis=-1)

    def __call__(
        self, pixel_values: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits f32[B, num_labels] of images.

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        features = self.features(pixel_values, key)
        return self.classifier(features.astype(jnp.float32))
