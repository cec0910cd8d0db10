"""A ViT with DeiT's distillation token: a second token that a teacher's class is read from.

    tokens:  class, distillation, patch 1, ..., patch N, each with its position
    heads:   z_class of the first token, z_distillation of the second

References:
  Touvron et al., 2020, arXiv 2012.12877.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_fm import checks
from fedjax_fm.models.classifier import classifier
from fedjax_fm.models.randomness import randomness
from fedjax_fm.models.vit import ViTForImageClassification


class DistilledViT(nnx.Module):
    """A classifier on a ViT with one token and one head more: logits of both heads.

    Trained by `tasks.with_distillation_token`; at test time DeiT adds the probabilities
    of both heads.

    Args:
      model: a ViT with its classifier, pretrained or not; it stays as it is.
      rngs: draws the token, its position and its head, which are new.

    Raises:
      TypeError: `model` is no such classifier.

    References:
      Touvron et al., 2020, arXiv 2012.12877, section 4.

    Example:
      >>> from fedjax_fm import models
      >>> config = models.ViTConfig(
      ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
      ...     intermediate_size=16, image_size=8, patch_size=4,
      ... )
      >>> def run(inputs):
      ...     model = models.ViTForImageClassification(config, 3, nnx.Rngs(0))
      ...     return models.DistilledViT(model, nnx.Rngs(1))(inputs)
      >>> of_class, of_teacher = jax.eval_shape(run, jnp.ones((5, 3, 8, 8)))
      >>> of_class.shape, of_teacher.shape  # traced, not computed
      ((5, 3), (5, 3))
    """

    def __init__(self, model: ViTForImageClassification, rngs: nnx.Rngs):
        how = "give a ViTForImageClassification"
        checks.instance("model", model, ViTForImageClassification, how)
        copy = nnx.clone(model)
        self.config = copy.config
        self.vit = copy.vit
        self.classifier = copy.classifier
        width, init = copy.config.hidden_size, nnx.initializers.normal(0.02)
        shape, dtype = (1, 1, width), copy.vit.embeddings.cls_token.dtype
        self.distillation_token = nnx.Param(init(rngs.params(), shape, dtype))
        self.distillation_position = nnx.Param(init(rngs.params(), shape, dtype))
        n_labels = copy.classifier.kernel.shape[-1]
        self.distillation_classifier = classifier(width, n_labels, rngs)

    def __call__(
        self, pixel_values: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Logits of both heads, f32[B, num_labels] each.

        Args:
          pixel_values: [B, C, H, W] or [B, H, W, C].
          key: drives the dropout that a fine-tuning method has added; None:
            deterministic.

        Returns:
          (z_class, z_distillation).
        """
        with randomness(key):
            hidden = self.vit.embeddings(pixel_values)
            token = self.distillation_token[...] + self.distillation_position[...]
            token = jnp.broadcast_to(token, (hidden.shape[0], 1, hidden.shape[-1]))
            hidden = jnp.concatenate([hidden[:, :1], token, hidden[:, 1:]], axis=1)
            hidden = self.vit.layernorm(self.vit.encoder(hidden)).astype(jnp.float32)
        of_class = self.classifier(hidden[:, 0])
        return of_class, self.distillation_classifier(hidden[:, 1])
