"""CLIP: a text and an image encoder whose outputs are compared.

Layers are stacked on a leading axis and run by `lax.scan`. Module names follow Hugging
Face's `CLIPModel` without the layer number.

References:
  Radford et al., 2021, arXiv 2103.00020.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm.models.activations import ACTIVATIONS, check_activation
from fedjax_fm.models.attention import attend
from fedjax_fm.models.bert import layer_norm
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.patches import to_patches
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.stacked import run_stacked, stack
from fedjax_fm.models.virtual_tokens import prepend, seen_by_all
from fedjax_fm.models.weights import Naming


@dataclass(frozen=True)
class CLIPTextConfig:
    """The text encoder's sizes, as `text_config` names them.

    They are the fields that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      vocab_size: V, rows of the table of tokens.
      hidden_size: d, width of the hidden states.
      intermediate_size: width inside the feed-forward network.
      num_hidden_layers: encoder layers.
      num_attention_heads: heads, a divisor of `hidden_size`.
      max_position_embeddings: positions, the longest text in tokens.
      hidden_act: an activation's name, see `activations.ACTIVATIONS`.
      layer_norm_eps: what layer normalisation adds to the variance.
      eos_token_id: the end of text, where the text's embedding is read.

    Raises:
      ValueError: heads that do not divide the width, or an unknown activation.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self):
        _check(self)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """The image encoder's sizes, as `vision_config` names them.

    They are the fields that change the computation.

    Names and defaults are Hugging Face's.

    Attributes:
      hidden_size: d, width of the hidden states.
      intermediate_size: width inside the feed-forward network.
      num_hidden_layers: encoder layers.
      num_attention_heads: heads, a divisor of `hidden_size`.
      num_channels: of an image.
      image_size: pixels of a side.
      patch_size: pixels of a patch's side, a divisor of `image_size`.
      hidden_act: an activation's name, see `activations.ACTIVATIONS`.
      layer_norm_eps: what layer normalisation adds to the variance.

    Raises:
      ValueError: heads that do not divide the width, patches that do not divide the
        image, or an unknown activation.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        _check(self)

    @property
    def num_patches(self) -> int:
        """Patches of an image, N."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class CLIPConfig:
    """Both encoders' sizes and the width in which they meet.

    Attributes:
      text_config: of the text encoder.
      vision_config: of the image encoder.
      projection_dim: p, width of the embeddings that are compared.
      logit_scale_init_value: logarithm of what similarities are multiplied by, at
        first.

    Example:
      >>> vision = CLIPVisionConfig(patch_size=16)
      >>> CLIPConfig(vision_config=vision).vision_config.num_patches
      196
    """

    text_config: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592


Tower = CLIPTextConfig | CLIPVisionConfig


def _check(config: Tower) -> None:
    """ValueError unless the sizes of one encoder fit each other."""
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not a multiple of "
            f"num_attention_heads={config.num_attention_heads}"
        )
    if isinstance(config, CLIPVisionConfig) and config.image_size % config.patch_size:
        raise ValueError(
            f"image_size={config.image_size} is not a multiple of "
            f"patch_size={config.patch_size}"
        )
    check_activation("hidden_act", config.hidden_act)


class CLIPAttention(nnx.Module):
    """Multi-head self-attention with its output projection.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Tower, rngs: nnx.Rngs, dtype: Any):
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.kv_shape = (self.heads, d // self.heads)
        self.prefix = nnx.data(None)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nnx.Linear(d, d, param_dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        attended = attend(
            query=self.q_proj(hidden),
            key=self.k_proj(hidden),
            value=self.v_proj(hidden),
            heads=self.heads,
            mask=mask,
            prefix=self.prefix,
        )
        return self.out_proj(attended)


class CLIPMLP(nnx.Module):
    """The feed-forward network: fc2(act(fc1(x))).

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Tower, rngs: nnx.Rngs, dtype: Any):
        self.act = config.hidden_act
        self.fc1 = nnx.Linear(
            config.hidden_size, config.intermediate_size, param_dtype=dtype, rngs=rngs
        )
        self.fc2 = nnx.Linear(
            config.intermediate_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] from hidden [B, T, d]."""
        wide = ACTIVATIONS[self.act](self.fc1(hidden))
        return self.fc2(wide)


class CLIPEncoderLayer(nnx.Module):
    """One layer of either tower, pre-norm.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Tower, rngs: nnx.Rngs, dtype: Any):
        self.self_attn = CLIPAttention(config, rngs, dtype)
        self.layer_norm1 = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )
        self.mlp = CLIPMLP(config, rngs, dtype)
        self.layer_norm2 = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), mask)
        return hidden + self.mlp(self.layer_norm2(hidden))


class CLIPEncoder(nnx.Module):
    """All layers of a tower.

    Every parameter of `layers` has a leading axis of num_hidden_layers.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: Tower, rngs: nnx.Rngs, dtype: Any):
        self.layers = stack(
            lambda r: CLIPEncoderLayer(config, r, dtype), config.num_hidden_layers, rngs
        )

    def __call__(self, hidden: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, T, d] from hidden [B, T, d], mask bool[B, heads or 1, T, T]."""
        return run_stacked(self.layers, hidden, mask)


class CLIPTextEmbeddings(nnx.Module):
    """Sum of token and position embeddings.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs, dtype: Any):
        d = config.hidden_size
        self.token_embedding = nnx.Embed(
            config.vocab_size, d, param_dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.max_position_embeddings, d, param_dtype=dtype, rngs=rngs
        )
        self.first_position = 0

    def __call__(
        self, input_ids: jax.Array, prompt: Any = None
    ) -> tuple[jax.Array, int]:
        """The embedded text behind a prompt of p tokens.

        Args:
          input_ids: i32[B, T].
          prompt: of `virtual_tokens`; None: p = 0.

        Returns:
          ([B, p + T, d], p).
        """
        words, n_prompt = prepend(prompt, self.token_embedding(input_ids))
        positions = jnp.broadcast_to(
            self.first_position + jnp.arange(words.shape[1]), words.shape[:2]
        )
        return words + self.position_embedding(positions), n_prompt


class CLIPTextModel(nnx.Module):
    """The causal text encoder.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
    """

    def __init__(
        self, config: CLIPTextConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config, rngs, dtype)
        self.encoder = CLIPEncoder(config, rngs, dtype)
        self.final_layer_norm = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )
        self.prompt = nnx.data(None)

    @property
    def vocabulary(self) -> nnx.Embed:
        """The embedding of tokens, of which a trained prompt is made."""
        return self.embeddings.token_embedding

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The hidden states [B, T, d] of tokens, normalised.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        hidden, n_prompt = self.embeddings(input_ids, self.prompt)
        length = hidden.shape[1] + self.embeddings.first_position
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"{length} tokens exceed the model's context of {limit}; truncate"
            )
        real = (
            jnp.ones(input_ids.shape, bool)
            if attention_mask is None
            else attention_mask.astype(bool)
        )
        square = (1, 1, hidden.shape[1], hidden.shape[1])
        causal = jnp.tril(jnp.ones(square, bool))
        mask = causal & seen_by_all(real, n_prompt)[:, None, None, :]
        return self.final_layer_norm(self.encoder(hidden, mask)[:, n_prompt:])

    def pooled(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The hidden state [B, d] at each row's first end-of-text token.

        Args:
          input_ids: i32[B, T].
          attention_mask: [B, T], 1 for real tokens; None: all are.
        """
        hidden = self(input_ids, attention_mask)
        # Old configurations say 2, which was never the token: the end of text is the
        # largest id.
        end = self.config.eos_token_id
        ends = input_ids if end == 2 else input_ids == end
        first = jnp.argmax(ends, axis=-1)
        return jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]


class CLIPVisionEmbeddings(nnx.Module):
    """The class token and the patches of an image, with their positions.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of the weights.
    """

    def __init__(self, config: CLIPVisionConfig, rngs: nnx.Rngs, dtype: Any):
        self.config, d = config, config.hidden_size
        init = nnx.initializers.normal(0.02)
        self.class_embedding = nnx.Param(init(rngs.params(), (d,), dtype))
        width = config.num_channels * config.patch_size**2
        self.patch_embedding = nnx.Linear(
            width, d, use_bias=False, param_dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            1 + config.num_patches, d, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """[B, 1 + N, d] of pixels [B, C, H, W] or [B, H, W, C]."""
        config = self.config
        pixels = pixels.astype(self.class_embedding.dtype)
        patches = to_patches(
            pixels, config.num_channels, config.image_size, config.patch_size
        )
        patches = self.patch_embedding(patches)
        batch, _, width = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...], (batch, 1, width))
        embedded = jnp.concatenate([first, patches], axis=1)
        return embedded + self.position_embedding.embedding[...][None]


class CLIPVisionModel(nnx.Module):
    """The image encoder.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations.
    """

    def __init__(
        self, config: CLIPVisionConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config, rngs, dtype)
        self.pre_layrnorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )
        self.encoder = CLIPEncoder(config, rngs, dtype)
        self.post_layernorm = layer_norm(
            config.hidden_size, config.layer_norm_eps, dtype, rngs
        )

    def __call__(self, pixel_values: jax.Array) -> jax.Array:
        """Hidden states [B, 1 + N, d], not normalised.

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
        """
        embedded = self.embeddings(pixel_values)
        return self.encoder(self.pre_layrnorm(embedded))

    def pooled(self, pixel_values: jax.Array) -> jax.Array:
        """The class token's hidden state [B, d], normalised.

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
        """
        return self.post_layernorm(self(pixel_values)[:, 0])


class CLIPOutput(NamedTuple):
    """Similarities of B images and C texts, and what they are made of."""

    logits_per_image: jax.Array  # f32[B, C]
    logits_per_text: jax.Array  # f32[C, B]
    image_embeds: jax.Array  # [B, p], of length one
    text_embeds: jax.Array  # [C, p], of length one


_IGNORED = (r"position_ids$",)


class CLIPModel(nnx.Module):
    """Both encoders and the projections by which they are compared.

    Args:
      config: sizes.
      rngs: draws the initial weights.
      dtype: of weights and activations; similarities are f32.

    References:
      Radford et al., 2021, arXiv 2103.00020, figure 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> sizes = {
      ...     "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
      ...     "intermediate_size": 16,
      ... }
      >>> text = models.CLIPTextConfig(vocab_size=30, eos_token_id=29, **sizes)
      >>> vision = models.CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
      >>> config = models.CLIPConfig(text, vision, projection_dim=4)
      >>> def run(texts, images):
      ...     return models.CLIPModel(config, nnx.Rngs(0))(texts, images)
      >>> texts, images = jnp.full((3, 5), 29), jnp.ones((2, 3, 8, 8))
      >>> jax.eval_shape(run, texts, images).logits_per_image.shape  # traced only
      (2, 3)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layers",), ignored=_IGNORED
    )

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        text, vision = config.text_config, config.vision_config
        width = config.projection_dim

        def linear(n_in):
            return nnx.Linear(n_in, width, use_bias=False, param_dtype=dtype, rngs=rngs)

        self.config = config
        self.text_model = CLIPTextModel(text, rngs, dtype)
        self.vision_model = CLIPVisionModel(vision, rngs, dtype)
        self.text_projection = linear(text.hidden_size)
        self.visual_projection = linear(vision.hidden_size)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale_init_value, dtype))

    def text_features(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The texts' embeddings [C, p], not normalised.

        Args:
          input_ids: i32[C, T].
          attention_mask: [C, T], 1 for real tokens; None: all are.
        """
        return self.text_projection(self.text_model.pooled(input_ids, attention_mask))

    def image_features(self, pixel_values: jax.Array) -> jax.Array:
        """The images' embeddings [B, p], not normalised.

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
        """
        return self.visual_projection(self.vision_model.pooled(pixel_values))

    def __call__(
        self,
        input_ids: jax.Array,
        pixel_values: jax.Array,
        attention_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> CLIPOutput:
        """The similarities of every image and every text.

        Args:
          input_ids: i32[C, T], the texts.
          pixel_values: [B, channels, H, W] or [B, H, W, channels], the images.
          attention_mask: [C, T], 1 for real tokens; None: all are.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        with randomness(key):
            image = self.image_features(pixel_values).astype(jnp.float32)
            text = self.text_features(input_ids, attention_mask).astype(jnp.float32)
        image, text = (
            x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)
        )
        logits = jnp.exp(self.logit_scale[...].astype(jnp.float32)) * image @ text.T
        return CLIPOutput(
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=image,
            text_embeds=text,
        )


class CLIPForImageClassification(nnx.Module):
    """CLIP's image encoder and a linear classifier: logits f32[B, num_labels].

    The classifier reads the mean of the patches' hidden states.

    Args:
      config: sizes; those of the text encoder are not used.
      num_labels: classes.
      rngs: draws the initial weights.
      dtype: of the encoder's weights and activations; the classifier stays f32.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from fedjax_fm import models
      >>> vision = models.CLIPVisionConfig(
      ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16, image_size=8, patch_size=4,
      ... )
      >>> config = models.CLIPConfig(vision_config=vision)
      >>> def run(inputs):
      ...     return models.CLIPForImageClassification(config, 2, nnx.Rngs(0))(inputs)
      >>> jax.eval_shape(run, jnp.ones((3, 3, 8, 8))).shape  # traced, not computed
      (3, 2)
    """

    hugging_face: ClassVar[Naming] = Naming(
        stacked=("encoder.layers",),
        new=("classifier",),
        ignored=(*_IGNORED, r"^(text_|visual_projection\.|logit_scale$)"),
    )

    def __init__(
        self,
        config: CLIPConfig,
        num_labels: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        self.config = config
        self.vision_model = CLIPVisionModel(config.vision_config, rngs, dtype)
        self.classifier = classifier(config.vision_config.hidden_size, num_labels, rngs)

    def features(self, pixel_values: jax.Array) -> jax.Array:
        """What the classifier sees, [B, d].

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
        """
        return self.vision_model(pixel_values)[:, 1:].mean(axis=1)

    def __call__(
        self, pixel_values: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits f32[B, num_labels] of pixels [B, C, H, W] or [B, H, W, C].

        Args:
          pixel_values: the images.
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.
        """
        with randomness(key):
            features = self.features(pixel_values)
            return self.classifier(features.astype(jnp.float32))
