"""Vision transformers: patches embedded by one matrix product.

Layers are stacked on a leading axis and run by `lax.scan`. Module names follow Hugging
Face's `ViTModel` without the layer number.

References:
  Dosovitskiy et al., 2020, arXiv 2010.11929.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.bert import AttentionSizes, BertSelfAttention, layer_norm
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.patches import to_patches
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.stacked import run_stacked, stack
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class ViTConfig:
    """A ViT's sizes: the fields of `config.json` that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      hidden_size: d, width of the hidden states.
      num_hidden_layers: encoder layers.
      num_attention_heads: heads, a divisor of `hidden_size`.
      intermediate_size: width inside the feed-forward network.
      hidden_act: an activation's name, see `activations.ACTIVATIONS`.
      layer_norm_eps: what layer normalisation adds to the variance.
      image_size: pixels of a side.
      patch_size: pixels of a patch's side, a divisor of `image_size`.
      num_channels: of an image.
      qkv_bias: must be True.

    Raises:
      ValueError: heads that do not divide the width, patches that do not divide the
        image, an unknown activation, or no biases.

    Example:
      >>> ViTConfig(image_size=32, patch_size=8).num_patches
      16
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True

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
        check_activation("hidden_act", self.hidden_act)

    @property
    def num_patches(self) -> int:
        """Patches of an image, N."""
        return (self.image_size // self.patch_size) ** 2


class ImageSizes(Protocol):
    """The fields of a configuration that the projection of patches reads."""

    @property
    def hidden_size(self) -> int:
        """Width d of the hidden states."""
        ...

    @property
    def image_size(self) -> int:
        """Pixels of an image's side."""
        ...

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side."""
        ...

    @property
    def num_channels(self) -> int:
        """Of an image."""
        ...


class ViTPatchEmbeddings(nnx.Module):
    """A linear layer on flat patches: a convolution whose stride is its width.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: ImageSizes, rngs: nnx.Rngs, dtype: Any):
        self.config = config
        width = config.num_channels * config.patch_size**2
        self.projection = nnx.Linear(
            width, config.hidden_size, param_dtype=dtype, rngs=rngs
        )

    def __call__(
        self, pixels: jax.Array, sides: tuple[int, int] | None = None
    ) -> jax.Array:
        """[B, N, d] of pixels [B, C, H, W] or [B, H, W, C].

        Args:
          pixels: images.
          sides: (H, W); None: both are the configuration's image_size.
        """
        config = self.config
        size = config.image_size if sides is None else sides
        patches = to_patches(pixels, config.num_channels, size, config.patch_size)
        return self.projection(patches)


class ViTEmbeddings(nnx.Module):
    """The class token and the patches of an image, with their positions.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        d, init = config.hidden_size, nnx.initializers.normal(0.02)
        self.patch_embeddings = ViTPatchEmbeddings(config, rngs, dtype)
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, d), dtype))
        self.position_embeddings = nnx.Param(
            init(rngs.params(), (1, 1 + config.num_patches, d), dtype)
        )

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, 1 + N, d] of pixels [B, C, H, W] or [B, H, W, C]."""
        patches = self.patch_embeddings(pixels.astype(self.cls_token.dtype))
        batch, _, width = patches.shape
        first = jnp.broadcast_to(self.cls_token[...], (batch, 1, width))
        return jnp.concatenate([first, patches], axis=1) + self.position_embeddings[...]


class _Dense(nnx.Module):
    """A linear layer under the name `dense`."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, dtype: Any):
        self.dense = nnx.Linear(n_in, n_out, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., n_out] of x [..., n_in]."""
        return self.dense(x)


class ViTAttention(nnx.Module):
    """Self-attention and its output projection.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: AttentionSizes, rngs: nnx.Rngs, dtype: Any):
        self.attention = BertSelfAttention(config, rngs, dtype)
        self.output = _Dense(config.hidden_size, config.hidden_size, rngs, dtype)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, 1 + N, d] from hidden [B, 1 + N, d]."""
        return self.output(self.attention(hidden, None))


class ViTLayer(nnx.Module):
    """One encoder layer, pre-norm.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        d, wide = config.hidden_size, config.intermediate_size
        self.act = config.hidden_act
        self.attention = ViTAttention(config, rngs, dtype)
        self.intermediate = _Dense(d, wide, rngs, dtype)
        self.output = _Dense(wide, d, rngs, dtype)
        self.layernorm_before = layer_norm(d, config.layer_norm_eps, dtype, rngs)
        self.layernorm_after = layer_norm(d, config.layer_norm_eps, dtype, rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, 1 + N, d] from hidden [B, 1 + N, d]."""
        hidden = hidden + self.attention(self.layernorm_before(hidden))
        wide = self.intermediate(self.layernorm_after(hidden))
        return hidden + self.output(ACTIVATIONS[self.act](wide))


class ViTEncoder(nnx.Module):
    """All layers; every parameter of `layer` has a leading axis of num_hidden_layers.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        self.layer = stack(
            lambda r: ViTLayer(config, r, dtype), config.num_hidden_layers, rngs
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, 1 + N, d] from hidden [B, 1 + N, d]."""
        return run_stacked(self.layer, hidden)


class ViTModel(nnx.Module):
    """A vision transformer's encoder: pixels in, hidden states out.

    The class token comes first.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations, f32 by default.

    References:
      Dosovitskiy et al., 2020, arXiv 2010.11929.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> config = models.ViTConfig(
      ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16, image_size=8, patch_size=4,
      ... )
      >>> def run(inputs):
      ...     return models.ViTModel(config, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 3, 8, 8))).shape  # traced, not computed
      (3, 5, 8)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "vit."),
        ignored=(r"(^|\.)pooler\.", r"^classifier\."),
    )

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        self.embeddings = ViTEmbeddings(config, rngs, dtype)
        self.encoder = ViTEncoder(config, rngs, dtype)
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
        """
        with randomness(key):
            hidden = self.encoder(self.embeddings(pixel_values))
            return self.layernorm(hidden)


class ViTForImageClassification(nnx.Module):
    """A vision transformer with a linear classifier on the class token.

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
      >>> config = models.ViTConfig(
      ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16, image_size=8, patch_size=4,
      ... )
      >>> def run(inputs):
      ...     return models.ViTForImageClassification(config, 2, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 3, 8, 8))).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layer",),
        prefixes=("", "vit."),
        new=("classifier",),
        ignored=(r"(^|\.)pooler\.",),
    )

    def __init__(
        self,
        config: ViTConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.vit = ViTModel(config, rngs, dtype)
        self.classifier = classifier(config.hidden_size, num_labels, rngs)

    def features(
        self, pixel_values: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """What the classifier sees, [B, d].

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        return self.vit(pixel_values, key)[:, 0]

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
