"""Vision transformers: patches embedded by one matrix product, layers stacked and run
by `lax.scan`.

Module names follow Hugging Face's `ViTModel` without the layer number.

Dosovitskiy et al., 2020, arXiv 2010.11929.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.bert import BertSelfAttention, layer_norm
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.patches import to_patches
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.stacked import run_stacked, stack
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class ViTConfig:
    """The fields of `config.json` that change the computation, under Hugging Face's
    names and defaults.
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
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )
        if not self.qkv_bias:
            raise ValueError("qkv_bias=False is not supported")
        check_activation("hidden_act", self.hidden_act)

    @property
    def num_patches(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2


class ViTPatchEmbeddings(nnx.Module):
    """A linear layer on flat patches: a convolution whose stride is its width."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        self.config = config
        width = config.num_channels * config.patch_size**2
        self.projection = nnx.Linear(
            width, config.hidden_size, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, pixels: jax.Array) -> jax.Array:
        config = self.config
        return self.projection(
            to_patches(
                pixels, config.num_channels, config.image_size, config.patch_size
            )
        )


class ViTEmbeddings(nnx.Module):
    """[B, 1 + N, d]: the class token and the patches, with their positions."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        d, init = config.hidden_size, nnx.initializers.normal(0.02)
        self.patch_embeddings = ViTPatchEmbeddings(config, rngs, dtype)
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, d), dtype))
        self.position_embeddings = nnx.Param(
            init(rngs.params(), (1, 1 + config.num_patches, d), dtype)
        )

    def __call__(self, pixels: jax.Array) -> jax.Array:
        patches = self.patch_embeddings(pixels.astype(self.cls_token.dtype))
        first = jnp.broadcast_to(
            self.cls_token[...], (patches.shape[0], 1, patches.shape[-1])
        )
        return jnp.concatenate([first, patches], axis=1) + self.position_embeddings[...]


class _Dense(nnx.Module):
    """A linear layer under the name `dense`."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, dtype: Any):
        self.dense = nnx.Linear(n_in, n_out, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(x)


class ViTAttention(nnx.Module):
    """Self-attention and its output projection."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        self.attention = BertSelfAttention(config, rngs, dtype)
        self.output = _Dense(config.hidden_size, config.hidden_size, rngs, dtype)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.output(self.attention(hidden, None))


class ViTLayer(nnx.Module):
    """One encoder layer, pre-norm."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        d, wide = config.hidden_size, config.intermediate_size
        self.act = config.hidden_act
        self.attention = ViTAttention(config, rngs, dtype)
        self.intermediate = _Dense(d, wide, rngs, dtype)
        self.output = _Dense(wide, d, rngs, dtype)
        self.layernorm_before = layer_norm(d, config.layer_norm_eps, dtype, rngs)
        self.layernorm_after = layer_norm(d, config.layer_norm_eps, dtype, rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        hidden = hidden + self.attention(self.layernorm_before(hidden))
        return hidden + self.output(
            ACTIVATIONS[self.act](self.intermediate(self.layernorm_after(hidden)))
        )


class ViTEncoder(nnx.Module):
    """All layers; every parameter of `layer` has a leading axis of num_hidden_layers."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any):
        self.layer = stack(
            lambda r: ViTLayer(config, r, dtype), config.num_hidden_layers, rngs
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return run_stacked(self.layer, hidden)


class ViTModel(nnx.Module):
    """The encoder: `model(pixels [B, C, H, W] or [B, H, W, C]) -> hidden states [B, 1 +
    N, d]`, the class token first.
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
        with randomness(key):
            return self.layernorm(self.encoder(self.embeddings(pixel_values)))


class ViTForImageClassification(nnx.Module):
    """A linear classifier on the class token: logits f32[B, num_labels]."""

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
        """What the classifier sees, [B, d]."""
        return self.vit(pixel_values, key)[:, 0]

    def __call__(
        self, pixel_values: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        return self.classifier(self.features(pixel_values, key).astype(jnp.float32))
