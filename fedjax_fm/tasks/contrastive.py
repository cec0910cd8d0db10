"""Pairs of images and texts: their features, their loss, and classes by their names."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_fm import checks
from fedjax_fm.models.randomness import randomness
from fedjax_fm.tasks.classification import from_logits
from fedjax_fm.tasks.columns import check_adapted, need
from fedjax_fm.types import Task, Tree

IMAGE, TEXT, TEXT_MASK = "pixel_values", "input_ids", "attention_mask"


class PairFeatures(NamedTuple):
    """Features of B pairs of an image and a text.

    Attributes:
      image: f32[B, p], of any length.
      text: f32[B, p], of any length.
      scale: f32[], what cosines are multiplied by.
    """

    image: jax.Array
    text: jax.Array
    scale: jax.Array

    def similarities(self) -> jax.Array:
        """Scale times the cosine of every image (rows) and text (columns), f32[B, B]."""
        return self.scale * _of_length_one(self.image) @ _of_length_one(self.text).T


def pair_features(adapted: Any) -> Callable[..., PairFeatures]:
    """The features of a batch's images and texts, for `algorithms.fedclip`.

    Args:
      adapted: from `peft.apply` of a `models.CLIPModel`; batches have the columns
        `pixel_values`, `input_ids` and, where texts are padded, `attention_mask`.

    Returns:
      `(delta, backbone, batch, key) -> PairFeatures`.

    Raises:
      TypeError: `adapted` is not from `peft.apply`.
      ValueError: while a round is traced, a missing column.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft
      >>> sizes = {
      ...     "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
      ...     "intermediate_size": 8,
      ... }
      >>> text = models.CLIPTextConfig(vocab_size=30, eos_token_id=29, **sizes)
      >>> vision = models.CLIPVisionConfig(image_size=4, patch_size=2, **sizes)
      >>> config = models.CLIPConfig(text, vision, projection_dim=4)
      >>> model = models.CLIPModel(config, nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.attention_adapter())
      >>> batch = {"pixel_values": jnp.ones((2, 3, 4, 4)), "input_ids": jnp.full((2, 5), 29)}
      >>> of = pair_features(adapted)
      >>> of(adapted.delta, adapted.backbone, batch, None).similarities().shape
      (2, 2)
    """
    check_adapted(adapted)

    def features(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, (IMAGE, TEXT), "the task of pairs")
        model = adapted.model(delta, backbone)
        with randomness(key):
            image = model.image_features(batch[IMAGE])
            text = model.text_features(batch[TEXT], batch.get(TEXT_MASK))
        return PairFeatures(
            image=image.astype(jnp.float32),
            text=text.astype(jnp.float32),
            scale=jnp.exp(model.logit_scale[...].astype(jnp.float32)),
        )

    return features


def contrastive_losses(similarities: jax.Array, mask: jax.Array) -> jax.Array:
    """The symmetric cross-entropy of every pair of a batch.

        l_i = -(log softmax_j(s_ij)[i] + log softmax_j(s_ji)[i]) / 2

    over the real pairs j of the batch. Texts that are the same by chance count as
    negatives of each other. The mean over the pairs is CLIP's loss; a pair that is alone
    in its batch has the loss 0.

    Args:
      similarities: f32[B, B], of images (rows) and texts (columns).
      mask: bool[B], False in rows that must not count.

    Returns:
      f32[B], in nats; 0 where the mask is False.

    References:
      Radford et al., 2021, arXiv 2103.00020, figure 3.

    Example:
      >>> losses = contrastive_losses(jnp.zeros((3, 3)), jnp.array([True, True, False]))
      >>> losses.round(3).tolist()  # log 2 each
      [0.6930000185966492, 0.6930000185966492, 0.0]
    """
    real = mask[:, None] & mask[None, :]
    # A padded row keeps its own pair, so that no row is empty.
    shown = jnp.where(real | jnp.eye(len(mask), dtype=bool), similarities, -jnp.inf)
    own = jnp.diagonal(similarities)
    by_image = jax.nn.logsumexp(shown, axis=1) - own
    by_text = jax.nn.logsumexp(shown, axis=0) - own
    return jnp.where(mask, (by_image + by_text) / 2, 0.0)


def zero_shot(
    adapted: Any,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    label: str = "label",
    predictions: bool = False,
) -> Task:
    """Classification of images by the names of the classes.

    An image's logits are its similarities to the K names' texts, as `CLIPModel` gives
    them.

    Args:
      adapted: from `peft.apply` of a `models.CLIPModel`; batches have the columns
        `pixel_values` and `label`, others are not read.
      input_ids: i32[K, T], the names of the classes as tokens, for example of "a picture
        of a dog".
      attention_mask: [K, T], 1 for real tokens; None: all are.
      label: the column of class numbers, i32[B] in 0..K-1.
      predictions: as of `tasks.classification`.

    Returns:
      A task with the loss and the metric `accuracy`.

    Raises:
      TypeError: `adapted` is not from `peft.apply`.
      ValueError: the tokens are not two-dimensional, or the mask has another shape.

    References:
      Radford et al., 2021, arXiv 2103.00020, section 3.1.

    Example:
      >>> from flax import nnx
      >>> from fedjax_fm import models, peft
      >>> sizes = {
      ...     "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
      ...     "intermediate_size": 8,
      ... }
      >>> text = models.CLIPTextConfig(vocab_size=30, eos_token_id=29, **sizes)
      >>> vision = models.CLIPVisionConfig(image_size=4, patch_size=2, **sizes)
      >>> config = models.CLIPConfig(text, vision, projection_dim=4)
      >>> model = models.CLIPModel(config, nnx.Rngs(0))
      >>> adapted = peft.apply(model, peft.attention_adapter())
      >>> task = zero_shot(adapted, [[1, 2, 29], [3, 4, 29]])
      >>> batch = {"pixel_values": jnp.ones((5, 3, 4, 4)), "label": jnp.zeros(5, jnp.int32)}
      >>> task.loss(adapted.delta, adapted.backbone, batch, None)[0].shape
      (5,)
    """
    check_adapted(adapted)
    checks.flag("predictions", predictions)
    names = jnp.asarray(input_ids)
    if names.ndim != 2:
        raise ValueError(
            "expected input_ids [classes, tokens], one row a class, got the shape "
            f"{list(names.shape)}"
        )
    mask = None if attention_mask is None else jnp.asarray(attention_mask)
    if mask is not None and mask.shape != names.shape:
        raise ValueError(
            f"expected attention_mask of the shape of input_ids, {list(names.shape)}, "
            f"got {list(mask.shape)}"
        )

    def logits(delta: Tree, backbone: Tree, batch: dict[str, jax.Array], key: Any):
        need(batch, (IMAGE,), "the task of names")
        model = adapted.model(delta, backbone)
        return model(names, batch[IMAGE], mask, key).logits_per_image

    return from_logits(logits, label=label, predictions=predictions)


def _of_length_one(x: jax.Array) -> jax.Array:
    """Rows of length one."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
